"""Texts on which tokenizers go wrong: blanks, breaks, digits, scripts, marks, control tokens.

Two tokenizers that split all of these alike split ordinary text alike. Each is short, because a
tokenizer is compared on all of them, and has a name, because a difference is reported by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from forge.merge.vocabulary.tokens import Tokenizer

HARD_STRINGS: Final[Mapping[str, str]] = {
    "nothing": "",
    "a blank": " ",
    "a blank before": " fever",
    "a blank behind": "fever ",
    "two blanks before": "  fever",
    "blanks inside": "fever  and   pain    or     rash",
    "sixteen blanks": " " * 16,
    "a tab": "\tdose\t5",
    "line breaks": "first\nsecond\n\nthird\n\n\n",
    "Windows line breaks": "first\r\nsecond\r\n",
    "a break and blanks": "if x:\n    return\n  \n",
    "digits": "0123456789",
    "a long number": "3141592653589793238462643383279502884197",
    "numbers": "1,234.56 mg/dL, 0.5%, 1e-5, 12:30",
    "a date": "2024-02-29",
    "contractions": "it's they're I'll DON'T can’t",
    "capitals": "HbA1c mRNA COVID-19 pH",
    "punctuation": "...?!--(\"'[{<>}]'\")",
    "typography": "“a” – ‘b’ — c… d·e ½ №",
    "accents": "naïve façade Übelkeit señal",
    "combining marks": "nai\u0308ve fac\u0327ade",
    "ligatures and widths": "ﬁbrosis １２３ ＡＢＣ",
    "Greek and symbols": "α-synuclein β₂ μg ≥ 3×10⁻⁵ °C",
    "Cyrillic": "Острый живот",
    "Arabic": "الحمى والسعال",
    "Hebrew with marks": "שָׁלוֹם",
    "Hindi": "बुखार और खाँसी",
    "Thai": "ไข้และไอ",
    "Chinese": "高血压患者，每日一次。",
    "Japanese": "頭痛がします。カタカナ",
    "Korean": "두통과 발열",
    "emoji": "🙂🩺💊",
    "joined emoji": "👩🏽‍⚕️👨‍👩‍👧🏳️‍🌈",
    "other blanks": "a\u00a0b\u2009c\u3000d\u200be\ufefff",
    "a null": "a\x00b",
    "control characters": "a\x07b\x1bc\x7fd",
    "code": "def f(x: int) -> str:\n\treturn f\"{x!r}\"  # 'x'",
    "markup": "<p class=\"a\">1 &lt; 2</p> <br/> <!-- x -->",
    "a path": "C:\\temp\\new https://example.org/?q=a%20b&c=d#e",
    "tokens as text": "<s>a</s> <pad> <|endoftext|> <|im_start|>user\n[INST] b [/INST] <0x0A>",
    "the blank's own sign": "a▁b ▁▁ Ġ Ċ",
    "a rare character": "𓀀 𝔘 ꙮ",
    "repetition": "aaaaaaaaaaaaaaaa hahahahahaha",
}  # fmt: skip
"""Texts by name."""

_MOST_TOKENS: Final = 8


def strings_of(tokenizers: Iterable[Tokenizer]) -> dict[str, str]:
    """Return the hard strings, and some around the tokens that models match whole.

    Args:
        tokenizers: Whose added tokens to use, the first and the last few of each.

    Returns:
        Texts by name.
    """
    found = dict(HARD_STRINGS)
    for tokenizer in tokenizers:
        added = sorted(tokenizer.added(), key=lambda token: tokenizer.ids[token])
        half = _MOST_TOKENS // 2
        chosen = added if len(added) <= _MOST_TOKENS else [*added[:half], *added[-half:]]
        for token in chosen:
            found[f"the token {token!r}"] = f"a{token}b {token} c\n{token}"
    return found

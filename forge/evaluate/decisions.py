"""Read a decision, such as yes, no or maybe, out of an answer in words; or find that it has none.

Only what is said plainly counts, in this order:

1. ``answer`` followed by ``is`` or a colon and an option: *… therefore, the answer is yes*,
   *Answer: **no***. The last such place decides, since a model may weigh before it decides.
2. An option that the answer begins with, as a word of its own: *Yes, because …*.

Everything else is missing. An option somewhere in the middle (*there was no difference*) is no
decision.

Reference: the missing rate follows Xie et al., Me-LLaMA, arXiv:2402.12749.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

_OPEN = r"[\s\"'*_(\[]*"


def read_decision(text: str, options: Sequence[str]) -> int | None:
    """Return the index of the option that an answer decides for.

    Args:
        text: The answer.
        options: The options, in words.

    Returns:
        The index, or ``None`` if the answer names none.
    """
    stated, opening = _patterns(tuple(options))
    found = stated.findall(text)
    if found:
        word = found[-1]
    elif begins := opening.match(text):
        word = begins[1]
    else:
        return None
    return [option.casefold() for option in options].index(word.casefold())


def without_decision(text: str, options: Sequence[str]) -> str:
    """Return an answer without a last line that says nothing but the decision.

    Args:
        text: The answer.
        options: The options, in words; with none, the answer is returned as it is.
    """
    if not options:
        return text
    body, _, last = text.rstrip().rpartition("\n")
    stated, _ = _patterns(tuple(options))
    match = stated.search(last)
    if match is None or re.sub(r"\W+", "", last[: match.start()] + last[match.end() :]):
        return text
    return body


@lru_cache(maxsize=64)
def _patterns(options: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    # The longest first, so that an option that begins another does not hide it.
    words = "|".join(re.escape(option) for option in sorted(options, key=len, reverse=True))
    end = r"(?![\w-])"
    stated = rf"\banswer{_OPEN}(?:\bis\b|[:=-]){_OPEN}(?:is\b)?[:\s]*{_OPEN}({words}){end}"
    opening = rf"{_OPEN}({words}){end}"
    return re.compile(stated, re.IGNORECASE), re.compile(opening, re.IGNORECASE)

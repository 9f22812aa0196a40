"""Reduce an English word to its stem, as ROUGE with stemming wants it: *relational* to *relat*.

Porter's algorithm of 1980 in five steps, each of which takes off or replaces one ending if enough
of a word is left: its measure, the number of times that a vowel is followed by a consonant. With
the departures that NLTK makes by default and ``rouge-score`` therefore has: a list of irregular
words, *-ied* and *-ies* of short words to *-ie*, *-y* to *-i* after a consonant, *-alli* before
*-al*, *-fulli*, *-logi*.

Reference: Porter, "An algorithm for suffix stripping", Program 14 (1980).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final

Rule = tuple[str, str, Callable[[str], bool]]
"""An ending, what replaces it, and what must hold of the rest."""

_IRREGULAR: Final = {
    form: word
    for word, forms in {
        "sky": ("sky", "skies"), "die": ("dying",), "lie": ("lying",), "tie": ("tying",),
        "news": ("news",), "inning": ("innings", "inning"), "outing": ("outings", "outing"),
        "canning": ("cannings", "canning"), "howe": ("howe",), "proceed": ("proceed",),
        "exceed": ("exceed",), "succeed": ("succeed",),
    }.items()
    for form in forms
}  # fmt: skip


@lru_cache(maxsize=1 << 14)
def stem(word: str) -> str:
    """Return the stem of a word in small letters.

    Args:
        word: The word.

    Returns:
        Its stem; words of one or two letters are their own.
    """
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 2:
        return word
    for step in (
        _plurals,
        _participles,
        _final_y,
        _double_endings,
        _endings,
        _long_endings,
        _final_e,
        _double_l,
    ):
        word = step(word)
    return word  # fmt: skip


def _is_consonant(word: str, index: int) -> bool:
    letter = word[index]
    if letter in "aeiou":
        return False
    return letter != "y" or index == 0 or not _is_consonant(word, index - 1)


def _measure(rest: str) -> int:
    kinds = [_is_consonant(rest, index) for index in range(len(rest))]
    return sum(not before and after for before, after in pairwise(kinds))


def _has_vowel(rest: str) -> bool:
    return any(not _is_consonant(rest, index) for index in range(len(rest)))


def _ends_double(word: str) -> bool:
    return len(word) > 1 and word[-1] == word[-2] and _is_consonant(word, len(word) - 1)


def _ends_short(word: str) -> bool:
    """Tell whether a word ends as *hop* does: consonant, vowel, consonant other than w, x, y."""
    last = len(word) - 1
    if last == 1:
        return not _is_consonant(word, 0) and _is_consonant(word, 1)
    return (
        last > 1
        and _is_consonant(word, last - 2)
        and not _is_consonant(word, last - 1)
        and _is_consonant(word, last)
        and word[last] not in "wxy"
    )


def _measured(least: int) -> Callable[[str], bool]:
    return lambda rest: _measure(rest) > least


def _always(rest: str) -> bool:
    return True


def _apply(word: str, rules: Sequence[Rule]) -> str:
    """Apply the first rule whose ending the word has, if its condition holds."""
    for ending, replacement, holds in rules:
        if word.endswith(ending):
            rest = word[: len(word) - len(ending)]
            return rest + replacement if holds(rest) else word
    return word


def _plurals(word: str) -> str:
    if word.endswith("ies") and len(word) == 4:
        return word[:-3] + "ie"
    return _apply(
        word,
        [("sses", "ss", _always), ("ies", "i", _always), ("ss", "ss", _always), ("s", "", _always)],
    )


def _participles(word: str) -> str:
    if word.endswith("ied"):
        return word[:-3] + ("ie" if len(word) == 4 else "i")
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    rest = next(
        (
            word[: -len(end)]
            for end in ("ed", "ing")
            if word.endswith(end) and _has_vowel(word[: -len(end)])
        ),
        None,
    )
    if rest is None:
        return word
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if _ends_double(rest):
        return rest if rest[-1] in "lsz" else rest[:-1]
    return rest + "e" if _measure(rest) == 1 and _ends_short(rest) else rest  # fmt: skip


def _final_y(word: str) -> str:
    rest = word[:-1]
    if word.endswith("y") and len(rest) > 1 and _is_consonant(rest, len(rest) - 1):
        return rest + "i"
    return word


def _double_endings(word: str) -> str:
    some = _measured(0)
    if word.endswith("alli") and some(word[:-4]):
        return _double_endings(word[:-4] + "al")
    rules = (
        ("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"),
        ("bli", "ble"), ("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"),
        ("ization", "ize"), ("ation", "ate"), ("ator", "ate"), ("alism", "al"),
        ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al"),
        ("iviti", "ive"), ("biliti", "ble"), ("fulli", "ful"),
    )  # fmt: skip
    for ending, replacement in rules:
        if word.endswith(ending):
            return _apply(word, [(ending, replacement, some)])
    # The l of -logi counts as part of what is left.
    return word[:-1] if word.endswith("logi") and some(word[:-3]) else word


def _endings(word: str) -> str:
    some = _measured(0)
    return _apply(
        word,
        [
            ("icate", "ic", some), ("ative", "", some), ("alize", "al", some),
            ("iciti", "ic", some), ("ical", "ic", some), ("ful", "", some), ("ness", "", some),
        ],
    )  # fmt: skip


def _long_endings(word: str) -> str:
    more = _measured(1)
    return _apply(
        word,
        [
            *((ending, "", more) for ending in (
                "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent")),
            ("ion", "", lambda rest: more(rest) and rest[-1] in "st"),
            *((ending, "", more) for ending in (
                "ou", "ism", "ate", "iti", "ous", "ive", "ize")),
        ],
    )  # fmt: skip


def _final_e(word: str) -> str:
    if not word.endswith("e"):
        return word
    rest = word[:-1]
    if _measure(rest) > 1 or (_measure(rest) == 1 and not _ends_short(rest)):
        return rest
    return word


def _double_l(word: str) -> str:
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word

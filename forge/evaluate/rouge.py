"""ROUGE: how much of a reference answer's words an answer has, and how much else.

    ROUGE-N   overlap of n-grams, each counted as often as both have it
    ROUGE-L   length of the longest common subsequence of words

with precision over the answer's, recall over the reference's, and F1 = 2PR / (P + R). Text is
lowered, what is no letter a-z or digit separates words, and words of more than three letters may be
stemmed. That is what the ``rouge-score`` package does, whose figures most papers print; the tests
hold both against it.

Reference: Lin, "ROUGE: A package for automatic evaluation of summaries", 2004.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from forge.evaluate.porter import stem

_SEPARATORS: Final = re.compile(r"[^a-z0-9]+")
_STEMMED_FROM: Final = 4


def rouge(reference: str, answer: str, *, stemming: bool = False) -> dict[str, float]:
    """Compare an answer with a reference.

    Args:
        reference: The answer that is known to be right.
        answer: The answer to judge.
        stemming: Whether words are reduced to their stems first, so that *treated* and *treats*
            are one.

    Returns:
        F1 in [0, 1] under ``rouge1``, ``rouge2`` and ``rougeL``; 0 where a text has no words.
    """
    expected, found = words_of(reference, stemming=stemming), words_of(answer, stemming=stemming)
    return {
        "rouge1": _overlap(expected, found, 1),
        "rouge2": _overlap(expected, found, 2),
        "rougeL": _f1(common_subsequence(expected, found), len(expected), len(found)),
    }


def words_of(text: str, *, stemming: bool) -> list[str]:
    """Return the words of a text, as ROUGE counts them."""
    words = [word for word in _SEPARATORS.split(text.lower()) if word]
    if not stemming:
        return words
    return [stem(word) if len(word) >= _STEMMED_FROM else word for word in words]


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two sequences of words.

    A column of the dynamic programme is one whole number with a bit a word of ``first``, and a word
    of ``second`` costs an addition.

    Reference: Hyyrö, "Bit-parallel LCS-length computation revisited", 2004.
    """
    places: dict[str, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    full = (1 << len(first)) - 1
    column = full
    for word in second:
        matches = column & places.get(word, 0)
        column = (column + matches | column - matches) & full
    return len(first) - column.bit_count()


def _overlap(expected: Sequence[str], found: Sequence[str], size: int) -> float:
    of_expected, of_found = _ngrams(expected, size), _ngrams(found, size)
    return _f1((of_expected & of_found).total(), of_expected.total(), of_found.total())


def _ngrams(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def _f1(hits: int, expected: int, found: int) -> float:
    return 2 * hits / (expected + found) if hits else 0.0

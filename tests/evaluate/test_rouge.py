"""ROUGE against the ``rouge-score`` package, with and without stemming."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.evaluate.porter import stem
from forge.evaluate.rouge import common_subsequence, rouge

scorer = pytest.importorskip("rouge_score.rouge_scorer")
nltk_porter = pytest.importorskip("nltk.stem.porter")

NAMES = ["rouge1", "rouge2", "rougeL"]
PAIRS = [
    ("The cat sat on the mat.", "A cat was sitting on the mat"),
    (
        "Iron lowers the need for transfusion (P<0.001).",
        "iron reduced transfusion needs; P < 0.001",
    ),
    ("one two three four", "four three two one"),
    ("a a a b", "a b b b"),
    ("", "something"),
    ("something", ""),
    ("...", "???"),
    ("Größe des Herzens", "grosse herzens"),
    ("single", "single"),
]
WORDS = st.sampled_from([
    "treat", "treated", "treats", "treatment", "patients", "patient", "the", "of", "outcomes",
    "outcome", "was", "is", "5", "mg", "studies", "study", "relational", "conditional",
    "rational", "hopeful", "hopping", "falling", "agreed", "plastered", "a",
])  # fmt: skip
TEXTS = st.lists(WORDS, max_size=30).map(" ".join)
SYLLABLES = st.sampled_from([
    "a", "e", "y", "b", "l", "t", "s", "at", "ed", "ing", "ion", "al", "li", "ness", "ful",
    "logi", "iz", "ies", "eed", "bli", "ement", "i", "ate", "ative", "z", "c", "w", "x", "ou",
    "iviti", "ousli", "ational",
])  # fmt: skip


def _theirs(reference: str, answer: str, *, stemming: bool) -> dict[str, float]:
    scores = scorer.RougeScorer(NAMES, use_stemmer=stemming).score(reference, answer)
    return {name: scores[name].fmeasure for name in NAMES}


@pytest.mark.parametrize("stemming", [False, True])
@pytest.mark.parametrize(("reference", "answer"), PAIRS)
def test_figures_are_those_of_rouge_score(reference: str, answer: str, *, stemming: bool) -> None:
    expected = _theirs(reference, answer, stemming=stemming)
    assert rouge(reference, answer, stemming=stemming) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS, st.booleans())
def test_figures_agree_on_any_text(reference: str, answer: str, stemming: bool) -> None:
    expected = _theirs(reference, answer, stemming=stemming)
    assert rouge(reference, answer, stemming=stemming) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=500, deadline=None)
@given(st.lists(SYLLABLES, min_size=1, max_size=5).map("".join))
def test_stems_are_those_of_nltk(word: str) -> None:
    assert stem(word) == nltk_porter.PorterStemmer().stem(word)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("caresses", "caress"), ("ponies", "poni"), ("ties", "tie"), ("agreed", "agre"),
        ("plastered", "plaster"), ("hopping", "hop"), ("filing", "file"), ("happy", "happi"),
        ("relational", "relat"), ("vietnamization", "vietnam"), ("electricity", "electr"),
        ("adjustment", "adjust"), ("adoption", "adopt"), ("controll", "control"), ("news", "news"),
        ("dying", "die"), ("skies", "sky"), ("sky", "sky"), ("enjoy", "enjoy"),
        ("geology", "geolog"), ("by", "by"),
    ],
)  # fmt: skip
def test_stems_of_the_published_examples(word: str, expected: str) -> None:
    assert stem(word) == expected
    assert nltk_porter.PorterStemmer().stem(word) == expected


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_the_longest_common_subsequence_is_that_of_the_table(
    first: list[str], second: list[str]
) -> None:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            longer = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else longer
    assert common_subsequence(first, second) == table[-1][-1]

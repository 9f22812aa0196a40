"""Metrics against independent implementations in numpy, and against figures worked out by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.evaluate.scoring import (
    choice_metrics,
    expected_calibration_error,
    reliability_bins,
    standard_error,
    text_metrics,
)
from forge.results.answers import ChoiceAnswer, TextAnswer
from forge.results.records import ItemRecord

PROBABILITIES = st.lists(st.floats(0.001, 1.0), min_size=3, max_size=3).map(
    lambda values: [value / (sum(values) * 1.1) for value in values]
)


def _item(number: int, gold: int | str, **values: object) -> ItemRecord:
    given: dict[str, object] = {
        "question": f"q{number}", "options": ("yes", "no", "maybe"), "label": "yes", **values,
    }  # fmt: skip
    return ItemRecord.of("t", str(number), gold=gold, **given)  # type: ignore[arg-type]


def _answer(*probabilities: float, top: int | None = 0) -> ChoiceAnswer:
    logs = tuple(math.log(value) if value else -math.inf for value in probabilities)
    return ChoiceAnswer(logs, top, "x", None)


def test_the_modes_are_scored_apart() -> None:
    items = [_item(0, 0), _item(1, 1), _item(2, 2), _item(3, 0)]
    answers = [
        _answer(0.5, 0.2, 0.1, top=0),
        _answer(0.2, 0.5, 0.1, top=None),
        _answer(0.2, 0.5, 0.1, top=1),
        _answer(0.0, 0.0, 0.0, top=None),
    ]
    metrics = choice_metrics(items, answers)
    assert metrics["constrained/accuracy"] == 0.5
    assert metrics["unconstrained/accuracy"] == 0.25
    assert metrics["constrained/missing_rate"] == 0.25
    assert metrics["unconstrained/missing_rate"] == 0.5
    assert metrics["option_mass"] == pytest.approx(0.6)
    assert metrics["majority_baseline"] == 0.5
    assert metrics["constrained/accuracy_se"] == pytest.approx(np.std([1, 1, 0, 0], ddof=1) / 2)
    only = choice_metrics(items, answers, modes=("constrained",))
    assert only["constrained/accuracy"] == 0.5
    assert {value for name, value in only.items() if name.startswith("unconstrained/")} == {None}


def test_figures_over_classes_are_those_worked_out_by_hand() -> None:
    # yes: 3 items, 2 found, chosen 3 times; no: 2 items, 1 found, chosen twice.
    gold, chosen = [0, 0, 0, 1, 1], [0, 0, 1, 0, 1]
    items = [_item(number, index) for number, index in enumerate(gold)]
    answers = [_answer(*np.eye(3)[index] * 0.8 + 0.05, top=index) for index in chosen]
    metrics = choice_metrics(items, answers)
    assert metrics["constrained/macro_f1"] == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert metrics["unconstrained/balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    constant = choice_metrics(items, [_answer(0.8, 0.1, 0.1)] * 5)
    assert constant["constrained/accuracy"] == constant["majority_baseline"] == 0.6
    assert constant["constrained/balanced_accuracy"] == 0.5


def test_figures_over_classes_need_classes() -> None:
    items = [_item(0, 0), _item(1, 0, options=("a", "b", "c"))]
    assert "constrained/macro_f1" not in choice_metrics(items, [_answer(0.8, 0.1, 0.1)] * 2)


@settings(deadline=None)
@given(st.lists(st.tuples(PROBABILITIES, st.integers(0, 2)), min_size=1, max_size=40),
       st.integers(1, 15))  # fmt: skip
def test_the_calibration_error_is_that_of_the_published_script(
    rows: list[tuple[list[float], int]], num_bins: int
) -> None:
    items = [_item(number, gold) for number, (_, gold) in enumerate(rows)]
    answers = [_answer(*values) for values, _ in rows]
    confidences = np.array([math.exp(max(answer.log_probs)) for answer in answers])
    right = np.array([
        int(np.argmax(answer.log_probs)) == gold
        for answer, (_, gold) in zip(answers, rows, strict=True)
    ])  # fmt: skip
    expected = 0.0
    edges = [index / num_bins for index in range(num_bins + 1)]
    for lower, upper in pairwise(edges):
        inside = (confidences > lower) & (confidences <= upper)
        if inside.any():
            gap = abs(right[inside].mean() - confidences[inside].mean())
            expected += inside.mean() * gap
    found = expected_calibration_error(items, answers, num_bins=num_bins)
    assert found == pytest.approx(expected, abs=1e-9)


def test_bins_are_closed_above_and_the_empty_ones_are_there() -> None:
    items = [_item(number, 0) for number in range(4)]
    answers = [
        ChoiceAnswer((math.log(0.25),), 0, "A", None),
        ChoiceAnswer((math.log(0.2500001),), 0, "A", None),
        ChoiceAnswer((0.0,), 0, "A", None),
        ChoiceAnswer((-math.inf,), None, "", None),
    ]
    bins = reliability_bins(items, answers, num_bins=4)
    assert [held.num_items for held in bins] == [1, 1, 0, 1]
    assert (bins[0].lower, bins[0].upper) == (0.0, 0.25)
    assert (bins[2].confidence, bins[2].accuracy) == (None, None)
    assert bins[3].confidence == bins[3].accuracy == 1.0
    assert sum(held.num_items for held in reliability_bins(items, answers)) == 3


def test_scaled_confidences_are_those_of_the_options_among_themselves() -> None:
    items = [_item(number, 0) for number in range(4)]
    answers = [_answer(0.06, 0.02, 0.0)] * 4
    assert expected_calibration_error(items, answers) == pytest.approx(0.94)
    assert expected_calibration_error(items, answers, scaled=True) == pytest.approx(0.25)
    metrics = choice_metrics(items, answers)
    assert metrics["constrained/ece"] == pytest.approx(0.94)
    assert metrics["constrained/ece_scaled"] == pytest.approx(0.25)


def test_a_model_that_is_right_as_often_as_it_says_has_no_calibration_error() -> None:
    items = [_item(number, 0 if number < 8 else 1) for number in range(10)]
    assert expected_calibration_error(items, [_answer(0.8, 0.1, 0.1)] * 10) == pytest.approx(0)
    assert expected_calibration_error(items, [_answer(0.0, 0.0, 0.0)] * 10) is None


def test_standard_errors_without_clusters_are_the_usual_ones() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    expected = np.std(values, ddof=1) / math.sqrt(len(values))
    assert standard_error(values) == pytest.approx(expected)
    assert standard_error(values, list("abcdef")) == pytest.approx(expected)
    assert standard_error(values, [None] * 6) == pytest.approx(expected)
    assert standard_error([1.0]) is None
    assert standard_error([1.0, 0.0], ["a", "a"]) is None


def test_clustered_standard_errors_are_those_of_a_regression_on_a_constant() -> None:
    # The sandwich (X'X)^-1 (sum of X_c' e_c e_c' X_c) (X'X)^-1 with X all ones, and C / (C - 1).
    generator = np.random.default_rng(3)
    clusters = generator.integers(0, 7, 40)
    values = generator.normal(size=40) + clusters
    residuals, ones = values - values.mean(), np.ones((40, 1))
    bread = np.linalg.inv(ones.T @ ones)
    meat = sum(
        ones[clusters == c].T @ np.outer(residuals[clusters == c], residuals[clusters == c])
        @ ones[clusters == c] for c in range(7)
    )  # fmt: skip
    expected = math.sqrt(7 / 6 * (bread @ meat @ bread)[0, 0])
    found = standard_error(values.tolist(), [f"c{c}" for c in clusters])
    assert found == pytest.approx(expected)
    assert found is not None
    assert found > 1.5 * values.std(ddof=1) / math.sqrt(40)


def test_answers_in_words_are_scored_by_text_and_decision() -> None:
    reference = "The drug lowers blood pressure in adults."
    items = [_item(n, reference, label=label) for n, label in enumerate(["yes", "yes", "no"])]
    answers = [
        TextAnswer(f"{reference}\nAnswer: yes"),
        TextAnswer("Nothing to say about it."),
        TextAnswer("The drug lowers blood pressure.\nAnswer: yes"),
    ]
    metrics = text_metrics(items, answers)
    assert metrics["decision_accuracy"] == pytest.approx(1 / 3)
    assert metrics["missing_rate"] == pytest.approx(1 / 3)
    assert metrics["majority_baseline"] == pytest.approx(2 / 3)
    # Five of seven words and five of five: F1 = 10 / 12.
    assert metrics["rouge1"] == pytest.approx((1 + 0 + 10 / 12) / 3)
    assert metrics["rougeL"] == metrics["rouge1"]
    assert metrics["rouge2"] == pytest.approx((1 + 0 + 8 / 10) / 3)
    # yes: one hit of two items, chosen twice; no: never chosen.
    assert metrics["decision_macro_f1"] == pytest.approx((2 / 4 + 0) / 2)


def test_one_answer_in_words_is_scored_too() -> None:
    metrics = text_metrics([_item(0, "a b c")], [TextAnswer("a b c\nAnswer: yes")])
    assert (metrics["decision_accuracy"], metrics["rougeL"]) == (1.0, 1.0)
    assert metrics["decision_macro_f1"] is None


def test_answers_in_words_without_options_have_no_decision() -> None:
    metrics = text_metrics([_item(0, "a b c", options=())], [TextAnswer("a b c")])
    assert metrics == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0, "rougeL_se": None}


def test_items_and_answers_must_match() -> None:
    with pytest.raises(ValueError, match="1 items and 0 answers"):
        choice_metrics([_item(0, 0)], [])
    with pytest.raises(ValueError, match="0 items"):
        text_metrics([], [])
    with pytest.raises(ValueError, match="answered in words"):
        choice_metrics([_item(0, "text")], [_answer(0.5, 0.2, 0.1)])

"""Score answers: accuracy in both modes, calibration, what is missing, and ROUGE.

    constrained/accuracy            share of items whose likeliest option is the right one
    unconstrained/accuracy          the same of the likeliest token; one that is no option is wrong
    <mode>/accuracy_se              its standard error, clustered where items share a passage
    <mode>/macro_f1                 mean F1 over the options, where all items have the same ones
    <mode>/balanced_accuracy        mean recall over the options, there
    <mode>/missing_rate             share of items where the mode chooses no option
    constrained/ece                 expected calibration error; see ``forge.evaluate.calibration``
    constrained/ece_scaled          the same of probabilities scaled to the options
    option_mass                     mean probability of all options together
    majority_baseline               accuracy of always choosing the commonest right option

    rouge1, rouge2, rougeL          mean F1 against the reference answer
    rougeL_se                       standard error of the mean, clustered
    decision_accuracy               share of answers with the right decision; a missing one is wrong
    decision_accuracy_se, decision_macro_f1, decision_balanced_accuracy, majority_baseline
    missing_rate                    share of answers from which no decision can be read

A metric is ``None`` where it has no value, and absent where it means nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from forge.evaluate.aggregation import MeanAndDeviation, SuiteSummary, TaskSummary, aggregate
from forge.evaluate.calibration import (
    ReliabilityBin,
    expected_calibration_error,
    reliability_bins,
)
from forge.evaluate.decisions import read_decision, without_decision
from forge.evaluate.rouge import rouge
from forge.results.answers import MODES, ChoiceAnswer, Mode, TextAnswer
from forge.results.records import ItemRecord

__all__ = [
    "SCORING_VERSION",
    "MeanAndDeviation",
    "ReliabilityBin",
    "SuiteSummary",
    "TaskSummary",
    "aggregate",
    "choice_metrics",
    "expected_calibration_error",
    "reliability_bins",
    "standard_error",
    "text_metrics",
]

SCORING_VERSION: Final = 1
"""Version of what this file and those that it calls make of answers."""
_ROUGE: Final = ("rouge1", "rouge2", "rougeL")


def choice_metrics(
    items: Sequence[ItemRecord],
    answers: Sequence[ChoiceAnswer],
    *,
    modes: Sequence[Mode] = MODES,
) -> dict[str, float | None]:
    """Score multiple-choice answers.

    Args:
        items: The questions, at least one; ``gold`` is the index of the right option.
        answers: An answer to each, in the same order.
        modes: The modes that the answers carry. An ensemble's sum of letter probabilities says
            nothing of other tokens, so its metrics of the unconstrained mode are ``None``.

    Returns:
        Metrics by name; see the module. Shares are in [0, 1].

    Raises:
        ValueError: There are no items, or not one answer for each.
    """
    _check(items, answers)
    gold = [_index(item) for item in items]
    metrics: dict[str, float | None] = {}
    for mode in MODES:
        values = _mode_metrics(items, gold, [answer.chosen(mode) for answer in answers])
        metrics |= {
            f"{mode}/{name}": value if mode in modes else None for name, value in values.items()
        }
    return metrics | {
        "constrained/ece": expected_calibration_error(items, answers),
        "constrained/ece_scaled": expected_calibration_error(items, answers, scaled=True),
        "option_mass": _mean([answer.option_mass for answer in answers]),
        "majority_baseline": max(Counter(gold).values()) / len(items),
    }


def text_metrics(
    items: Sequence[ItemRecord], answers: Sequence[TextAnswer]
) -> dict[str, float | None]:
    """Score answers in words.

    Args:
        items: The questions, at least one; ``gold`` is the reference answer. Where an item has
            options, the answer is to decide for one of them, and ``label`` is the right one.
        answers: An answer to each, in the same order.

    Returns:
        Metrics by name; see the module. Shares are in [0, 1]. Those of decisions are there only
        where all items have the same options.

    Raises:
        ValueError: There are no items, or not one answer for each.
    """
    _check(items, answers)
    scores = [
        rouge(str(item.gold), without_decision(answer.text, item.options))
        for item, answer in zip(items, answers, strict=True)
    ]
    clusters = [item.cluster for item in items]
    metrics: dict[str, float | None] = {
        name: _mean([score[name] for score in scores]) for name in _ROUGE
    }
    metrics["rougeL_se"] = standard_error([score["rougeL"] for score in scores], clusters)
    if not items[0].options or len({item.options for item in items}) != 1:
        return metrics
    options = items[0].options
    gold = [options.index(item.label) for item in items]
    chosen = [read_decision(answer.text, options) for answer in answers]
    values = _mode_metrics(items, gold, chosen)
    return metrics | {
        "decision_accuracy": values["accuracy"],
        "decision_accuracy_se": values["accuracy_se"],
        "decision_macro_f1": values.get("macro_f1"),
        "decision_balanced_accuracy": values.get("balanced_accuracy"),
        "missing_rate": values["missing_rate"],
        "majority_baseline": max(Counter(gold).values()) / len(items),
    }


def standard_error(
    values: Sequence[float], clusters: Sequence[str | None] | None = None
) -> float | None:
    """Return the standard error of a mean, clustered where items belong together.

    With residuals ``e = x − mean(x)`` summed within each of ``C`` clusters,

        SE² = C / (C − 1) · Σ_c (Σ_{i in c} e_i)² / n².

    Without clusters each item is one of its own, and this is the usual ``s / √n``.

    Args:
        values: One number an item.
        clusters: Name of each item's cluster; ``None`` for an item that shares nothing.

    Returns:
        The standard error; ``None`` with fewer than two clusters.

    Reference:
        Cameron, Miller, "A practitioner's guide to cluster-robust inference", Journal of Human
        Resources 50 (2015), section II; Miller, "Adding error bars to evals", arXiv:2411.00640.
    """
    names = clusters if clusters is not None else [None] * len(values)
    keys = [(1, name) if name is not None else (0, str(i)) for i, name in enumerate(names)]
    num_clusters = len(set(keys))
    if num_clusters < 2:
        return None
    mean = _mean(values)
    sums: dict[tuple[int, str], float] = dict.fromkeys(keys, 0.0)
    for key, value in zip(keys, values, strict=True):
        sums[key] += value - mean
    spread = math.fsum(total * total for total in sums.values())
    return math.sqrt(num_clusters / (num_clusters - 1) * spread) / len(values)


def _mode_metrics(
    items: Sequence[ItemRecord], gold: Sequence[int], chosen: Sequence[int | None]
) -> dict[str, float | None]:
    right = [float(a == b) for a, b in zip(gold, chosen, strict=True)]
    metrics: dict[str, float | None] = {
        "accuracy": _mean(right),
        "accuracy_se": standard_error(right, [item.cluster for item in items]),
        "missing_rate": _mean([float(choice is None) for choice in chosen]),
    }
    # Over the letters of questions that have nothing else in common these would mean nothing.
    if len({item.options for item in items}) == 1 and len(items) > 1:
        metrics["macro_f1"] = _over_classes(gold, chosen, _f1)
        metrics["balanced_accuracy"] = _over_classes(gold, chosen, _recall)
    return metrics


def _over_classes(
    gold: Sequence[int],
    chosen: Sequence[int | None],
    score: Callable[[int, int, int], float],
) -> float:
    """Return the mean over the classes that some item has of a score of (hits, gold, chosen)."""
    hits = Counter(a for a, b in zip(gold, chosen, strict=True) if a == b)
    of_gold, of_chosen = Counter(gold), Counter(chosen)
    return _mean([score(hits[key], of_gold[key], of_chosen[key]) for key in sorted(of_gold)])


def _f1(hits: int, of_gold: int, of_chosen: int) -> float:
    return 2 * hits / (of_gold + of_chosen)


def _recall(hits: int, of_gold: int, of_chosen: int) -> float:
    return hits / of_gold


def _index(item: ItemRecord) -> int:
    if not isinstance(item.gold, int):
        raise ValueError(f"item '{item.item_id}' is answered in words")
    return item.gold


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _check(items: Sequence[object], answers: Sequence[object]) -> None:
    if not items or len(items) != len(answers):
        raise ValueError(f"{len(items)} items and {len(answers)} answers cannot be scored")

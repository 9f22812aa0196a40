"""Evaluations of multiple-choice questions as arrays, the answers themselves read and let go.

A medical suite with three seeds and a dozen models is some 300,000 answers; what statistics need
of each is a few numbers. The answers that a report prints are read again, by their keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forge.evaluate.calibration import (
    ReliabilityBin,
    expected_calibration_error,
    reliability_bins,
)
from forge.results.answers import Answer, ChoiceAnswer, Mode
from forge.results.records import EvaluationRecord, ItemRecord


@dataclass(frozen=True, slots=True)
class Answered:
    """An evaluation, scored in one mode.

    Attributes:
        items: Digests of the questions, in the order of the task.
        keys: Keys of the answers.
        right_N: Whether the right option was chosen.
        chosen_N: Index of the chosen option; -1 where it is missing.
        gold_probability_N: Probability of the right option among the options.
        option_mass_N: Probability of all options together.
        bins: Constrained answers by confidence.
        calibration_error: Expected calibration error of constrained answers, or ``None``.
    """

    items: tuple[str, ...]
    keys: tuple[str, ...]
    right_N: NDArray[np.bool_]
    chosen_N: NDArray[np.int64]
    gold_probability_N: NDArray[np.float64]
    option_mass_N: NDArray[np.float64]
    bins: tuple[ReliabilityBin, ...]
    calibration_error: float | None

    @property
    def accuracy(self) -> float:
        """Share of right answers; a missing one is wrong."""
        return float(self.right_N.mean())

    @property
    def missing(self) -> float:
        """Share of answers from which no option can be read."""
        return float((self.chosen_N < 0).mean())


def answered(
    evaluation: EvaluationRecord,
    items: Mapping[str, ItemRecord],
    answers: Mapping[str, Answer],
    *,
    mode: Mode,
) -> Answered:
    """Score an evaluation.

    Args:
        evaluation: Of multiple-choice questions, one at least.
        items: Its questions by digest.
        answers: Its answers by key.
        mode: Scoring mode.

    Returns:
        Its answers as arrays.
    """
    rows: list[tuple[bool, int, float, float]] = []
    asked: list[ItemRecord] = []
    given: list[ChoiceAnswer] = []
    for digest, key in evaluation.items:
        item, answer = items[digest], answers[key]
        assert isinstance(answer, ChoiceAnswer)
        assert isinstance(item.gold, int)
        asked.append(item)
        given.append(answer)
        chosen = answer.chosen(mode)
        rows.append(
            (
                chosen == item.gold,
                -1 if chosen is None else chosen,
                answer.probabilities[item.gold],
                answer.option_mass,
            )
        )
    right, chosen_column, gold_share, mass = zip(*rows, strict=True)
    return Answered(
        items=tuple(digest for digest, _ in evaluation.items),
        keys=tuple(key for _, key in evaluation.items),
        right_N=np.array(right, np.bool_),
        chosen_N=np.array(chosen_column, np.int64),
        gold_probability_N=np.array(gold_share, np.float64),
        option_mass_N=np.array(mass, np.float64),
        bins=reliability_bins(asked, given),
        calibration_error=expected_calibration_error(asked, given),
    )

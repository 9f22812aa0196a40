"""Reliability of a model over several evaluations, from the bins of each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from forge.evaluate.calibration import ReliabilityBin as EvaluationBin
from forge.report.comparison.scores import Reliability, ReliabilityBin


def reliability(model: str, bins: Sequence[Sequence[EvaluationBin]]) -> Reliability | None:
    """Pool the bins of evaluations; see ``forge.evaluate.calibration`` for what they hold.

    Args:
        model: Label.
        bins: Bins of each evaluation, with the same edges.

    Returns:
        The pooled bins that are not empty, and the expected calibration error over all answers;
        ``None`` where no answer chose an option.
    """
    pooled = []
    for same in zip(*bins, strict=True):
        held = [
            (each.num_items, each.confidence, each.accuracy)
            for each in same
            if each.confidence is not None and each.accuracy is not None
        ]
        count = sum(number for number, _, _ in held)
        if count:
            confidence = math.fsum(number * mean for number, mean, _ in held) / count
            accuracy = math.fsum(number * share for number, _, share in held) / count
            pooled.append(ReliabilityBin(same[0].lower, same[0].upper, count, confidence, accuracy))
    if not pooled:
        return None
    total = sum(each.num_answers for each in pooled)
    error = math.fsum(
        each.num_answers / total * abs(each.accuracy - each.confidence) for each in pooled
    )
    return Reliability(model, error, tuple(pooled))

"""Whether a model is right as often as it says: reliability bins and the calibration error.

The confidence of an answer is the probability that the model gives to the letter that it chooses
among the options. As in the published scripts it is one among all tokens, so a model that doubts
the form of an answer is less sure of it. Where options are no letters but words that others could
stand for, that says more of the words than of the answer: *scaled* confidences are the
probabilities of the options among themselves. Bins are of equal width and closed above,

    bin k of M = ((k − 1) / M, k / M],

and a confidence of 0 belongs to the first. With n items, n_k of them in bin k,

    ECE = Σ_k n_k / n · |accuracy of bin k − mean confidence of bin k|.

An answer that names no option has no confidence: it is left out of the bins, and the missing rate
says how many there are.

Reference: Guo et al., "On calibration of modern neural networks", ICML 2017, equation 3; 10 bins
here, where BioMistral's scripts have 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forge.results.answers import ChoiceAnswer
from forge.results.records import ItemRecord

NUM_BINS: Final = 10


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Answers of about the same confidence.

    Attributes:
        lower: Confidences are above this, or 0 in the first bin.
        upper: And at most this.
        num_items: How many answers.
        confidence: Their mean confidence; ``None`` if there are none.
        accuracy: Share of them that is right; ``None`` if there are none.
    """

    lower: float
    upper: float
    num_items: int
    confidence: float | None
    accuracy: float | None


def reliability_bins(
    items: Sequence[ItemRecord],
    answers: Sequence[ChoiceAnswer],
    *,
    num_bins: int = NUM_BINS,
    scaled: bool = False,
) -> tuple[ReliabilityBin, ...]:
    """Sort constrained answers into bins of equal width by their confidence.

    Args:
        items: The questions.
        answers: An answer to each, in the same order.
        num_bins: How many bins, at least 1.
        scaled: Whether confidences are scaled to the options.

    Returns:
        All bins from 0 to 1, the empty ones too.
    """
    held: list[list[tuple[float, bool]]] = [[] for _ in range(num_bins)]
    for item, answer in zip(items, answers, strict=True):
        chosen = answer.chosen("constrained")
        if chosen is not None:
            raw = min(1.0, math.exp(answer.log_probs[chosen]))
            confidence = answer.probabilities[chosen] if scaled else raw
            held[_bin(confidence, num_bins)].append((confidence, chosen == item.gold))
    return tuple(
        ReliabilityBin(
            index / num_bins,
            (index + 1) / num_bins,
            len(pairs),
            math.fsum(confidence for confidence, _ in pairs) / len(pairs) if pairs else None,
            sum(right for _, right in pairs) / len(pairs) if pairs else None,
        )
        for index, pairs in enumerate(held)
    )


def expected_calibration_error(
    items: Sequence[ItemRecord],
    answers: Sequence[ChoiceAnswer],
    *,
    num_bins: int = NUM_BINS,
    scaled: bool = False,
) -> float | None:
    """Return the expected calibration error of constrained answers.

    Args:
        items: The questions.
        answers: An answer to each, in the same order.
        num_bins: How many bins, at least 1.
        scaled: Whether confidences are scaled to the options.

    Returns:
        The error, in [0, 1]; ``None`` if no answer names an option.
    """
    bins = reliability_bins(items, answers, num_bins=num_bins, scaled=scaled)
    total = sum(held.num_items for held in bins)
    if total == 0:
        return None
    return math.fsum(
        held.num_items / total * abs(held.accuracy - held.confidence)
        for held in bins
        if held.accuracy is not None and held.confidence is not None
    )


def _bin(confidence: float, num_bins: int) -> int:
    index = max(0, math.ceil(confidence * num_bins) - 1)
    # A product may round past the edge: compare with the edges themselves.
    while index > 0 and confidence <= index / num_bins:
        index -= 1
    while index < num_bins - 1 and confidence > (index + 1) / num_bins:
        index += 1
    return index

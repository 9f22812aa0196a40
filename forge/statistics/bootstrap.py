"""An interval of the ratio of two medians, from measurements taken in turns.

Two programs were timed in rounds, A B A B …, several samples a round. Samples of one round share
what the machine did meanwhile, so they are no independent measurements; resampling them alone
gives intervals that are far too narrow. Here rounds are drawn first, with replacement and the same
ones for A and B, so that a slow minute counts against both; then samples within each drawn round.

Percentile intervals of few rounds are too narrow (with 5 rounds a nominal 95 % covers some 85 %),
so their percentiles are those that make the interval of a mean of that many normal values right:
level Φ(−√(R / (R − 1)) · t) for R rounds. With 3 rounds that is the whole range of the resampled
ratios; take 5 or more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from forge.statistics.normal import normal_distribution, t_quantile

_MAX_DRAWS: Final = 1 << 22
"""Samples that are drawn at once: 32 MiB."""


@dataclass(frozen=True, slots=True)
class RatioInterval:
    """A ratio of medians.

    Attributes:
        ratio: Median of all numerator samples over median of all denominator samples.
        low: Lower end of its interval.
        high: Upper end.
    """

    ratio: float
    low: float
    high: float


def ratio_interval(
    numerator_rounds: Sequence[Sequence[float]],
    denominator_rounds: Sequence[Sequence[float]],
    *,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> RatioInterval:
    """Return the ratio of two medians with a two-level bootstrap interval.

    Args:
        numerator_rounds: Samples of each round, positive; rounds may differ in size.
        denominator_rounds: Those of the other program, the same rounds in the same order.
        seed: Of the resampling. The same seed and samples give the same interval anywhere.
        resamples: Resampled ratios.
        confidence: Of the interval, in (0, 1).

    Returns:
        The ratio and its interval, which always holds it. A single round has nothing to say of
        how rounds differ: its interval is that of its samples alone, and too narrow.

    Raises:
        ValueError: There are no rounds, their numbers differ, a round is empty, or a sample is
            not positive and finite.

    Reference:
        Davison and Hinkley, *Bootstrap Methods and their Application*, section 3.8 (hierarchical
        data); Hesterberg, "What teachers should know about the bootstrap", The American
        Statistician 69 (2015), section 4.5 (expanded percentile interval).
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence {confidence} or number of resamples {resamples} is no such")
    if not numerator_rounds or len(numerator_rounds) != len(denominator_rounds):
        raise ValueError(
            f"rounds must be paired, not {len(numerator_rounds)} with {len(denominator_rounds)}"
        )
    numerator_RS, numerator_R = _padded(numerator_rounds)
    denominator_RS, denominator_R = _padded(denominator_rounds)
    rounds = len(numerator_R)
    # A counter-based generator: the draws are a function of the seed alone, by specification.
    generator = np.random.Generator(np.random.Philox(key=seed))
    step = max(1, _MAX_DRAWS // max(numerator_RS.size, denominator_RS.size))
    ratios = []
    for start in range(0, resamples, step):
        drawn_BR = generator.integers(rounds, size=(min(step, resamples - start), rounds))
        above_B = _medians(numerator_RS, numerator_R, drawn_BR, generator)
        ratios.append(above_B / _medians(denominator_RS, denominator_R, drawn_BR, generator))
    tail = _tail(rounds, confidence)
    low, high = np.quantile(np.concatenate(ratios), (tail, 1 - tail)).tolist()
    ratio = float(np.nanmedian(numerator_RS) / np.nanmedian(denominator_RS))
    return RatioInterval(ratio, min(low, ratio), max(high, ratio))


def _padded(rounds: Sequence[Sequence[float]]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    sizes_R = np.array([len(samples) for samples in rounds], np.int64)
    if not sizes_R.all():
        raise ValueError(f"round {int(np.argmin(sizes_R)) + 1} has no samples")
    padded_RS = np.full((len(rounds), int(sizes_R.max())), np.nan)
    for row, samples in zip(padded_RS, rounds, strict=True):
        row[: len(samples)] = samples
        if not (np.isfinite(samples).all() and (np.asarray(samples) > 0).all()):
            raise ValueError("samples must be positive and finite")
    return padded_RS, sizes_R


def _medians(
    samples_RS: NDArray[np.float64],
    sizes_R: NDArray[np.int64],
    drawn_BR: NDArray[np.int64],
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Return the median of each resample: of all samples drawn from its drawn rounds."""
    resamples, rounds = drawn_BR.shape
    width = samples_RS.shape[1]
    sizes_BR1 = sizes_R[drawn_BR][..., None]
    places_BRS = (generator.random((resamples, rounds, width)) * sizes_BR1).astype(np.int64)
    values_BRS = samples_RS[drawn_BR[..., None], places_BRS]
    values_BRS[np.arange(width) >= sizes_BR1] = np.inf
    values_BN = np.sort(values_BRS.reshape(resamples, -1), axis=1)
    counts_B = sizes_BR1.sum((1, 2))
    rows_B = np.arange(resamples)
    middles_2B = np.stack([values_BN[rows_B, at] for at in ((counts_B - 1) // 2, counts_B // 2)])
    return np.asarray(middles_2B.mean(0), np.float64)


def _tail(rounds: int, confidence: float) -> float:
    if rounds < 2:
        return (1 - confidence) / 2
    quantile = t_quantile((1 + confidence) / 2, rounds - 1)
    return normal_distribution(-math.sqrt(rounds / (rounds - 1)) * quantile)

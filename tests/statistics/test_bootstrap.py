"""Ratios of medians: known answers, coverage with noise that rounds share, determinism."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.statistics.bootstrap import ratio_interval

ROUNDS = st.lists(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=5), min_size=1, max_size=4)


@settings(max_examples=40)
@given(ROUNDS, ROUNDS, st.floats(0.1, 10))
def test_it_holds_the_ratio_of_the_medians_and_scales(
    one: list[list[float]], other: list[list[float]], factor: float
) -> None:
    rounds = min(len(one), len(other))
    one, other = one[:rounds], other[:rounds]
    found = ratio_interval(one, other, resamples=100)
    median = np.median([value for part in one for value in part])
    assert found.ratio == pytest.approx(median / np.median([v for part in other for v in part]))
    assert found.low <= found.ratio <= found.high
    scaled = ratio_interval([[value * factor for value in part] for part in one], other,
                            resamples=100)  # fmt: skip
    assert (scaled.low, scaled.ratio, scaled.high) == pytest.approx(
        (found.low * factor, found.ratio * factor, found.high * factor)
    )


def test_a_slowdown_of_whole_rounds_cancels() -> None:
    # The machine is up to three times slower in some rounds; the ratio is 2 in each.
    slow = [1.0, 3.0, 1.5, 1.0, 2.0]
    found = ratio_interval([[2 * s] * 4 for s in slow], [[s] * 4 for s in slow])
    assert (found.low, found.ratio, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_the_seed_decides() -> None:
    generator = np.random.default_rng(0)
    one = generator.uniform(1, 2, (5, 7)).tolist()
    other = generator.uniform(1, 2, (5, 7)).tolist()
    assert ratio_interval(one, other) == ratio_interval(one, other, seed=0)
    assert ratio_interval(one, other) != ratio_interval(one, other, seed=1)


def test_many_samples_are_drawn_in_parts() -> None:
    generator = np.random.default_rng(0)
    one = generator.uniform(1, 2, (5, 4000)).tolist()
    found = ratio_interval(one, one, resamples=300)
    assert found.low < 1 < found.high
    assert found.high - found.low < 0.1


@pytest.mark.parametrize("rounds", [3, 5, 10])
def test_it_covers_the_truth_where_rounds_share_their_noise(rounds: int) -> None:
    generator = np.random.default_rng(rounds)
    hits = 0
    for _ in range(200):
        # Each program meets its own disturbance in each round, beside that of single samples.
        shared = generator.normal(0, 0.2, (2, rounds, 1))
        one, other = np.exp(shared + generator.normal(0, 0.05, (2, rounds, 6)))
        found = ratio_interval((2 * one).tolist(), other.tolist(), resamples=400)
        hits += found.low <= 2 <= found.high
    # Three rounds cannot say more than their range, and the range of three misses more often.
    assert hits / 200 > (0.78 if rounds == 3 else 0.92)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ([], [], "rounds must be paired, not 0 with 0"),
        ([[1.0]], [[1.0], [1.0]], "rounds must be paired, not 1 with 2"),
        ([[1.0], []], [[1.0], [1.0]], "round 2 has no samples"),
        ([[0.0]], [[1.0]], "positive and finite"),
        ([[1.0]], [[float("inf")]], "positive and finite"),
    ],
)
def test_samples_that_have_no_ratio_are_refused(
    one: list[list[float]], other: list[list[float]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ratio_interval(one, other)

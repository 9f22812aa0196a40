"""Paired differences: published figures, independent computations, coverage by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, stats

from forge.statistics.mcnemar import mcnemar_exact
from forge.statistics.paired import paired_difference
from forge.statistics.tango import tango_interval

COUNTS = st.tuples(*[st.integers(0, 40)] * 4).filter(lambda counts: sum(counts) > 0)


def answers(both: int, gained: int, lost: int, neither: int) -> list[NDArray[np.float64]]:
    cells = [(1.0, 1.0)] * both + [(1.0, 0.0)] * gained + [(0.0, 1.0)] * lost
    table = np.array(cells + [(0.0, 0.0)] * neither)
    return [table[:, 0], table[:, 1]]


def test_agrestis_approval_ratings() -> None:
    # Agresti, Categorical Data Analysis: 794, 150, 86 and 570 of 1,600; the difference of 0.04 has
    # a standard error of 0.0095 and a 95 % interval of (0.02, 0.06).
    found = paired_difference(*answers(794, 150, 86, 570))
    assert found.difference == pytest.approx(0.04)
    assert found.standard_error == pytest.approx(0.0095, abs=6e-5)
    assert (found.low, found.high) == pytest.approx((0.02, 0.06), abs=1.5e-3)
    assert (found.gained, found.lost, found.num_items) == (150, 86, 1600)
    assert found.p_value == mcnemar_exact(150, 86)


def score_interval(gained: int, lost: int, num_items: int) -> tuple[float, float]:
    """Tango's interval with the nuisance parameter found by maximizing the likelihood itself."""

    def statistic(delta: float) -> float:
        def deviance(loss: float) -> float:
            cells = (loss + delta, loss, 1 - 2 * loss - delta)
            counts = (gained, lost, num_items - gained - lost)
            return -sum(
                count * math.log(max(cell, 1e-300))
                for count, cell in zip(counts, cells, strict=True)
            )

        bounds = (max(0.0, -delta), (1 - delta) / 2)
        loss = optimize.minimize_scalar(
            deviance, bounds=bounds, method="bounded", options={"xatol": 1e-13}
        ).x
        return (gained - lost - num_items * delta) / math.sqrt(
            num_items * (2 * loss + delta - delta**2)
        )

    z, estimate = stats.norm.ppf(0.975), (gained - lost) / num_items
    return (
        optimize.brentq(lambda delta: statistic(delta) - z, -1 + 1e-9, estimate),
        optimize.brentq(lambda delta: statistic(delta) + z, estimate, 1 - 1e-9),
    )


@pytest.mark.parametrize(
    ("gained", "lost", "num_items"), [(12, 2, 50), (3, 7, 40), (1, 1, 25), (150, 86, 1600)]
)
def test_the_interval_is_that_of_the_score_test(gained: int, lost: int, num_items: int) -> None:
    found = tango_interval(gained, lost, num_items, z=float(stats.norm.ppf(0.975)))
    assert found == pytest.approx(score_interval(gained, lost, num_items), abs=1e-6)


def test_without_a_flip_the_interval_still_has_a_width() -> None:
    z2 = stats.norm.ppf(0.975) ** 2
    found = paired_difference(*answers(30, 0, 0, 20))
    assert (found.difference, found.p_value, found.standard_error) == (0.0, 1.0, 0.0)
    assert found.high == pytest.approx(z2 / (50 + z2))
    assert found.low == pytest.approx(-found.high)
    clustered = paired_difference(
        *answers(30, 0, 0, 20), clusters=[str(item // 2) for item in range(50)]
    )
    # Twenty-five passages know less than fifty.
    assert clustered.high > found.high


@given(COUNTS)
def test_it_changes_sign_when_the_models_change_places(counts: tuple[int, int, int, int]) -> None:
    variant, baseline = answers(*counts)
    one, other = paired_difference(variant, baseline), paired_difference(baseline, variant)
    assert (one.difference, one.low, one.high) == pytest.approx(
        (-other.difference, -other.high, -other.low), abs=1e-9
    )
    assert (one.gained, one.lost, one.p_value) == (other.lost, other.gained, other.p_value)
    assert -1 <= one.low <= one.difference <= one.high <= 1
    assert one.low < one.high


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.floats(0, 1), st.floats(0, 1)), min_size=2))
def test_the_clustered_error_is_the_sandwich_of_a_regression(
    items: list[tuple[str, float, float]],
) -> None:
    names = [name for name, _, _ in items]
    variant, baseline = (np.array([item[at] for item in items]) for at in (1, 2))
    found = paired_difference(variant, baseline, clusters=names)
    groups = sorted(set(names))
    assert found.num_clusters == len(groups)
    assert -1 <= found.low <= found.difference <= found.high <= 1
    assert found.low < found.high
    if len(groups) == 1:
        assert math.isnan(found.standard_error)
        assert (found.low, found.high) == (-1.0, 1.0)
        return
    # The regression on a constant: bread (XᵀX)⁻¹ and meat Σ Xᵍᵀ uᵍ uᵍᵀ Xᵍ with X a column of ones.
    X = np.ones((len(items), 1))
    residuals = (variant - baseline) - np.mean(variant - baseline)
    bread = np.linalg.inv(X.T @ X)
    meat = np.zeros((1, 1))
    for group in groups:
        rows = [at for at, name in enumerate(names) if name == group]
        meat += X[rows].T @ np.outer(residuals[rows], residuals[rows]) @ X[rows]
    sandwich = (bread @ meat @ bread)[0, 0] * len(groups) / (len(groups) - 1)
    assert found.standard_error == pytest.approx(math.sqrt(sandwich), abs=1e-9)


def test_single_members_are_independent_items() -> None:
    variant, baseline = answers(10, 4, 2, 5)
    named = paired_difference(variant, baseline, clusters=[str(at) for at in range(21)])
    assert named == paired_difference(variant, baseline)
    assert named.standard_error == pytest.approx(float(stats.sem(variant - baseline)))


def test_copies_of_an_item_add_nothing() -> None:
    variant, baseline = answers(30, 12, 4, 14)
    alone = paired_difference(variant, baseline)
    copied = paired_difference(
        np.repeat(variant, 5), np.repeat(baseline, 5), clusters=[str(at // 5) for at in range(300)]
    )
    assert copied.standard_error == pytest.approx(alone.standard_error)
    assert copied.p_value == alone.p_value
    assert copied.gained == 5 * alone.gained
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.05)


def test_a_mean_over_seeds_is_right_by_majority() -> None:
    variant = np.array([1.0, 2 / 3, 0.5, 1 / 3, 0.0])
    baseline = np.array([0.0, 1 / 3, 1.0, 2 / 3, 0.5])
    found = paired_difference(variant, baseline)
    # A half is no majority: the third item is lost, the fifth was wrong before and after.
    assert (found.gained, found.lost) == (2, 2)
    assert found.difference == pytest.approx(0.0)


def coverage(shares: tuple[float, float], num_items: int, *, per_cluster: int = 1) -> float:
    """Share of simulated comparisons whose interval holds the true difference."""
    generator = np.random.default_rng(num_items)
    names = [str(item // per_cluster) for item in range(num_items * per_cluster)]
    gain, loss = shares
    hits = 0
    for _ in range(1500):
        flips = generator.choice([1, -1, 0], num_items, p=[gain, loss, 1 - gain - loss])
        # Items of a passage flip together, each with a chance of its own to stay.
        flips = np.repeat(flips, per_cluster)
        if per_cluster > 1:
            flips = flips * (generator.random(len(flips)) < 0.8)
        truth = (gain - loss) * (0.8 if per_cluster > 1 else 1)
        found = paired_difference(
            (flips > 0).astype(np.float64), (flips < 0).astype(np.float64), clusters=names
        )
        hits += found.low <= truth <= found.high
    return hits / 1500


@pytest.mark.parametrize("shares", [(0.02, 0.02), (0.1, 0.05), (0.3, 0.1)])
@pytest.mark.parametrize("num_items", [12, 50])
def test_the_score_interval_covers_what_it_claims(
    shares: tuple[float, float], num_items: int
) -> None:
    assert coverage(shares, num_items) > 0.93


@pytest.mark.parametrize("shares", [(0.02, 0.02), (0.1, 0.05), (0.3, 0.1)])
def test_the_clustered_interval_covers_what_it_claims(shares: tuple[float, float]) -> None:
    assert coverage(shares, 20, per_cluster=4) > 0.93


@pytest.mark.parametrize(
    ("variant", "baseline", "clusters", "message"),
    [
        ([], [], None, "a score for each item"),
        ([1.0], [1.0, 0.0], None, "a score for each item"),
        ([1.5], [1.0], None, r"a score lies in \[0, 1\]"),
        ([float("nan")], [1.0], None, r"a score lies in \[0, 1\]"),
        ([1.0, 0.0], [1.0, 0.0], ["a"], "1 clusters are named for 2 items"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(
    variant: list[float], baseline: list[float], clusters: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference(np.array(variant), np.array(baseline), clusters=clusters)


@pytest.mark.parametrize("flip", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("num_items", [12, 50])
def test_the_interval_of_means_over_seeds_covers_what_it_claims(
    flip: float, num_items: int
) -> None:
    generator = np.random.default_rng(num_items)
    hits = 0
    for _ in range(1500):
        # An item is as hard for all three seeds; the variant loses some of what is right.
        chance = generator.beta(2, 1, num_items)
        right = generator.random((2, 3, num_items)) < chance
        lost = generator.random((3, num_items)) < flip
        variant, baseline = (right[0] & ~lost).mean(0), right[1].mean(0)
        found = paired_difference(variant, baseline)
        hits += found.low <= -flip * 2 / 3 <= found.high
    assert hits / 1500 > 0.93

"""Detectable differences: solved backwards, and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from forge.statistics.detectable import detectable_difference, detectable_excess


@given(st.integers(30, 100_000), st.floats(0.02, 1), st.floats(0.5, 0.99), st.floats(0.001, 0.2))
def test_the_sample_size_formula_gives_the_items_back(
    num_items: int, share: float, power: float, alpha: float
) -> None:
    found = detectable_difference(num_items, discordant_share=share, power=power, alpha=alpha)
    share = max(share, found)
    z_alpha, z_power = stats.norm.ppf(1 - alpha / 2), stats.norm.ppf(power)
    needed = (z_alpha * share**0.5 + z_power * max(0.0, share - found**2) ** 0.5) ** 2 / found**2
    assert needed == pytest.approx(num_items, rel=1e-6)


def test_connors_formula_by_hand() -> None:
    # 800 items, a fifth of which flip: (1.95996 · 0.44721 + 0.84162 · √(0.2 − δ²))² = 800 δ².
    assert detectable_difference(800) == pytest.approx(0.04424, abs=2e-5)


def test_the_exact_test_finds_it_about_as_often_as_promised() -> None:
    found = detectable_difference(400, discordant_share=0.2, power=0.8)
    generator = np.random.default_rng(1)
    flips = generator.binomial(400, 0.2, 4000)
    gained = generator.binomial(flips, 0.5 + found / 0.4)
    rejected = [
        stats.binomtest(int(a), int(n)).pvalue <= 0.05 for a, n in zip(gained, flips, strict=True)
    ]
    # The exact test is somewhat conservative; that is documented.
    assert 0.73 < np.mean(rejected) < 0.82


def test_few_items_detect_nothing() -> None:
    assert detectable_difference(3) == math.inf
    assert detectable_difference(10, discordant_share=0.05) > 0.4
    assert detectable_excess(2, baseline=0.9) == math.inf


@given(st.integers(50, 10_000), st.floats(0.1, 0.6))
def test_a_single_accuracy_against_a_known_value(num_items: int, baseline: float) -> None:
    excess = detectable_excess(num_items, baseline=baseline)
    reached = baseline + excess
    needed = (
        1.959963984540054 * (baseline * (1 - baseline)) ** 0.5
        + 0.8416212335729143 * (reached * (1 - reached)) ** 0.5
    ) ** 2 / excess**2
    assert needed == pytest.approx(num_items, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_items": 0}, "at least one item"),
        ({"num_items": 10, "power": 1.0}, "must lie in"),
        ({"num_items": 10, "alpha": 0.0}, "must lie in"),
        ({"num_items": 10, "discordant_share": 0.0}, "share of flips"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detectable_difference(**arguments)  # type: ignore[arg-type]

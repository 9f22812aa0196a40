"""Each verdict, at its borders."""

import pytest

from forge.statistics.inferiority import non_inferiority
from forge.statistics.paired import PairedDifference


def interval(low: float, high: float) -> PairedDifference:
    return PairedDifference((low + high) / 2, low, high, 0.01, 100, 100, 1, 1, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.001, 0.05, "superior"),
        (0.0, 0.05, "non-inferior"),
        (-0.0099, 0.05, "non-inferior"),
        (-0.009, -0.001, "non-inferior"),
        (-0.01, 0.05, "inconclusive"),
        (-0.02, -0.005, "inconclusive"),
        (-0.05, -0.01, "inconclusive"),
        (-0.05, -0.011, "inferior"),
    ],
)
def test_the_interval_decides(low: float, high: float, verdict: str) -> None:
    assert non_inferiority(interval(low, high), margin=0.01) == verdict


@pytest.mark.parametrize("margin", [0.0, -0.01, float("nan")])
def test_a_margin_is_positive(margin: float) -> None:
    with pytest.raises(ValueError, match="the margin must be positive"):
        non_inferiority(interval(-0.1, 0.1), margin=margin)

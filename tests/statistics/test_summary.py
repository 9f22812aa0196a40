"""Summaries against the standard library and by hand."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge.statistics.summary import mean_and_deviation, quantiles


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
def test_the_deviation_is_that_of_the_population(values: list[float]) -> None:
    mean, deviation = mean_and_deviation(values)
    assert mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert deviation == pytest.approx(statistics.pstdev(values), abs=1e-6)


def test_by_hand() -> None:
    assert mean_and_deviation([59.0, 60.0, 61.0]) == pytest.approx((60.0, (2 / 3) ** 0.5))
    assert quantiles([4.0, 1.0, 3.0, 2.0], (0.0, 0.5, 0.9, 1.0)) == pytest.approx(
        (1.0, 2.5, 3.7, 4.0)
    )


def test_nothing_has_no_summary() -> None:
    with pytest.raises(ValueError, match="no values to average"):
        mean_and_deviation([])
    with pytest.raises(ValueError, match="no values to take quantiles of"):
        quantiles([], (0.5,))

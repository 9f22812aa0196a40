"""Quantiles against scipy's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from forge.statistics.normal import (
    incomplete_beta,
    normal_distribution,
    normal_quantile,
    t_quantile,
)


@given(st.floats(1e-6, 1 - 1e-6), st.floats(1, 1e6))
def test_student_quantiles_are_scipys(probability: float, degrees: float) -> None:
    expected = float(stats.t.ppf(probability, degrees))
    assert t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-8, abs=1e-6)


@given(st.floats(0, 1), st.floats(0.1, 1e4), st.floats(0.1, 1e2))
def test_the_incomplete_beta_function_is_scipys(x: float, a: float, b: float) -> None:
    assert incomplete_beta(x, a, b) == pytest.approx(float(special.betainc(a, b, x)), abs=1e-10)


def test_table_values_of_student() -> None:
    assert t_quantile(0.975, 1) == pytest.approx(12.7062, abs=5e-5)
    assert t_quantile(0.975, 10) == pytest.approx(2.2281, abs=5e-5)
    assert t_quantile(0.5, 7) == 0.0
    assert t_quantile(0.025, 10) == -t_quantile(0.975, 10)
    assert t_quantile(0.975, 1e9) == normal_quantile(0.975)


@given(st.floats(0.001, 0.999))
def test_the_normal_distribution_undoes_its_quantile(probability: float) -> None:
    assert normal_distribution(normal_quantile(probability)) == pytest.approx(probability)

"""McNemar's exact test against the binomial test, and a textbook's table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from forge.statistics.mcnemar import mcnemar_exact


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_it_is_the_binomial_test_of_a_fair_coin(gained: int, lost: int) -> None:
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar_exact(gained, lost) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_agrestis_approval_ratings() -> None:
    # Agresti, Categorical Data Analysis, table of two surveys of 1,600 people: 150 changed their
    # mind one way and 86 the other; z² = 17.36, so p is some 3e-5.
    assert mcnemar_exact(86, 150) == pytest.approx(3.716e-5, rel=1e-3)


def test_small_counts_by_hand() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(3, 3) == 1.0
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 32)
    assert mcnemar_exact(6, 1) == pytest.approx(2 * (1 + 7) / 128)


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="flips cannot be negative: 3 gained, -1 lost"):
        mcnemar_exact(3, -1)

"""Holm's correction: a worked example, the definition, and its bounds."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge.statistics.multiplicity import holm

P_VALUES = st.lists(st.floats(0, 1), max_size=7)


def test_the_worked_example() -> None:
    # Four hypotheses at 0.01, 0.04, 0.03, 0.005: the first and the last are rejected at 5 %.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([]) == ()


@given(P_VALUES)
def test_it_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    # Independent definition: a hypothesis falls when Bonferroni rejects every set that has it.
    def closed(index: int) -> float:
        others = [at for at in range(len(p_values)) if at != index]
        sets = [
            (index, *chosen)
            for size in range(len(p_values))
            for chosen in itertools.combinations(others, size)
        ]
        return max(min(1.0, len(members) * min(p_values[at] for at in members)) for members in sets)

    assert holm(p_values) == pytest.approx(tuple(closed(at) for at in range(len(p_values))))


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan")])
def test_no_p_value_lies_outside_its_range(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"a p-value lies in \[0, 1\]"):
        holm([0.5, wrong])

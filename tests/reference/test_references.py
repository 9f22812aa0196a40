"""What the references say where mergekit says otherwise or nothing, and what must hold of them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference import methods as ref
from tests.reference import sparsify
from tests.reference.sparsify import Array


def _vector(*values: float) -> Array:
    return np.array(values, dtype=np.float64)


EQUAL = _vector(2.0, 1.0, -2.0, 2.0, 0.5, -2.0)


def test_magnitude_prefers_the_lowest_index_among_equals() -> None:
    kept = sparsify.magnitude(EQUAL, 0.5)
    np.testing.assert_array_equal(kept, [2.0, 0.0, -2.0, 2.0, 0.0, 0.0])


def test_breadcrumbs_drops_the_lowest_index_first_among_equals() -> None:
    kept = sparsify.breadcrumbs(EQUAL, 0.5, 0.34)
    np.testing.assert_array_equal(kept, [0.0, 1.0, 0.0, 2.0, 0.0, -2.0])


def test_della_ranks_the_lowest_index_highest_among_equals() -> None:
    p = sparsify.della_probabilities(EQUAL, 0.5, 0.25)
    np.testing.assert_allclose(p, [0.75, 0.35, 0.65, 0.55, 0.25, 0.45])


def test_della_ranks_within_the_last_axis() -> None:
    delta = np.arange(1.0, 13.0).reshape(2, 2, 3)[..., ::-1]
    p = sparsify.della_probabilities(delta, 0.5, 0.25)
    np.testing.assert_allclose(p, np.broadcast_to([0.75, 0.5, 0.25], (2, 2, 3)))


def test_della_of_rows_of_one_element_is_dare() -> None:
    p = sparsify.della_probabilities(np.ones((3, 1)), 0.4, 0.1)
    np.testing.assert_array_equal(p, np.full((3, 1), 0.4))


def _every_draw(num: int) -> list[float]:
    """Return ``num`` equally likely uniform numbers that stand for all."""
    return [(i + 0.5) / num for i in range(num)]


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5])
def test_dare_by_density_is_unbiased(density: float) -> None:
    draws = [sparsify.dare(EQUAL, density, np.full(6, u)) for u in _every_draw(100)]
    np.testing.assert_allclose(np.mean(draws, axis=0), EQUAL, rtol=1e-12)


def test_della_by_density_is_unbiased() -> None:
    draws = [sparsify.della(EQUAL, 0.5, 0.25, np.full(6, u)) for u in _every_draw(100)]
    np.testing.assert_allclose(np.mean(draws, axis=0), EQUAL, rtol=1e-12)


@pytest.mark.parametrize(("u", "num_kept"), [(0.1, 6), (0.36, 4), (0.6, 2)])
def test_l1_rescale_restores_the_norm(u: float, num_kept: int) -> None:
    kept = sparsify.della(EQUAL, 0.5, 0.25, np.full(6, u), rescale="l1")
    assert np.count_nonzero(kept) == num_kept
    assert np.abs(kept).sum() == pytest.approx(np.abs(EQUAL).sum(), rel=1e-12)


def test_weights_that_sum_to_zero_have_no_average() -> None:
    for average in (ref.linear, ref.multislerp):
        with pytest.raises(ValueError, match="sum to zero"):
            average([EQUAL, -EQUAL], weights=[1.0, -1.0])


def test_multislerp_of_unchanged_models_is_the_base() -> None:
    merged = ref.multislerp([EQUAL] * 3, weights=[1.0, 2.0, 3.0], base=EQUAL)
    np.testing.assert_array_equal(merged, EQUAL)


def test_karcher_mean_of_two_is_halfway_on_the_arc() -> None:
    a, b = _vector(2.0, 0.0), _vector(0.0, 4.0)
    np.testing.assert_allclose(ref.karcher([a, b]), 3 * np.sqrt([0.5, 0.5]), rtol=1e-12)

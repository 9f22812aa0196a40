"""The truncated decomposition is the best there is, or close, and says truly what it keeps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from forge.adapters import truncation
from forge.adapters.delta import Delta
from forge.adapters.truncation import Truncated, kept_energy, truncate

Floats = npt.NDArray[np.float32]


class Given(Delta):
    """A difference that is at hand."""

    def __init__(self, values: npt.ArrayLike) -> None:
        self._kept = np.asarray(values, np.float32)
        self.shape_OI = self._kept.shape


def _matrix(rows: int, columns: int, *, decay: float = 0.0) -> Floats:
    generator = np.random.default_rng([rows, columns])
    values = generator.standard_normal((rows, columns))
    if decay:
        left, lengths, right = np.linalg.svd(values, full_matrices=False)
        values = (left * lengths * np.exp(-decay * np.arange(len(lengths)))) @ right
    return values.astype(np.float32)


def _squares(values: Floats) -> float:
    return float(np.sum(values.astype(np.float64) ** 2))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let matrices be large that a test can afford."""
    monkeypatch.setattr(truncation, "_EXACT_SIDE", 50)


@pytest.mark.parametrize("shape", [(90, 40), (40, 90), (150, 110), (110, 150), (1, 30), (30, 1)])
@pytest.mark.parametrize("rank", [1, 7, 40])
def test_keeps_what_the_largest_singular_values_keep(shape: tuple[int, int], rank: int) -> None:
    values = _matrix(*shape, decay=0.05)
    energy = _squares(values)
    found = truncate(Given(values), rank=rank, share=None, energy=energy, name="x")
    lengths = np.linalg.svd(values.astype(np.float64), compute_uv=False) ** 2
    best = lengths[: min(rank, *shape)].sum() / energy
    kept = kept_energy(Given(values), found, energy=energy, dtype="F32")
    product = found.left_OR.astype(np.float64) @ found.right_RI
    assert found.rank == min(rank, *shape)
    assert kept == pytest.approx(1 - _squares(values - product) / energy, abs=1e-5)
    assert kept <= best + 1e-5
    assert kept >= best - (1e-5 if found.way == "exact" else 2e-3 * (1 - best) + 1e-4)


def test_large_matrices_are_sampled_and_small_ones_are_not() -> None:
    large, small = _matrix(150, 90, decay=0.1), _matrix(50, 300, decay=0.1)
    for values, way in ((large, "randomized"), (small, "exact")):
        found = truncate(Given(values), rank=8, share=None, energy=_squares(values), name="x")
        assert found.way == way


@pytest.mark.parametrize("shape", [(50, 200), (190, 170)])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_takes_the_smallest_rank_that_keeps_a_share(shape: tuple[int, int], share: float) -> None:
    values = _matrix(*shape, decay=0.03)
    energy = _squares(values)
    found = truncate(Given(values), rank=10**6, share=share, energy=energy, name="x")
    lengths = np.linalg.svd(values.astype(np.float64), compute_uv=False) ** 2
    smallest = int(np.searchsorted(np.cumsum(lengths), share * energy)) + 1
    assert smallest <= found.rank <= smallest + (found.way == "randomized")
    assert kept_energy(Given(values), found, energy=energy, dtype="F32") >= share - 1e-5


def test_a_share_of_one_takes_the_whole_rank_and_a_limit_holds() -> None:
    values = _matrix(20, 30)
    energy = _squares(values)
    full = truncate(Given(values), rank=100, share=1.0, energy=energy, name="x")
    assert full.rank == 20
    assert np.allclose(full.left_OR @ full.right_RI, values, atol=1e-4)
    limited = truncate(Given(values), rank=5, share=1.0, energy=energy, name="x")
    assert limited.rank == 5


def test_a_matrix_of_low_rank_leaves_no_noise() -> None:
    values = _matrix(160, 3) @ _matrix(3, 120)
    energy = _squares(values)
    found = truncate(Given(values), rank=8, share=None, energy=energy, name="x")
    assert np.isfinite(found.left_OR).all()
    assert np.isfinite(found.right_RI).all()
    assert kept_energy(Given(values), found, energy=energy, dtype="F32") > 1 - 1e-5


def test_random_numbers_come_from_the_name() -> None:
    values = _matrix(100, 90)
    arguments = {"rank": 5, "share": None, "energy": _squares(values)}
    one, same, other = (
        truncate(Given(values), name=name, **arguments)  # type: ignore[arg-type]
        for name in ("a", "a", "b")
    )
    assert np.array_equal(one.left_OR, same.left_OR)
    assert not np.array_equal(one.left_OR, other.left_OR)


def test_says_what_rounding_costs() -> None:
    values = _matrix(40, 50, decay=0.2)
    energy = _squares(values)
    found = truncate(Given(values), rank=40, share=None, energy=energy, name="x")
    exact, rounded = (
        kept_energy(Given(values), found, energy=energy, dtype=dtype) for dtype in ("F32", "BF16")
    )
    assert 1 - exact < 1e-6 < 1 - rounded < 1e-4


def test_factors_that_keep_too_much_are_a_defect() -> None:
    values = _matrix(10, 10)
    found = Truncated(np.eye(10, dtype=np.float32), values, "exact")
    with pytest.raises(ArithmeticError, match="more than all"):
        kept_energy(Given(values), found, energy=_squares(values) / 2, dtype="F32")


def test_the_gram_matrix_is_of_the_smaller_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truncation, "_EXACT_SIDE", 1000)
    for shape in ((30, 70), (70, 30)):
        values = _matrix(*shape)
        assert Given(values).gram().shape == (30, 30)
        truncate(Given(values), rank=3, share=None, energy=_squares(values), name="x")

"""Own truncated singular value decomposition: the best matrix of few ranks, or very nearly.

    D ≈ B·A     B = U·√S [O, R]     A = √S·Vᵀ [R, I]

By Eckart and Young no other B·A of that rank keeps more of the energy ‖D‖², of which the R largest
singular values keep Σ s². Both factors get the root of S, so that neither leaves the range of a
16-bit type.

Two ways, by size. **Exact**: eigenvectors of the smaller Gram matrix, in float64, and one product
of D with them. A Gram matrix squares the condition number, which costs small singular values their
digits, and here those are the ones that are dropped. **Randomized**: D is multiplied with K = R + 8
random columns and then to and fro with itself, each product made orthonormal (float32, QR); the
subspace turns towards the largest singular vectors. It stops when a turn no longer finds a
thousandth of what is missing. For 4096 x 4096 and rank 64 that is a hundred times less work.

How much is kept is not taken from the singular values but measured on the factors as they will be
stored: ‖D - B·A‖² = ‖D‖² - 2⟨D, B·A⟩ + ‖B·A‖². It is an error of this module if that contradicts
the Frobenius norm.

Random columns come from a counter-based generator whose key is the tensor's name, so that neither
threads nor the order of tensors has a say.

Reference: Halko, Martinsson, Tropp 2011, arXiv:0909.4061, algorithms 4.4 and 5.1.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from forge.adapters.delta import Delta, Doubles, Singles
from forge.checkpoints.floats import decode, encode

Way = Literal["exact", "randomized"]

_EXACT_SIDE: Final = 384
"""Largest smaller side for which the Gram matrix costs next to nothing."""
_OVERSAMPLING: Final = 8
_EXACT_SHARE: Final = 4
"""Where more than a quarter of all ranks is wanted, sampling saves nothing."""
_MAX_TURNS: Final = 16
_MIN_TURNS: Final = 2
_TOLERANCE: Final = 1e-3
_FIRST_GUESS: Final = 32
_SLACK: Final = 1e-4
"""By how much sums in float32 may exceed what is possible."""


@dataclass(frozen=True, slots=True)
class Truncated:
    """Factors of a difference.

    Attributes:
        left_OR: B, float32.
        right_RI: A, float32.
        way: How they were found.
    """

    left_OR: Singles
    right_RI: Singles
    way: Way

    @property
    def rank(self) -> int:
        """R."""
        return int(self.left_OR.shape[1])


def truncate(
    delta: Delta, *, rank: int, share: float | None, energy: float, name: str
) -> Truncated:
    """Return the best factors of a difference.

    Args:
        delta: The difference.
        rank: Their rank; with ``share``, the largest allowed.
        share: Take the smallest rank that keeps this share of the energy, in (0, 1].
        energy: Its energy, above 0.
        name: The tensor's name, from which the random numbers come.

    Returns:
        The factors, of ``rank`` or of the rank that the share needs, but of no rank beyond the
        matrix's.
    """
    delta.keep()
    side = min(delta.shape_OI)
    rank = min(rank, side)
    if share is None:
        if _is_exact(rank, side):
            return _exact(delta, rank, None)
        return _randomized(delta, rank, None, energy, name)[0]
    guess = min(_FIRST_GUESS, rank)
    while not _is_exact(guess, side):
        found, kept = _randomized(delta, guess, share, energy, name)
        if guess == rank or kept >= share * energy:
            return found
        guess = min(2 * guess, rank)
    return _exact(delta, rank, share)


def kept_energy(delta: Delta, found: Truncated, *, energy: float, dtype: str) -> float:
    """Return the share of the energy that the factors keep once they are rounded.

    Args:
        delta: The difference.
        found: Its factors.
        energy: Its energy.
        dtype: Type in which they are stored, such as ``BF16``.

    Returns:
        1 - ‖D - B·A‖² / ‖D‖²; below 0 if rounding did more harm than the factors good.

    Raises:
        ArithmeticError: It is more than all; the decomposition is wrong.
    """
    left_OR, right_RI = (_rounded(factor, dtype) for factor in (found.left_OR, found.right_RI))
    inner = np.einsum(
        "ir,ri->", delta.transposed_times(left_OR).astype(np.float64), right_RI.astype(np.float64)
    )
    wide_left, wide_right = left_OR.astype(np.float64), right_RI.astype(np.float64)
    own = np.einsum("rs,rs->", wide_left.T @ wide_left, wide_right @ wide_right.T)
    lost = energy - 2 * float(inner) + float(own)
    if not lost >= -_SLACK * energy:
        raise ArithmeticError(f"factors keep more than all: {lost} of {energy} is left")
    return 1.0 - max(lost, 0.0) / energy


def _rounded(factor: Singles, dtype: str) -> Singles:
    stored = encode(factor, dtype)
    return (
        decode(stored.view(np.uint8).data.cast("B"), dtype).astype(np.float32).reshape(factor.shape)
    )


def _is_exact(rank: int, side: int) -> bool:
    return side <= _EXACT_SIDE or _EXACT_SHARE * (rank + _OVERSAMPLING) >= side


def _exact(delta: Delta, rank: int, share: float | None) -> Truncated:
    values, vectors = np.linalg.eigh(delta.gram())
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    rank = _rank_for(values, rank, share, float(values.sum()))
    basis = np.ascontiguousarray(vectors[:, :rank], np.float32)
    if delta.shape_OI[0] > delta.shape_OI[1]:
        return _balanced(delta.times(basis), basis, "exact")
    return _balanced(basis, delta.transposed_times(basis), "exact")


def _randomized(
    delta: Delta, rank: int, share: float | None, energy: float, name: str
) -> tuple[Truncated, float]:
    """Return factors and the energy that their subspace keeps, as far as singular values say."""
    columns = rank + _OVERSAMPLING
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
    generator = np.random.Generator(np.random.Philox(key=key))
    sample_IK = generator.standard_normal((delta.shape_OI[1], columns), np.float32)
    before = 0.0
    for turn in range(_MAX_TURNS):
        basis_OK = np.linalg.qr(delta.times(sample_IK))[0]
        sample_IK = delta.transposed_times(basis_OK)
        wide = sample_IK.astype(np.float64)
        values, turned = np.linalg.eigh(wide.T @ wide)
        values, turned = values[::-1], turned[:, ::-1]
        kept = float(values[:rank].sum())
        found_little = kept - before <= _TOLERANCE * max(energy - kept, 0.0) + 1e-6 * energy
        if turn >= _MIN_TURNS and found_little:
            break
        before = kept
        sample_IK = np.linalg.qr(sample_IK)[0]
    else:
        sample_IK = delta.transposed_times(basis_OK)
    rank = _rank_for(values, rank, share, energy)
    chosen = np.ascontiguousarray(turned[:, :rank], np.float32)
    return _balanced(basis_OK @ chosen, sample_IK @ chosen, "randomized"), kept


def _rank_for(values: Doubles, rank: int, share: float | None, energy: float) -> int:
    """Return the smallest rank whose singular values keep the share, or ``rank``."""
    if share is None:
        return rank
    kept = np.cumsum(values[:rank])
    # A share of one is reached but for rounding.
    return min(rank, int(np.searchsorted(kept, share * energy * (1 - 1e-12))) + 1)


def _balanced(left_OR: Singles, right_IR: Singles, way: Way) -> Truncated:
    """Share the singular values, which one side still has as the lengths of its columns."""
    lengths = [np.linalg.norm(side.astype(np.float64), axis=0) for side in (left_OR, right_IR)]
    values = np.sqrt(lengths[0] * lengths[1])
    scales = [
        np.divide(values, length, out=np.zeros_like(values), where=length > 0) for length in lengths
    ]
    return Truncated(
        (left_OR * scales[0]).astype(np.float32),
        np.ascontiguousarray((right_IR * scales[1]).T, np.float32),
        way,
    )

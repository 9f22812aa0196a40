"""What each method keeps of a task vector: by magnitude, at random, or at random by rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from forge.kernels.cpu.layout import BAND, DENSE, DROP, SCALED
from forge.kernels.operands import Operands, address_of
from forge.kernels.selection import NOTHING, Target, task_vector_bounds
from forge.merge.consensus import Sparsity
from forge.merge.contract import Stream

if TYPE_CHECKING:
    import numpy.typing as npt

_EVERYTHING = Sparsity((DENSE,))
_NONE = Sparsity((BAND, NOTHING.bits, NOTHING.quota, -1, 0))


def keep_largest(operands: Operands, densities: Sequence[float]) -> list[Sparsity]:
    """Keep the k greatest magnitudes of each task vector, k = max(1, ⌊density·n⌋).

    Density 1 keeps everything and density 0 nothing (TIES-Merging, arXiv 2306.01708, "trim").
    """
    numel = operands.numel
    ranks = [max(1, int(density * numel)) for density in densities]
    searched = [m for m, density in enumerate(densities) if 0 < density < 1]
    bounds = task_vector_bounds(operands, [Target(m, ranks[m]) for m in searched])
    sparsities = [_EVERYTHING if density >= 1 else _NONE for density in densities]
    for m, bound in zip(searched, bounds, strict=True):
        sparsities[m] = Sparsity((BAND, bound.bits, bound.quota, -1, 0))
    return sparsities


def keep_middle(
    operands: Operands, densities: Sequence[float], gammas: Sequence[float]
) -> list[Sparsity]:
    """Drop the ⌊γ·n⌋ greatest magnitudes, keep the next k = ⌊density·n⌋ (Model Breadcrumbs).

    When fewer than ⌊γ·n⌋ may be dropped, n - k are. Density 1 keeps everything.
    """
    numel = operands.numel
    targets: list[Target] = []
    searched: list[int] = []
    sparsities = []
    for m, (density, gamma) in enumerate(zip(densities, gammas, strict=True)):
        kept = int(density * numel)
        if density >= 1:
            sparsities.append(_EVERYTHING)
            continue
        sparsities.append(_NONE)
        if kept:
            dropped = min(int(gamma * numel), numel - kept)
            searched.append(m)
            targets += [Target(m, dropped + kept), Target(m, dropped)]
    bounds = task_vector_bounds(operands, targets)
    for m, inside, outside in zip(searched, bounds[::2], bounds[1::2], strict=True):
        drop = (-1, 0) if outside == NOTHING else (outside.bits, outside.quota)
        sparsities[m] = Sparsity((BAND, inside.bits, inside.quota, *drop))
    return sparsities


def drop_at_random(
    densities: Sequence[float], streams: Sequence[Stream], *, by_density: bool
) -> list[Sparsity]:
    """Keep each element with probability ``density`` (DARE, arXiv 2311.03099).

    Args:
        densities: One for each model.
        streams: Random stream of each model.
        by_density: Whether what is kept is divided by the density.
    """
    sparsities = []
    for density, stream in zip(densities, streams, strict=True):
        # u < density for u = word / 2**32.
        threshold = math.ceil(density * 2**32)
        if density >= 1:
            sparsities.append(_EVERYTHING)
        else:
            words = (DROP, stream.key, stream.stream, threshold)
            scale = 1 / density if by_density and threshold else 1.0
            sparsities.append(Sparsity(words, scale))
    return sparsities


def drop_by_rank(
    operands: Operands,
    densities: Sequence[float],
    epsilons: Sequence[float],
    streams: Sequence[Stream],
    *,
    by_density: bool,
) -> list[Sparsity]:
    """Keep an element with a probability that grows with its rank in its row (DELLA).

    p = density - ε + 2ε·rank/(C-1), rank 0 for the smallest of the C magnitudes of a row; among
    equal magnitudes the lowest column ranks highest. A row of one element has p = density.
    Density 1 keeps everything and density 0 nothing.

    Args:
        operands: The base and the models.
        densities: One for each model.
        epsilons: One for each model; density ± ε lies inside (0, 1).
        streams: Random stream of each model.
        by_density: Whether what is kept is divided by p.
    """
    sparsities = []
    for m, (density, epsilon, stream) in enumerate(zip(densities, epsilons, streams, strict=True)):
        if density >= 1:
            sparsities.append(_EVERYTHING)
        elif density <= 0:
            sparsities.append(Sparsity((SCALED,), fill=_drop_all))
        else:
            ranked = _Ranked(operands, m, density, epsilon, stream, by_density=by_density)
            sparsities.append(Sparsity((SCALED,), fill=ranked.fill))
    return sparsities


def _drop_all(start: int, count: int, factors: npt.NDArray[Any]) -> None:
    del start, count
    factors[:] = 0


class _Ranked:
    """Computes the factors of DELLA for whole rows of one task vector."""

    _PIECE = 1 << 17
    """Elements ranked in one go: keys and factors then stay in the second-level cache."""

    _MOST_COLUMN_BITS = 16

    def __init__(
        self,
        operands: Operands,
        model: int,
        density: float,
        epsilon: float,
        stream: Stream,
        *,
        by_density: bool,
    ) -> None:
        width = max(operands.width, 1)
        self._width = width
        lowest = density - epsilon if width > 1 else density
        step = 2 * epsilon / (width - 1) if width > 1 else 0.0
        self._params = np.array([by_density], np.float64)
        self._stream = stream
        self._pair = operands.select([0, 1 + model], has_base=True)
        self._is_single = self._pair.compute == "float32"
        self._chances = (lowest + step * np.arange(width)).astype(self._pair.compute)
        self._keys_pass = self._pair.plan("della.keys", rows=2)
        self._factors_pass = self._pair.plan("della.factors", rows=3)
        self._column_bits = (width - 1).bit_length()
        self._is_narrow = self._is_single and self._column_bits <= self._MOST_COLUMN_BITS
        rows = max(1, min(self._PIECE, operands.numel) // width)
        self._keys = np.empty(rows * width, np.uint32)
        self._inexact = np.zeros(rows, np.uint32)

    def fill(self, start: int, count: int, factors: npt.NDArray[Any]) -> None:
        """Write the factors of ``count`` elements from ``start``; both fall between rows."""
        piece = len(self._keys)
        for first in range(0, count, piece):
            self._fill_piece(start + first, factors[first : min(first + piece, count)])

    def _fill_piece(self, start: int, factors: npt.NDArray[Any]) -> None:
        count = len(factors)
        keys = self._keys[:count]
        if self._is_single:
            # The factors' place holds the magnitudes until the ranks are known.
            addresses = [
                address_of(factors),
                address_of(keys) if self._is_narrow else 0,
                address_of(self._inexact),
                self._column_bits,
            ]
            self._keys_pass.reduce(
                counts=np.array(addresses, np.int64), start=start, count=count, chunk=count
            )
        if self._is_narrow:
            keys.reshape(-1, self._width).sort(axis=1)
        elif self._is_single:
            keys[:] = self._long_keys(factors.view(np.uint32))
        else:
            keys[:] = self._double_keys(start, count)
        counts = [
            address_of(keys),
            address_of(factors),
            address_of(self._inexact),
            address_of(self._chances),
            self._column_bits,
            self._stream.key,
            self._stream.stream,
        ]
        self._factors_pass.reduce(
            params=self._params,
            counts=np.array(counts, np.int64),
            start=start,
            count=count,
            chunk=count,
        )

    def _long_keys(self, magnitudes: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """Rank rows so long that their columns leave too few bits of 32 for the magnitudes."""
        keys = magnitudes.reshape(-1, self._width).astype(np.uint64) << 32
        keys |= np.arange(self._width - 1, -1, -1, dtype=np.uint64)
        keys.sort(axis=1)
        return keys.reshape(-1).astype(np.uint32)

    def _double_keys(self, start: int, count: int) -> npt.NDArray[np.uint32]:
        """Rank float64 task vectors, whose magnitudes do not fit beside a column in 64 bits."""
        base, model = (self._pair.values(index, start, count) for index in (0, 1))
        magnitudes = np.abs(model - base).reshape(-1, self._width)[:, ::-1]
        # Reversed, a stable sort puts the highest column first among equals.
        order = np.argsort(magnitudes, axis=1, kind="stable")
        return order.reshape(-1).astype(np.uint32)

"""What each method keeps of a task vector: by magnitude, at random, or at random by rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from forge.core.dtypes import DTYPES
from forge.kernels.cpu.layout import BAND, BLOCK, DENSE, DROP, GROUP, PADDING, SCALED, STRIPES
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

    _MOST_COLUMNS = (1 << 16) - PADDING
    """Beyond that neither counters nor columns fit in 16 bits, and rows are sorted."""

    _LEAST_STEPS = 4
    _MOST_STEPS = 256
    _TOGETHER = 1 << 10
    """Elements up to which rows are worked on together, so that blocks are long."""

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
        self._params = np.array([by_density, lowest, step], np.float64)
        self._stream = stream
        self._pair = operands.select([0, 1 + model], has_base=True)
        self._chances = (lowest + step * np.arange(width)).astype(self._pair.compute)
        self._is_counted = self._pair.compute == "float32" and width <= self._MOST_COLUMNS
        kernel = "factors" if self._is_counted else "drop"
        self._pass = self._pair.plan(f"della.{kernel}", rows=3, aside=True)
        words = [0, stream.key, stream.stream]
        if self._is_counted:
            # Differences of 16-bit numbers mostly equal all others in their bucket. Those of
            # float32 never do, and more buckets are cheaper than comparing what shares one.
            is_coarse = all(DTYPES[dtype].itemsize == 2 for dtype in self._pair.dtypes)
            buckets = width * (2 if is_coarse else 8)
            most = self._MOST_STEPS if is_coarse else 2 * self._MOST_STEPS
            steps = min(max(buckets // STRIPES, self._LEAST_STEPS), most)
            stripe_bits = (steps - 1).bit_length()
            together = max(1, self._TOGETHER // width)
            is_short = all(dtype == "BF16" for dtype in self._pair.dtypes)
            self._scratch = self._scratch_of(width, stripe_bits, together)
            words += [address_of(self._chances), address_of(self._scratch)]
            words += [stripe_bits, together, is_short, is_coarse]
        self._counts = np.array(words, np.int64)

    @staticmethod
    def _scratch_of(width: int, stripe_bits: int, together: int) -> npt.NDArray[np.uint8]:
        """Return what ``kernels/cpu/della.py`` works in: zeros, aligned to a cache line."""
        padded = -(-width // PADDING) * PADDING
        num_bytes = 128 + 4 * (BLOCK + GROUP) + 18 * padded + 8 * PADDING
        num_bytes += 2 * STRIPES << stripe_bits
        num_bytes += 2 * (together * width + PADDING)
        scratch = np.zeros(num_bytes + 64, np.uint8)
        return scratch[-address_of(scratch) % 64 :]

    def fill(self, start: int, count: int, factors: npt.NDArray[Any]) -> None:
        """Write the factors of ``count`` elements from ``start``; both fall between rows."""
        if not self._is_counted:
            sort = self._order if self._pair.compute == "float64" else self._order_of_singles
            np.put_along_axis(
                factors.reshape(-1, self._width),
                sort(start, count),
                self._chances[np.newaxis],
                axis=1,
            )
        self._counts[0] = address_of(factors)
        self._pass.reduce(
            params=self._params, counts=self._counts, start=start, count=count, chunk=count
        )

    def _magnitudes(self, start: int, count: int) -> npt.NDArray[Any]:
        base, model = (self._pair.values(index, start, count) for index in (0, 1))
        magnitudes: npt.NDArray[Any] = np.abs(model - base).reshape(-1, self._width)
        return magnitudes

    def _order_of_singles(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Return the columns of each row by rank. Magnitude and column fit in one key."""
        keys = self._magnitudes(start, count).view(np.uint32).astype(np.uint64) << 32
        keys |= np.arange(self._width - 1, -1, -1, dtype=np.uint64)
        keys.sort(axis=1)
        return self._width - 1 - (keys & 0xFFFFFFFF).astype(np.int64)

    def _order(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Return the columns of each row by rank."""
        # Reversed, a stable sort puts the highest column first among equals.
        magnitudes = self._magnitudes(start, count)[:, ::-1]
        return self._width - 1 - np.argsort(magnitudes, axis=1, kind="stable")

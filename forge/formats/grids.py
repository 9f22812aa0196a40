"""Tell weights that lie on a quantized grid, whatever type they are stored in.

Dequantized weights look like any others, but few numbers occur in them: a group of 4-bit integers
has at most 16 values, a block of FP8 at most 8 mantissas, a row of int8 only multiples of one
step. Full precision does not do that by chance: of 32 bfloat16 weights about 31 differ, and of 128
about 80 mantissas of the 128 that there are occur.

Each test looks at many small pieces and asks what share of them passes; zeros do not count, so
that pruned, empty and constant weights prove nothing. A piece is a run along a row, or down a
column for weights stored ``[in, out]``. Weights that were changed since, by fine-tuning or merging,
pass no test, nor do those whose groups were shuffled among the columns (GPTQ's ``desc_act``).
Every merge looks at its models in this way, and nearly all of them are full precision: each test
gives up as soon as it cannot be passed any more.

Legend: R rows, C columns, P pieces, L length of a piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Test = Callable[[Floats], Bools]
"""Tells of each piece, [P, L], whether it is as it should be, [P]."""

_LEAST_NORMAL: Final = np.float32(2.0**-14)
"""What is smaller has few bits in float16 by itself, and is taken for a zero."""
_SHARE: Final = 0.95
"""Share of the pieces that must pass; the ends of rows may belong to cut groups."""
_LEAST_PIECES: Final = 8
_MIXED: Final = 0.5
"""Share of ternary pieces that must have both signs."""
_FEW: Final = 0.7
"""Random pieces have more different values than this share of their length, coded ones fewer."""
_LENGTHS: Final = (32, 64, 128)
_FLOATS: Final = (("FP4", 16, 2, 12), ("FP8", 128, 8, 40), ("FP8", 32, 8, 24))
"""Name, length of a piece, mantissas in it, and numbers other than zero that it must have."""
_SMALL: Final = 32.0
"""Multiples of a step up to this one are told from other numbers despite bfloat16's rounding."""
_LEAST_SMALL: Final = 200
_OFF: Final = 0.12
"""Mean distance from the nearest multiple; 0.25 for numbers that know no step, 0.04 for int8."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What weights lie on.

    Attributes:
        name: ``FP8``, ``4-bit codes``, ``ternary values`` and so on.
        group: Neighbouring weights that share a scale, at least; 0 where that is not told.
    """

    name: str
    group: int


def grid_of(rows_RC: Floats, block_RC: Floats, *, dtype: str) -> Grid | None:
    """Tell what a sample of a weight lies on.

    Args:
        rows_RC: Some whole rows.
        block_RC: Many rows of some columns, for groups that run down the columns.
        dtype: The type that they are stored in.

    Returns:
        The grid, or ``None`` where the numbers look like full precision.
    """
    for sample in (rows_RC, np.ascontiguousarray(block_RC.T)):
        is_coarse = np.abs(sample) < _LEAST_NORMAL if dtype == "F16" else False
        found = _along_rows(np.where(is_coarse, np.float32(0), sample))
        if found is not None:
            return found
    return None


def _along_rows(rows_RC: Floats) -> Grid | None:
    if rows_RC.shape[1] < _LENGTHS[0] or not np.isfinite(rows_RC).all():
        return None
    if _is_ternary(rows_RC):
        return Grid("ternary values", 0)
    floats = _few_mantissas(rows_RC)
    if floats is not None and floats.name == "FP4":
        return floats
    return _few_values(rows_RC) or floats or _one_step(rows_RC)


def _cut(rows_RC: Floats, length: int) -> Floats:
    """Cut rows into pieces, [P, L]."""
    whole = rows_RC.shape[1] // length * length
    return rows_RC[:, :whole].reshape(-1, length)


def _pieces(rows_RC: Floats, length: int, *, least: int | None = None) -> Floats:
    """Cut rows into pieces and leave out those that are mostly zeros, [P, L].

    Args:
        rows_RC: The rows.
        length: Numbers in a piece.
        least: How many of them must not be zero; by default more than half.
    """
    pieces_PL = _cut(rows_RC, length)
    if np.count_nonzero(pieces_PL) == pieces_PL.size:
        return pieces_PL
    least = length // 2 + 1 if least is None else least
    kept: Floats = pieces_PL[np.count_nonzero(pieces_PL, axis=1) >= least]
    return kept


def _num_different(values_PL: npt.NDArray[np.generic]) -> npt.NDArray[np.intp]:
    """Return how many different values each piece has."""
    ordered = np.sort(values_PL, axis=1)
    return np.asarray(np.count_nonzero(ordered[:, 1:] != ordered[:, :-1], axis=1) + 1, np.intp)


def _pass(test: Test, pieces_PL: Floats) -> bool:
    """Tell whether enough pieces pass; the first eighth often tells that they do not."""
    num = len(pieces_PL)
    if num < _LEAST_PIECES:
        return False
    num_failed = np.count_nonzero(~test(pieces_PL[: num // 8]))
    if (num - num_failed) / num < _SHARE:
        return False
    return float(test(pieces_PL).mean()) >= _SHARE


def _is_ternary(rows_RC: Floats) -> bool:
    """Tell pieces that hold one magnitude, and zeros; constants have one sign, and are none."""
    for length in (rows_RC.shape[1], *reversed(_LENGTHS)):
        pieces_PL = _cut(rows_RC, length)
        if _pass(_are_one, pieces_PL):
            is_mixed = (pieces_PL > 0).any(axis=1) & (pieces_PL < 0).any(axis=1)
            if float(is_mixed.mean()) > _MIXED:
                return True
    return False


def _are_one(pieces_PL: Floats) -> Bools:
    magnitudes = np.abs(pieces_PL)
    largest = magnitudes.max(axis=1, keepdims=True)
    return np.asarray(((magnitudes == largest) | (magnitudes == 0)).all(axis=1))


def _few_values(rows_RC: Floats) -> Grid | None:
    """Tell groups of 2, 3 and 4 bits."""
    found: tuple[int, int, Floats] | None = None
    for length in _LENGTHS:
        pieces_PL = _pieces(rows_RC, length)
        if not _pass(_are_codes, pieces_PL):
            break
        counts = _num_different(pieces_PL)
        if counts.mean() > _FEW * length:
            break
        most = int(np.quantile(counts, _SHARE))
        bits = 2 if most <= 4 else 3 if most <= 8 else 4
        if found is not None and bits > found[1]:
            # Two groups of fewer bits, not one of more.
            break
        found = (length, bits, pieces_PL)
    if found is None:
        return None
    length, bits, pieces_PL = found
    return Grid(f"{bits}-bit codes{_kind(pieces_PL) if bits == 4 else ''}", length)


def _are_codes(pieces_PL: Floats) -> Bools:
    counts = _num_different(pieces_PL)
    return (counts <= 16) & (counts > 1)


def _kind(pieces_PL: Floats) -> str:
    """Tell evenly spaced codes from those of floats and quantiles."""
    ordered = np.sort(pieces_PL, axis=1)
    gaps = np.diff(ordered, axis=1)
    step = np.where(gaps > 0, gaps, np.inf).min(axis=1, keepdims=True)
    steps = (gaps / step)[gaps > 0]
    is_even = float(np.abs(steps - np.rint(steps)).mean()) < _OFF and float(steps.max()) < 16
    return " (integers)" if is_even else " (NF4 or FP4)"


def _few_mantissas(rows_RC: Floats) -> Grid | None:
    """Tell FP4 by groups of 16 and FP8 by blocks of 128, by their mantissas alone."""
    for name, length, most, least in _FLOATS:
        pieces_PL = _pieces(rows_RC, length, least=least)
        # Integers of two or three bits have two mantissas as well, but fewer magnitudes.
        if (
            _pass(partial(_have_few_mantissas, most=most), pieces_PL)
            and _num_different(np.abs(pieces_PL)).max() > 2 * most + 2
        ):
            return Grid(name, length)
    return None


def _have_few_mantissas(pieces_PL: Floats, *, most: int) -> Bools:
    values = np.abs(pieces_PL)
    # Seven bits of mantissa, which all types that weights are stored in have.
    mantissas = (values.view(np.uint32) >> np.uint32(16)) & np.uint32(0x7F)
    # A zero has no mantissa, and borrows that of the largest number.
    largest = np.take_along_axis(mantissas, values.argmax(axis=1)[:, None], axis=1)
    return _num_different(np.where(values == 0, largest, mantissas)) <= most


def _one_step(rows_RC: Floats) -> Grid | None:
    """Tell int8: small numbers are multiples of a row's smallest, or of a group's largest / 127."""
    magnitudes = np.abs(rows_RC)
    least = np.where(magnitudes > 0, magnitudes, np.inf).min(axis=1, keepdims=True)
    if _are_multiples(magnitudes, least):
        return Grid("8-bit integers", rows_RC.shape[1])
    for length in reversed(_LENGTHS):
        pieces_PL = _pieces(rows_RC, length)
        if len(pieces_PL) < _LEAST_PIECES:
            continue
        magnitudes = np.abs(pieces_PL)
        largest = magnitudes.max(axis=1, keepdims=True)
        span = pieces_PL.max(axis=1, keepdims=True) - pieces_PL.min(axis=1, keepdims=True)
        for step in (largest / 127, largest / 128, span / 255):
            if _are_multiples(magnitudes, step):
                return Grid("8-bit integers", length)
    return None


def _are_multiples(magnitudes: Floats, step: Floats) -> bool:
    with np.errstate(all="ignore"):
        steps = magnitudes / step
        small = (steps > 0.5) & (steps <= _SMALL)
    if np.count_nonzero(small) < max(_LEAST_SMALL, steps.size // 20):
        return False
    chosen = np.compress(small.reshape(-1), steps)  # steps[small] takes twice as long
    # Numbers that are all one step say nothing.
    is_spread = int(np.count_nonzero(chosen > 2.5)) / len(chosen) > 0.3
    return is_spread and float(np.abs(chosen - np.rint(chosen)).mean()) < _OFF

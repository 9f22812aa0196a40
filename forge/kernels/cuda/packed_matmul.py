"""Multiply with packed weights on a CUDA device, from the same bytes as on a CPU.

The layout of ``packed_layout.py`` suits a GPU as it is: the sixteen words of a block that hold
the same inputs lie side by side. What is fast depends on the number of rows of activations:

    1 (3 where codes look up a table)   ``decode``: one pass over the packed weight, in float32,
                                        which rounds nothing
    up to 32, codes with zero points    ``tile``: pieces of the weight are dequantized in
                                        registers and multiplied by the tensor cores
    more (a prompt)                     slices of the weight are dequantized into memory and
                                        multiplied by the library of the device, whose matrix
                                        products no kernel of ours would reach

Few rows leave a GPU idle unless many programs share one product, so the first two also cut the
inputs into parts (split-k); the parts are summed at the end, in a fixed order, in float32. Both
ways for several rows round the weight to the activations' type, as all GPU kernels for such
weights do.

On an H200 (14,336 x 4,096, groups of 128, bfloat16; microseconds, the plain product in brackets):
one row 20 (32), sixteen rows 36 (32), 256 rows 90 (48), 4,096 rows 660 (626).

Legend: N rows of activations, K input features, O output features. Triton is imported when a
product is first asked for.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from forge.core.errors import MissingExtraError
from forge.kernels.cpu.quantized.packed_layout import LANES, Kind

if TYPE_CHECKING:
    import torch

MOST_TABLE_ROWS: Final = 3
"""Rows up to which codes that look up a table are looked up for each row."""
MOST_TILE_ROWS: Final = 32
"""Rows up to which dequantizing in registers is faster than dequantizing into memory."""

_DECODE_OUTPUTS: Final = 16
_DECODE_WORDS: Final = 64
_TABLE_WORDS: Final = 32
_DECODE_PROGRAMS: Final = 256
"""Programs that keep a large GPU busy: about two for each of 132 multiprocessors."""
_LEAST_TILE_ROWS: Final = 16
_TILE_OUTPUTS: Final = 64
_TILE_WORDS: Final = 16
_TILE_PROGRAMS: Final = 512
_MOST_PARTS: Final = 16
_SLICE_OUTPUTS: Final = 16
_SLICE_WORDS: Final = 32
_SLICE_ELEMENTS: Final = 1 << 26
"""Elements of the weight that are dequantized at a time: 134 MB in bfloat16."""


@dataclass(frozen=True, slots=True)
class _Weight:
    """A packed weight on its device, and what every kernel is told of it."""

    words: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    table: torch.Tensor
    kind: Kind
    group_size: int
    num_inputs: int
    num_outputs: int

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Words, scales, zero points and table; in place of what there is not, something else."""
        zeros = self.zeros if self.kind.has_zeros else self.scales
        return self.words, self.scales, zeros, self.table

    @property
    def sizes(self) -> dict[str, Any]:
        """Arguments by name."""
        return {
            "num_inputs": self.num_inputs,
            "num_words": self.words.shape[1],
            "num_groups": self.scales.shape[1],
            "GROUP_WORDS": self.group_size // self.kind.codes,
            "BITS": self.kind.bits,
            "HAS_ZEROS": self.kind.has_zeros,
        }

    def parts(self, words: int, outputs: int, *, programs: int) -> tuple[int, int, int]:
        """Return tiles of outputs, parts of the inputs, and steps of each part."""
        tiles = -(-self.num_outputs // outputs)
        steps = -(-self.words.shape[1] // words)
        parts = max(1, min(_MOST_PARTS, -(-programs // tiles), steps))
        return tiles, parts, -(-steps // parts)


def multiply(
    rows_NK: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    *,
    kind: Kind,
    group_size: int,
    num_outputs: int,
) -> torch.Tensor:
    """Multiply activations with a packed weight.

    Args:
        rows_NK: Activations, float32, bfloat16 or float16, on the device of the weight.
        words: int32 [blocks, words of a lane, 16].
        scales: The bits of the scales, int16 or int32 [blocks, G, 16].
        zeros: uint8 [blocks, G, 16], or empty.
        kind: What the codes mean.
        group_size: Inputs that share a scale, the padding of a row included.
        num_outputs: O.

    Returns:
        [N, O] in the type of the activations.

    Raises:
        MissingExtraError: Triton is not installed.
    """
    import torch

    num_rows, num_inputs = rows_NK.shape
    rows_NK = rows_NK.contiguous()
    if num_rows == 0:
        return rows_NK.new_empty(0, num_outputs)
    weight = _Weight(
        words, scales.view(torch.float16 if kind.scale_bytes == 2 else torch.float32), zeros,
        _table(kind, words.device), kind, group_size, num_inputs, num_outputs,
    )  # fmt: skip
    if num_rows <= (1 if kind.has_zeros else MOST_TABLE_ROWS):
        return _decode(rows_NK, weight)
    if kind.has_zeros and num_rows <= MOST_TILE_ROWS:
        return _tile(rows_NK, weight)
    return _multiply_slices(rows_NK, weight)


def _decode(rows_NK: torch.Tensor, weight: _Weight) -> torch.Tensor:
    words = _DECODE_WORDS if weight.kind.has_zeros else _TABLE_WORDS
    tiles, parts, steps = weight.parts(words, _DECODE_OUTPUTS, programs=_DECODE_PROGRAMS)
    out_PNO = _empty_parts(rows_NK, parts, weight.num_outputs)
    kernel = _kernels().decode_codes if weight.kind.has_zeros else _kernels().decode_table
    kernel[(tiles, parts, len(rows_NK))](
        rows_NK, *weight.tensors, out_PNO, len(rows_NK), weight.num_outputs, steps,
        OUTPUTS=_DECODE_OUTPUTS, WORDS=words, **weight.sizes,
    )  # fmt: skip
    return _sum_parts(out_PNO, rows_NK)


def _tile(rows_NK: torch.Tensor, weight: _Weight) -> torch.Tensor:
    import torch

    num_rows, num_inputs = rows_NK.shape
    codes, num_words = weight.kind.codes, weight.words.shape[1]
    if missing := num_words * codes - num_inputs:
        rows_NK = torch.nn.functional.pad(rows_NK, (0, missing))
    by_place = rows_NK.view(num_rows, num_words, codes).transpose(1, 2).contiguous()
    tiles, parts, steps = weight.parts(_TILE_WORDS, _TILE_OUTPUTS, programs=_TILE_PROGRAMS)
    out_PNO = _empty_parts(rows_NK, parts, weight.num_outputs)
    _kernels().tile[(tiles, parts)](
        by_place, *weight.tensors, out_PNO, num_rows, weight.num_outputs, steps,
        ROWS=max(_LEAST_TILE_ROWS, 1 << (num_rows - 1).bit_length()),
        OUTPUTS=_TILE_OUTPUTS, WORDS=_TILE_WORDS, **weight.sizes,
    )  # fmt: skip
    return _sum_parts(out_PNO, rows_NK)


def _empty_parts(rows_NK: torch.Tensor, parts: int, num_outputs: int) -> torch.Tensor:
    import torch

    # A single part is rounded where it is written.
    dtype = rows_NK.dtype if parts == 1 else torch.float32
    return rows_NK.new_empty(parts, len(rows_NK), num_outputs, dtype=dtype)


def _sum_parts(out_PNO: torch.Tensor, rows_NK: torch.Tensor) -> torch.Tensor:
    return out_PNO[0] if len(out_PNO) == 1 else out_PNO.sum(0).to(rows_NK.dtype)


def _multiply_slices(rows_NK: torch.Tensor, weight: _Weight) -> torch.Tensor:
    import torch

    slices = []
    step = max(LANES, _SLICE_ELEMENTS // weight.num_inputs // LANES * LANES)
    for first in range(0, weight.num_outputs, step):
        count = min(step, weight.num_outputs - first)
        slice_OK = rows_NK.new_empty(count, weight.num_inputs)
        grid = (-(-count // _SLICE_OUTPUTS), -(-weight.words.shape[1] // _SLICE_WORDS))
        _kernels().dequantize[grid](
            *weight.tensors, slice_OK, first, first + count,
            OUTPUTS=_SLICE_OUTPUTS, WORDS=_SLICE_WORDS, **weight.sizes,
        )  # fmt: skip
        slices.append(torch.nn.functional.linear(rows_NK, slice_OK))
    return slices[0] if len(slices) == 1 else torch.cat(slices, 1)


@functools.cache
def _table(kind: Kind, device: torch.device) -> torch.Tensor:
    """Return the value of each code on a device; of plain codes, nothing that is read."""
    import torch

    return torch.tensor(kind.table or (0.0,), dtype=torch.float32, device=device)


@functools.cache
def _kernels() -> Any:
    try:
        from forge.kernels.cuda import packed_kernels
    except ImportError as error:
        raise MissingExtraError(
            "Running packed weights on a GPU needs Triton. "
            "Install it with pip install 'forge[triton]'."
        ) from error
    assert packed_kernels.LANES_A_BLOCK == LANES
    return packed_kernels

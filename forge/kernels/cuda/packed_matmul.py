"""Multiply with packed weights on a CUDA device, from the same bytes as on a CPU.

The layout of ``packed_layout.py`` suits a GPU as it is: the sixteen words of a block that hold
the same inputs lie side by side, and so do blocks of a warp's worth of outputs.

A few rows of activations (a token) leave a GPU idle unless many programs share one product, so
``_decode`` also cuts the inputs into parts (split-k); the parts are summed at the end, in a fixed
order, in float32. Many rows (a prompt) go through ``_prefill``, where a tile of the weight is
dequantized in registers and multiplied by the tensor cores in the activations' type. The weight is
rounded to that type there, as all GPU kernels for such weights do; ``_decode`` rounds nothing.

Legend: N rows of activations, K input features, O output features. Triton is imported when a
product is first asked for.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from forge.core.errors import MissingExtraError
from forge.kernels.cpu.quantized.packed_layout import LANES, Kind

if TYPE_CHECKING:
    import torch

MOST_DECODE_ROWS: Final = 8
"""Rows up to which a product is one of matrix and vectors."""

_DECODE_OUTPUTS: Final = 64
_DECODE_WORDS: Final = 16
_LEAST_PROGRAMS: Final = 528
"""Programs that keep a large GPU busy: four for each of 132 multiprocessors."""
_MOST_PARTS: Final = 16
_TILE_ROWS: Final = 64
_TILE_OUTPUTS: Final = 64
_TILE_WORDS: Final = 16


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
    scales = scales.view(torch.float16 if kind.scale_bytes == 2 else torch.float32)
    shared = (rows_NK, words, scales, zeros if kind.has_zeros else scales)
    table = _table(kind, words.device)
    sizes = {
        "num_inputs": num_inputs,
        "num_words": words.shape[1],
        "num_groups": scales.shape[1],
        "GROUP_WORDS": group_size // kind.codes,
        "BITS": kind.bits,
        "HAS_ZEROS": kind.has_zeros,
    }
    if num_rows <= MOST_DECODE_ROWS:
        return _run_decode(shared, table, num_rows, num_outputs, sizes).to(rows_NK.dtype)
    return _run_prefill(shared, table, num_rows, num_outputs, sizes)


def _run_decode(
    shared: tuple[torch.Tensor, ...],
    table: torch.Tensor,
    num_rows: int,
    num_outputs: int,
    sizes: dict[str, Any],
) -> torch.Tensor:
    import torch

    num_tiles = -(-num_outputs // _DECODE_OUTPUTS)
    steps = -(-sizes["num_words"] // _DECODE_WORDS)
    wanted = -(-_LEAST_PROGRAMS // num_tiles)
    parts = max(1, min(_MOST_PARTS, wanted, steps))
    out_PNO = torch.empty(
        parts, num_rows, num_outputs, dtype=torch.float32, device=shared[0].device
    )
    _kernels().decode[(num_tiles, parts)](
        *shared, table, out_PNO, num_rows, num_outputs, -(-steps // parts),
        ROWS=1 << (num_rows - 1).bit_length(), OUTPUTS=_DECODE_OUTPUTS, WORDS=_DECODE_WORDS,
        **sizes,
    )  # fmt: skip
    return out_PNO.sum(0)


def _run_prefill(
    shared: tuple[torch.Tensor, ...],
    table: torch.Tensor,
    num_rows: int,
    num_outputs: int,
    sizes: dict[str, Any],
) -> torch.Tensor:
    out_NO = shared[0].new_empty(num_rows, num_outputs)
    grid = (-(-num_rows // _TILE_ROWS), -(-num_outputs // _TILE_OUTPUTS))
    _kernels().prefill[grid](
        *shared, table, out_NO, num_rows, num_outputs,
        ROWS=_TILE_ROWS, OUTPUTS=_TILE_OUTPUTS, WORDS=_TILE_WORDS, **sizes,
    )  # fmt: skip
    return out_NO


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

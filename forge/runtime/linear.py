"""A linear layer that keeps its weight quantized, on a CPU and on a GPU.

On a CPU activations of any type are widened to float32 and multiplied with the packed weights
themselves, one row or many (``packed_matmul.py``): exact weights, exact activations, sums in
float32. Only where the CPU multiplies bfloat16 tiles in hardware (AMX), which is several times
faster than anything else there, long prompts in bfloat16 take that way: slices of the weight are
dequantized to bfloat16 and multiplied by torch.

Legend: N rows of activations, I input features, O output features.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Final

import torch

from forge.core.errors import IncompatibleError
from forge.kernels.cpu.quantized.packed_layout import KINDS, LANES, NUM_ARGUMENTS, TILE_ROWS
from forge.runtime import team

if TYPE_CHECKING:
    from forge.runtime.packed import PackedWeight

_ARGUMENTS: Final = ctypes.c_int64 * NUM_ARGUMENTS
_TAKE_BYTES: Final = 1 << 16
"""Packed weights that a thread takes at a time: enough to stream, few enough to share evenly."""
_PANEL_BYTES: Final = 1 << 21
"""Activations that are multiplied with a weight in one pass: what the second-level cache holds."""
_LEAST_TILE_ROWS: Final = 64
_SLICE: Final = 1024
"""Outputs that are dequantized at a time."""
_SCALE_BITS: Final = {2: torch.int16, 4: torch.int32}


class QuantizedLinear(torch.nn.Module):
    """``y = x · Wᵀ + bias`` with a weight that stays packed. It only runs forwards.

    Made empty, in place of a layer of a model that has no weights yet, and filled by ``fill``.

    Args:
        in_features: I.
        out_features: O.
        bias: Whether there is a bias.
    """

    words: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        # Nothing but a type and a device, for model code that asks a layer for its weight's.
        self.register_buffer("weight", torch.empty(0), persistent=False)
        self.bias: torch.nn.Parameter | None = None
        if bias:
            self.bias = torch.nn.Parameter(torch.empty(out_features), requires_grad=False)
        self.kind = KINDS["u4"]
        self.group_size = self.num_blocks = self.num_words = self.num_groups = 0

    def fill(self, weight: PackedWeight) -> None:
        """Take the weight.

        Args:
            weight: A weight of this layer's shape.
        """
        assert weight.shape_OI == (self.out_features, self.in_features)
        self.kind, self.group_size = weight.kind, weight.group_size
        # Kept as plain numbers: asking tensors costs as much as a small product.
        self.num_blocks, self.num_words, _ = weight.words.shape
        self.num_groups = weight.scales.shape[1]
        # Scales lie in the buffer as integers: a model's `.to(dtype)` must not round them.
        for name, array in (
            ("words", weight.words.view("int32")),
            ("scales", weight.scales.view(f"int{8 * weight.kind.scale_bytes}")),
            ("zeros", weight.zeros),
        ):
            self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply.

        Args:
            x: Activations [..., I], float32, bfloat16 or float16.

        Returns:
            [..., O] in the type of ``x``.

        Raises:
            IncompatibleError: A gradient is asked for.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise IncompatibleError(
                "A quantized layer has no gradient: it only runs forwards. Run the model under "
                "torch.no_grad(), or train the model that it was made from."
            )
        rows_NI = x.reshape(-1, self.in_features)
        if x.is_cuda:
            from forge.kernels.cuda.packed_matmul import multiply

            y_NO = multiply(rows_NI, self.words, self.scales, self.zeros, kind=self.kind,
                            group_size=self.group_size, num_outputs=self.out_features)  # fmt: skip
        elif len(rows_NI) >= _LEAST_TILE_ROWS and x.dtype == torch.bfloat16 and _multiplies_tiles():
            y_NO = self.multiply_slices(rows_NI)
        else:
            y_NO = self.multiply_packed(rows_NI).to(x.dtype)
        if self.bias is not None:
            y_NO += self.bias
        return y_NO.view(*x.shape[:-1], self.out_features)

    def multiply_packed(self, rows_NI: torch.Tensor) -> torch.Tensor:
        """Multiply on the CPU, reading the packed weights.

        Args:
            rows_NI: Activations.

        Returns:
            float32 [N, O].
        """
        num_rows = rows_NI.shape[0]
        tile = next((size for size in TILE_ROWS if num_rows <= size), TILE_ROWS[-1])
        num_padded = -(-num_rows // tile) * tile
        width = self.num_words * self.kind.codes
        singles = _padded(rows_NI.float(), num_padded, width)
        out = torch.empty(num_padded, self.num_blocks * LANES)
        at_once = max(1, _PANEL_BYTES // (4 * width * tile)) * tile
        if num_padded <= at_once:
            self._multiply_panel(singles, out, tile)
        else:
            for start in range(0, num_padded, at_once):
                self._multiply_panel(singles[start : start + at_once], out[start:], tile)
        if out.shape == (num_rows, self.out_features):
            return out
        return out[:num_rows, : self.out_features]

    def _multiply_panel(self, singles: torch.Tensor, out: torch.Tensor, tile: int) -> None:
        num_tiles = singles.shape[0] // tile
        panel = singles
        if tile > 1:
            panel = singles.view(num_tiles, tile, -1).transpose(1, 2).contiguous()
        sums = panel
        if self.kind.has_zeros:
            sums = panel.view(num_tiles, self.num_groups, self.group_size, tile).sum(2)
        self._run(f"{self.kind.name}_{tile}", panel, sums, out, tiles=num_tiles)

    def multiply_slices(self, rows_NI: torch.Tensor) -> torch.Tensor:
        """Multiply on the CPU with slices of the weight dequantized to bfloat16.

        Args:
            rows_NI: Activations, bfloat16.

        Returns:
            bfloat16 [N, O].
        """
        width = self.num_words * self.kind.codes
        rows_NI = _padded(rows_NI, len(rows_NI), width)
        y_NO = rows_NI.new_empty(len(rows_NI), self.out_features)
        num_blocks = self.num_blocks
        for first in range(0, num_blocks, _SLICE // LANES):
            last = min(first + _SLICE // LANES, num_blocks)
            weight = torch.empty(width, (last - first) * LANES, dtype=torch.bfloat16)
            self._run(f"{self.kind.name}_bf16", rows_NI, rows_NI, weight, blocks=(first, last))
            start, end = first * LANES, min(last * LANES, self.out_features)
            torch.mm(rows_NI, weight[:, : end - start], out=y_NO[:, start:end])
        return y_NO

    def _run(
        self,
        kernel: str,
        panel: torch.Tensor,
        sums: torch.Tensor,
        out: torch.Tensor,
        *,
        tiles: int = 1,
        blocks: tuple[int, int] | None = None,
    ) -> None:
        # Not as attributes, which a module looks up in Python.
        buffers = self._buffers
        first, last = blocks or (0, self.num_blocks)
        lanes = first * LANES
        block_bytes = 4 * LANES * self.num_words
        num_threads = min(torch.get_num_threads(), last - first)
        arguments = _ARGUMENTS(
            0,
            buffers["words"].data_ptr() + first * block_bytes,  # type: ignore[union-attr]
            buffers["scales"].data_ptr() + lanes * self.num_groups * self.kind.scale_bytes,  # type: ignore[union-attr]
            buffers["zeros"].data_ptr() + lanes * self.num_groups,  # type: ignore[union-attr]
            panel.data_ptr(),
            sums.data_ptr(),
            out.data_ptr(),
            self.num_groups,
            self.num_words // self.num_groups,
            last - first,
            max(1, min(_TAKE_BYTES // block_bytes, (last - first) // num_threads)),
            out.stride(0) * out.element_size(),
            tiles,
        )
        team.run(f"quantized.packed_matmul.{kernel}", arguments, num_threads)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"kind={self.kind.name}, group_size={self.group_size}, bias={self.bias is not None}"
        )


def _padded(rows_NI: torch.Tensor, num_rows: int, width: int) -> torch.Tensor:
    """Return the rows, contiguous, with zeros up to so many rows and columns."""
    if rows_NI.shape == (num_rows, width):
        return rows_NI.contiguous()
    padded = rows_NI.new_zeros(num_rows, width)
    padded[: rows_NI.shape[0], : rows_NI.shape[1]] = rows_NI
    return padded


@cache
def _multiplies_tiles() -> bool:
    """Return whether the CPU multiplies tiles of bfloat16 in hardware and torch uses that."""
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe is not None and probe())

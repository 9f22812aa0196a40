"""What bitsandbytes writes about a 4-bit weight in JSON, ``quant_state``, read from strangers.

    quant_type       "nf4" or "fp4"
    blocksize        elements that share a magnitude
    dtype, shape     of the weight in full precision
    nested_*         blocks and mean of the magnitudes, where these are quantized, too

Every number is checked before it sizes anything.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Final, Literal

from forge.core.errors import CheckpointError

QuantType = Literal["nf4", "fp4"]

TORCH_NAMES: Final = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
BLOCKS: Final = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Blocks that bitsandbytes knows."""
MAX_STATE_BYTES: Final = 1 << 16
"""Beyond it a tensor holds no JSON of a state; readers ask before they read one."""
_MAX_RANK: Final = 4
_MAX_SIZE: Final = 1 << 31
_MAX_NESTED: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class QuantState:
    """What the JSON of a weight states.

    Attributes:
        quant_type: ``nf4`` or ``fp4``.
        shape: Shape of the weight.
        dtype: Its element type in full precision, in safetensors' vocabulary.
        block: Elements that share a magnitude.
        nested_block: Magnitudes that share one of their own; 0 without double quantization.
        mean: Mean of the magnitudes with double quantization, else 0.
    """

    quant_type: QuantType
    shape: tuple[int, ...]
    dtype: str
    block: int
    nested_block: int
    mean: float

    @property
    def num_elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return -(-self.num_elements // self.block)


def read_state(data: bytes) -> QuantState:
    """Read the JSON of a weight, of any writer.

    Args:
        data: The bytes of ``quant_state``.

    Raises:
        CheckpointError: It is damaged, or states something that bitsandbytes does not write.
    """
    try:
        record = json.loads(data)
        kind, name, shape = record["quant_type"], record["dtype"], record["shape"]
        block, nested = record["blocksize"], record.get("nested_blocksize", 0)
        mean = float(record.get("nested_offset", 0.0))
        dtype = next((key for key, torch in TORCH_NAMES.items() if torch == name), None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"its quant_state is damaged ({error!r})") from error
    is_sane = (
        isinstance(shape, list)
        and 1 <= len(shape) <= _MAX_RANK
        and all(type(size) is int and 0 < size <= _MAX_SIZE for size in shape)
        and type(block) is int
        and block in BLOCKS
        and type(nested) is int
        and 0 <= nested <= _MAX_NESTED
        and math.isfinite(mean)
    )
    if kind not in ("nf4", "fp4") or dtype is None or not is_sane:
        raise CheckpointError(
            f"its quant_state has type {kind!r}, dtype {name!r}, shape {shape!r}, blocks of "
            f"{block!r}; bitsandbytes writes nf4 or fp4 of a float type in blocks of "
            f"{', '.join(map(str, BLOCKS))}"
        )
    return QuantState(kind, tuple(shape), dtype, block, nested, mean)

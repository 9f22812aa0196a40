"""MXFP4 as GPT-OSS has it: the experts' weights in ``X_blocks`` and ``X_scales``.

The experts of a model are one tensor, so a read decodes all of a layer's experts: 1 GB of
GPT-OSS-20B, 4 GB of GPT-OSS-120B in bfloat16. The numbers and their order are those of
transformers' ``convert_moe_packed_tensors``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.checkpoints.dequantizing.stored import Arrays, DecodedTensor, Family, StoredTensors
from forge.formats import float4
from forge.formats.numbers import ARRAY_TYPES, numbers_of
from forge.formats.packing import transposed

_BLOCKS: Final = "_blocks"
_SCALES: Final = "_scales"
_BLOCK_BYTES: Final = float4.MXFP4_GROUP // 2


def find(stored: StoredTensors, declared: Mapping[str, object]) -> Family:
    """Find the packed experts of an MXFP4 checkpoint.

    Args:
        stored: Its tensors.
        declared: Its ``quantization_config``, which says nothing that shapes do not.

    Raises:
        CheckpointError: A part is missing or is something else.
    """
    names = [name for name in stored.infos if name.endswith(_BLOCKS)]
    tensors = [_tensor(stored, name.removesuffix(_BLOCKS)) for name in names]
    return Family("MXFP4", tuple(tensors))


def _tensor(stored: StoredTensors, name: str) -> DecodedTensor:
    shape = stored.take(f"{name}{_BLOCKS}", ("U8",)).shape
    if len(shape) != 4 or 0 in shape or shape[-1] != _BLOCK_BYTES:
        raise stored.wrong(
            name,
            f"'{name}{_BLOCKS}' is {list(shape)} and should be experts, outputs, blocks, "
            f"{_BLOCK_BYTES} bytes.",
        )
    stored.take(f"{name}{_SCALES}", float4.POWER_TYPES, shape[:-1])
    num_experts, num_out, num_blocks, _ = shape
    dtype = stored.dtype_for("BF16")
    return DecodedTensor(
        name,
        (num_experts, num_blocks * float4.MXFP4_GROUP, num_out),
        dtype,
        {"blocks": f"{name}{_BLOCKS}", "scales": f"{name}{_SCALES}"},
        partial(_decode, dtype),
    )


def _decode(dtype: str, arrays: Arrays) -> npt.NDArray[np.generic]:
    """Decode expert by expert, so that beside the result only one expert is held."""
    blocks, scales = arrays["blocks"], arrays["scales"]
    num_experts, num_out, num_blocks, num_bytes = blocks.shape
    num_in = 2 * num_blocks * num_bytes
    output = np.empty((num_experts, num_in, num_out), ARRAY_TYPES[dtype])
    for expert in range(num_experts):
        packed_OB = blocks[expert].reshape(num_out, num_blocks * num_bytes)
        weight = float4.decode_mxfp4(packed_OB, scales[expert], precision="F32")
        output[expert] = transposed(numbers_of(weight, dtype))
    return output

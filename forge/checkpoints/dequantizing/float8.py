"""FP8 checkpoints with their scales beside them: DeepSeek's, transformers', FBGEMM's, ModelOpt's.

A tensor ``X`` of 8-bit floats has its scales in ``X_scale_inv`` or ``X_scale``: one for all, one
for each row, or one for each block of ``weight_block_size``. Stacked experts are tensors without
``.weight`` and have theirs alike. A byte times its scale is computed in float32 and rounded once to
the model's type, as transformers' ``Fp8Dequantize`` does; the library's own rule that blocks divide
the weight does not hold for DeepSeek's, which are cut at the edges, and is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.checkpoints.dequantizing.stored import Arrays, DecodedTensor, Family, StoredTensors
from forge.core.errors import CheckpointError, IncompatibleError
from forge.formats import scaled_bytes
from forge.formats.numbers import numbers_of
from forge.formats.scaled_bytes import Sharing

_ENDINGS: Final = ("_scale_inv", "_scale")


def find(stored: StoredTensors, declared: Mapping[str, object]) -> Family:
    """Find the FP8 tensors of a checkpoint.

    Args:
        stored: Its tensors.
        declared: Its ``quantization_config``.

    Raises:
        IncompatibleError: It is ModelOpt's, and not FP8.
        CheckpointError: A tensor has no scale, or one that does not fit.
    """
    algorithm = declared.get("quant_algo", "FP8")
    if declared.get("quant_method") == "modelopt" and algorithm != "FP8":
        raise IncompatibleError(
            f"'{stored.label}' is quantized by ModelOpt as {algorithm!r}; of ModelOpt, forge "
            "decodes FP8. Start from the model in full precision."
        )
    block = _block(stored, declared.get("weight_block_size"))
    names = [name for name, info in stored.infos.items() if info.dtype in scaled_bytes.FLOAT_TYPES]
    tensors = [_tensor(stored, name, block) for name in names]
    shared = "" if block is None else f", blocks of {block[0]} x {block[1]}"
    return Family(f"FP8{shared}", tuple(tensor for tensor in tensors if tensor is not None))


def _block(stored: StoredTensors, stated: object) -> tuple[int, int] | None:
    if stated is None:
        return None
    if (
        not isinstance(stated, list)
        or len(stated) != 2
        or not all(type(size) is int and size > 0 for size in stated)
    ):
        raise CheckpointError(
            f"'{stored.label}': weight_block_size in config.json is {stated!r} and should be two "
            "whole numbers, such as [128, 128]."
        )
    return stated[0], stated[1]


def _tensor(
    stored: StoredTensors, name: str, block: tuple[int, int] | None
) -> DecodedTensor | None:
    scale = next((name + end for end in _ENDINGS if stored.has(name + end)), None)
    if scale is None:
        # A scale that is FP8 itself is none that this layout has; it is found left over.
        if name.endswith(_ENDINGS):
            return None
        raise CheckpointError(
            f"'{stored.label}': '{name}' is FP8 and has no scale ('{name}{_ENDINGS[0]}'). The "
            "checkpoint is incomplete; download it again."
        )
    shape = stored.take(name, scaled_bytes.FLOAT_TYPES).shape
    scale_info = stored.take(scale, scaled_bytes.SCALE_TYPES)
    sharing = scaled_bytes.sharing_of(shape, scale_info.shape, block)
    if sharing is None:
        raise CheckpointError(
            f"'{stored.label}': '{scale}' is {list(scale_info.shape)}, which fits no sharing of "
            f"scales in '{name}' of {list(shape)}. The checkpoint is damaged, or its "
            "weight_block_size belongs to another one."
        )
    dtype = stored.dtype_for(scale_info.dtype if scale_info.dtype in ("BF16", "F16") else "BF16")
    own = stored.info(name).dtype
    return DecodedTensor(
        name,
        shape,
        dtype,
        {"weight": name, "scale": scale},
        partial(_decode, own, scale_info.dtype, sharing, dtype),
    )


def _decode(
    own: str, scale_dtype: str, sharing: Sharing, dtype: str, arrays: Arrays
) -> npt.NDArray[np.generic]:
    weight = scaled_bytes.decode(
        arrays["weight"], arrays["scale"],
        dtype=own, scale_dtype=scale_dtype, sharing=sharing, precision="F32",
    )  # fmt: skip
    return numbers_of(weight, dtype).reshape(arrays["weight"].shape)

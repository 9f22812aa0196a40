"""bitsandbytes checkpoints as transformers saves them: NF4, FP4 and LLM.int8.

What a 4-bit layer is stands in JSON among its own tensors, its shape included, so the file must
be here: of a model whose headers alone were fetched nobody can say how large its weights are.
The numbers are those of ``dequantize_4bit`` and ``int8_vectorwise_dequant``, rounded to the type
that the layer had, as the library does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.checkpoints.dequantizing.stored import Arrays, DecodedTensor, Family, StoredTensors
from forge.core.errors import CheckpointError, IncompatibleError
from forge.formats import bnb_4bit, bnb_int8
from forge.formats.bnb_state import MAX_STATE_BYTES, QuantState, read_state

_STATE: Final = "weight.quant_state.bitsandbytes__"
_TITLES: Final = {"nf4": "bitsandbytes NF4", "fp4": "bitsandbytes FP4"}


def find(stored: StoredTensors, declared: Mapping[str, object]) -> Family:
    """Find the layers of a bitsandbytes checkpoint.

    Args:
        stored: Its tensors.
        declared: Its ``quantization_config``.

    Raises:
        IncompatibleError: Only its headers are here.
        CheckpointError: A part is missing or is something else.
    """
    four = {
        quant_type: [
            _four_bits(stored, module, quant_type)
            for module in stored.modules(f"{_STATE}{quant_type}")
        ]
        for quant_type in _TITLES
    }
    eight = [_eight_bits(stored, module) for module in stored.modules("SCB")]
    titles = [_TITLES[quant_type] for quant_type, tensors in four.items() if tensors]
    titles += ["bitsandbytes int8"] if eight else []
    if not titles:
        titles = [_declared_title(declared)]
    tensors = [tensor for found in (*four.values(), eight) for tensor in found]
    nested = declared.get("bnb_4bit_use_double_quant") is True and not eight
    return Family(" and ".join(titles) + (", quantized twice" if nested else ""), tuple(tensors))


def _declared_title(declared: Mapping[str, object]) -> str:
    if declared.get("load_in_8bit") is True:
        return "bitsandbytes int8"
    return _TITLES.get(str(declared.get("bnb_4bit_quant_type", "fp4")), "bitsandbytes")


def _four_bits(stored: StoredTensors, module: str, quant_type: str) -> DecodedTensor:
    name = f"{module}.{_STATE}{quant_type}"
    if stored.take(name, ("U8",)).nbytes > MAX_STATE_BYTES:
        raise stored.wrong(module, f"'{name}' is too large for what it should hold.")
    if not stored.is_readable:
        raise IncompatibleError(
            f"'{stored.label}' is in bitsandbytes' 4 bits, whose shapes stand among the weights, "
            "so it cannot be checked from afar. Download it first, and name its folder."
        )
    try:
        state = read_state(stored.read(name).tobytes())
    except CheckpointError as error:
        raise stored.wrong(module, f"{error}.") from error
    if state.quant_type != quant_type:
        raise stored.wrong(module, f"'{name}' says {state.quant_type} inside.")
    parts = {"weight": f"{module}.weight"}
    _take_packed(stored, parts["weight"], (state.num_elements + 1) // 2)
    nested = stored.has(f"{module}.weight.nested_absmax")
    shapes: dict[str, tuple[str, int]] = {
        "weight.absmax": ("U8" if nested else "F32", state.num_blocks),
        "weight.quant_map": ("F32", 16),
    }
    if nested:
        if state.nested_block < 1:
            raise stored.wrong(module, "its magnitudes are quantized, and its state is silent.")
        num_nested = -(-state.num_blocks // state.nested_block)
        shapes |= {
            "weight.nested_absmax": ("F32", num_nested),
            "weight.nested_quant_map": ("F32", 256),
        }
    for suffix, (dtype, count) in shapes.items():
        parts[suffix] = f"{module}.{suffix}"
        stored.take(parts[suffix], (dtype,), (count,))
    dtype = stored.dtype_for(state.dtype)
    return DecodedTensor(
        f"{module}.weight", state.shape, dtype, parts, partial(_decode_4bit, state, dtype)
    )


def _take_packed(stored: StoredTensors, name: str, num_bytes: int) -> None:
    """Take the codes, which may be stored as elements of any type (``bnb_4bit_quant_storage``)."""
    found = stored.take(name, ("U8", "I8", "BF16", "F16", "F32"))
    itemsize = found.nbytes // max(1, found.numel)
    if found.nbytes != -(-num_bytes // itemsize) * itemsize:
        raise CheckpointError(
            f"'{stored.label}': '{name}' has {found.nbytes} bytes, and its quant_state describes "
            f"{num_bytes}. The checkpoint is damaged."
        )


def _eight_bits(stored: StoredTensors, module: str) -> DecodedTensor:
    num_out, num_in = stored.matrix(f"{module}.weight", ("I8",))
    parts = {"weight": f"{module}.weight", "SCB": f"{module}.SCB"}
    stored.take(parts["SCB"], ("F32",), (num_out,))
    if stored.has(f"{module}.weight_format"):
        parts["weight_format"] = f"{module}.weight_format"
        if stored.take(parts["weight_format"], ("U8",)).numel != 1:
            raise stored.wrong(module, "'weight_format' is not one number.")
    dtype = stored.dtype_for("F16")
    return DecodedTensor(
        f"{module}.weight", (num_out, num_in), dtype, parts, partial(_decode_8bit, dtype)
    )


def _decode_4bit(state: QuantState, dtype: str, arrays: Arrays) -> npt.NDArray[np.generic]:
    packed = np.ascontiguousarray(arrays["weight"]).reshape(-1).view(np.uint8)
    return bnb_4bit.dequantize({**arrays, "weight": packed}, state, dtype)


def _decode_8bit(dtype: str, arrays: Arrays) -> npt.NDArray[np.generic]:
    return bnb_int8.dequantize(arrays, dtype)

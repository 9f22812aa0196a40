"""bitsandbytes' LLM.int8: rows of signed bytes, each row scaled by its largest magnitude.

    X.weight         int8 [O, I]    round(127 * w / SCB), half to even
    X.SCB            float32 [O]    largest magnitude of each row
    X.weight_format  uint8 []       0: rows as they are

The weight is rounded to float16 first, whatever it was stored in; a value beyond float16's range
is therefore refused. Equal, bit for bit, to bitsandbytes 0.50 and to what transformers 5 saves.

Reference: arXiv 2208.07339. What it says about outliers concerns activations, at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.core.errors import CheckpointError, NonFiniteError
from forge.formats.contract import Part, ScaledCodes
from forge.formats.numbers import finite_singles, numbers_of
from forge.formats.raw_weight import RawWeight
from forge.kernels.cpu import native
from forge.kernels.operands import address_of

_CHUNK: Final = 1 << 19
"""Elements quantized, hashed and written in one go, rounded to whole rows."""

_PER_STEP: Final = 7.874015718698502e-3
"""1/127, as bitsandbytes writes it."""

Emit = Callable[[str, int, "npt.NDArray[np.generic]"], None]
"""Takes a part's suffix, a byte offset in it, and the bytes."""


def parts(shape_OI: tuple[int, int]) -> tuple[Part, ...]:
    """Return what is written for a weight.

    Args:
        shape_OI: Output and input features.
    """
    return (
        Part("weight", shape_OI, "I8"),
        Part("SCB", shape_OI[:1], "F32"),
        Part("weight_format", (), "U8"),
    )


def quantize(weight: RawWeight, emit: Emit) -> None:
    """Quantize a weight, handing over each piece while it is in the cache.

    Args:
        weight: The weight.
        emit: Receives the bytes of all ``parts``.

    Raises:
        NonFiniteError: The weight holds a NaN or an infinity, or a value beyond float16's range.
    """
    rows, width = weight.shape_OI
    largest = np.empty(rows, np.float32)
    at_once = max(1, min(rows, _CHUNK // max(1, width)))
    codes = np.empty((at_once, width), np.int8)
    scratch, flags = np.empty(width, np.float32), np.zeros(1, np.int64)
    kernel = native.word_kernel("quantized.blockwise.quantize_rows", 8)
    for start in range(0, rows, at_once):
        count = min(at_once, rows - start)
        kernel(
            weight.address + start * width * weight.itemsize, weight.kind, count, width,
            address_of(codes), address_of(largest) + 4 * start,
            address_of(scratch), address_of(flags),
        )  # fmt: skip
        if flags[0] & 1:
            raise NonFiniteError("holds a NaN or an infinity")
        if flags[0]:
            raise NonFiniteError("holds a value beyond 65504, the end of float16's range")
        emit("weight", start * width, codes[:count])
    emit("SCB", 0, largest)
    emit("weight_format", 0, np.zeros(1, np.uint8))


def decode(tensors: Mapping[str, npt.NDArray[np.generic]]) -> ScaledCodes:
    """Read a weight.

    Multiplied by the row's magnitude first and by 1/127 then, each product rounded to float32, as
    bitsandbytes' ``int8_vectorwise_dequant`` does.

    Args:
        tensors: The parts by suffix.

    Raises:
        CheckpointError: A magnitude is not finite, or the rows lie in another order.
    """
    if "weight_format" in tensors and np.asarray(tensors["weight_format"]).item() != 0:
        raise CheckpointError(
            "'weight_format' says that its rows are laid out for one kind of GPU. Save the model "
            "again with a current bitsandbytes."
        )
    codes_OI = np.ascontiguousarray(tensors["weight"]).view(np.uint8) ^ np.uint8(128)
    scales_OG = finite_singles(tensors["SCB"], "F32", what="SCB")[:, None]
    return ScaledCodes(
        codes_OI,
        scales_OG,
        max(1, codes_OI.shape[1]),
        zeros_OG=np.full(scales_OG.shape, 128, np.uint8),
        factor=_PER_STEP,
    )


def dequantize(
    tensors: Mapping[str, npt.NDArray[np.generic]], dtype: str
) -> npt.NDArray[np.generic]:
    """Return the numbers that a weight's parts stand for, [O, I].

    Args:
        tensors: The parts by suffix.
        dtype: Element type of the result; ``BF16`` comes as uint16 bits.

    Raises:
        CheckpointError: As ``decode``.
    """
    return numbers_of(decode(tensors), dtype)


def quantization_config(*, modules_to_not_convert: tuple[str, ...]) -> dict[str, object]:
    """Return what ``config.json`` says under that name, as transformers writes it.

    Args:
        modules_to_not_convert: Every linear layer left as it is, the head included; empty when
            these are those that transformers leaves by itself.
    """
    return {
        "_load_in_4bit": False,
        "_load_in_8bit": True,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": False,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": list(modules_to_not_convert) or None,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": False,
        "load_in_8bit": True,
        "quant_method": "bitsandbytes",
    }

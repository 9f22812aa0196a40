"""bitsandbytes' 4-bit types, NF4 and FP4, with and without double quantization.

    X.weight                              uint8 [ceil(n/2), 1]   two codes, the first one high
    X.weight.absmax                       float32 [ceil(n/64)]   largest magnitude of each block
    X.weight.quant_map                    float32 [16]           value of each code
    X.weight.quant_state.bitsandbytes__T  uint8                  JSON: type, dtype, shape, ...

with n = O * I, blocks running on over the ends of rows, and T ``nf4`` or ``fp4``. Double
quantization stores the magnitudes, less their mean, in 8-bit codes:

    X.weight.absmax                       uint8 [ceil(n/64)]
    X.weight.nested_absmax                float32 [ceil(ceil(n/64)/256)]
    X.weight.nested_quant_map             float32 [256]

and the mean goes into the JSON, in as many digits as it takes. So the JSON's length, and with
it the layout of the file, depends on the values, and ``mean_of_blocks`` must run beforehand.

Equal, bit for bit, to what bitsandbytes 0.50 computes on an x86 CPU with one thread and what
transformers 5 saves. With several threads, torch sums the mean of a large weight in another
order, and the last digit can differ.

References: arXiv 2305.14314 (NF4, double quantization), 2110.02861 (8-bit block codes).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.core.errors import CheckpointError, NonFiniteError
from forge.formats.bnb_state import TORCH_NAMES, QuantState, QuantType
from forge.formats.contract import Part, ScaledCodes
from forge.formats.numbers import numbers_of
from forge.formats.raw_weight import RawWeight
from forge.kernels.cpu import native
from forge.kernels.operands import address_of

BLOCK: Final = 64
NESTED_BLOCK: Final = 256
_CHUNK: Final = 1 << 20
"""Elements quantized, hashed and written in one go; a multiple of ``BLOCK``."""

Emit = Callable[[str, int, "npt.NDArray[np.generic]"], None]
"""Takes a part's suffix, a byte offset in it, and the bytes."""

_NF4: Final = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution, with an exact zero."""
_FP4: Final = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
"""One sign, two exponent and one mantissa bit, in twelfths, by the bits behind the sign."""
_ORDERS: Final = {
    "nf4": tuple(range(16)),
    "fp4": (11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3),
}
"""Codes in ascending order of their values; of FP4's two zeros, 0 comes before 8."""


def parts(
    shape_OI: tuple[int, int], *, quant_type: QuantType, double_quant: bool, state: bytes
) -> tuple[Part, ...]:
    """Return what is written for a weight.

    Args:
        shape_OI: Output and input features.
        quant_type: ``nf4`` or ``fp4``.
        double_quant: Whether magnitudes are quantized, too.
        state: What ``quant_state`` returned.
    """
    count = shape_OI[0] * shape_OI[1]
    num_blocks = -(-count // BLOCK)
    found = [
        Part("weight", ((count + 1) // 2, 1), "U8"),
        Part("weight.absmax", (num_blocks,), "U8" if double_quant else "F32"),
        Part("weight.quant_map", (16,), "F32"),
    ]
    if double_quant:
        found += [
            Part("weight.nested_absmax", (-(-num_blocks // NESTED_BLOCK),), "F32"),
            Part("weight.nested_quant_map", (256,), "F32"),
        ]
    return (*found, Part(f"weight.quant_state.bitsandbytes__{quant_type}", (len(state),), "U8"))


def quant_state(
    shape_OI: tuple[int, int], dtype: str, *, quant_type: QuantType, mean: np.float32 | None
) -> bytes:
    """Return the JSON of everything that is no tensor.

    Args:
        shape_OI: Output and input features.
        dtype: Element type of the weight in full precision, in safetensors' vocabulary.
        quant_type: ``nf4`` or ``fp4``.
        mean: Mean of the blocks' magnitudes with double quantization, else ``None``.
    """
    state: dict[str, object] = {
        "quant_type": quant_type,
        "blocksize": BLOCK,
        "dtype": TORCH_NAMES[dtype],
        "shape": list(shape_OI),
    }
    if mean is not None:
        state |= {
            "nested_blocksize": NESTED_BLOCK,
            "nested_dtype": "float32",
            "nested_offset": float(mean),
        }
    return json.dumps(state).encode()


def mean_of_blocks(weight: RawWeight) -> np.float32:
    """Return the mean of the blocks' largest magnitudes.

    Args:
        weight: The weight.

    Raises:
        NonFiniteError: It holds a NaN or an infinity.
    """
    largest = np.empty(-(-weight.num_elements // BLOCK), np.float32)
    scratch, flags = np.empty(4 * BLOCK, np.uint8), np.zeros(1, np.int64)
    native.word_kernel("quantized.blockwise.largest_of_blocks", 7)(
        weight.address, weight.kind, weight.num_elements, BLOCK,
        address_of(largest), address_of(scratch), address_of(flags),
    )  # fmt: skip
    _refuse(flags)
    return _mean(largest)


def quantize(
    weight: RawWeight, emit: Emit, *, quant_type: QuantType, double_quant: bool, state: bytes
) -> None:
    """Quantize a weight, handing over each piece while it is in the cache.

    Args:
        weight: The weight.
        emit: Receives the bytes of all ``parts``.
        quant_type: ``nf4`` or ``fp4``.
        double_quant: Whether magnitudes are quantized, too.
        state: What ``quant_state`` returned.

    Raises:
        NonFiniteError: The weight holds a NaN or an infinity.
    """
    count, width = weight.num_elements, weight.itemsize
    largest = np.empty(-(-count // BLOCK), np.float32)
    packed = np.empty((min(count, _CHUNK) + 1) // 2, np.uint8)
    scratch, flags = np.empty(512, np.uint8), np.zeros(1, np.int64)
    tables = _tables(quant_type)
    kernel = native.word_kernel("quantized.blockwise.quantize_4bit", 8)
    for start in range(0, count, _CHUNK):
        length = min(_CHUNK, count - start)
        kernel(
            weight.address + start * width, weight.kind, length, address_of(tables),
            address_of(largest) + start // BLOCK * 4, address_of(packed),
            address_of(scratch), address_of(flags),
        )  # fmt: skip
        _refuse(flags)
        emit("weight", start // 2, packed[: (length + 1) // 2])
    emit("weight.quant_map", 0, code_values(quant_type))
    emit(f"weight.quant_state.bitsandbytes__{quant_type}", 0, np.frombuffer(state, np.uint8))
    if not double_quant:
        emit("weight.absmax", 0, largest)
        return
    codes, nested = _compress(largest)
    emit("weight.absmax", 0, codes)
    emit("weight.nested_absmax", 0, nested)
    emit("weight.nested_quant_map", 0, nested_values())


def magnitudes(
    tensors: Mapping[str, npt.NDArray[np.generic]], state: QuantState
) -> npt.NDArray[np.float32]:
    """Return the largest magnitude of each block, float32 [n / block].

    Args:
        tensors: The parts by suffix.
        state: What its JSON states.

    Raises:
        CheckpointError: One is not finite.
    """
    found = np.asarray(tensors["weight.absmax"]).reshape(-1)
    if "weight.nested_absmax" in tensors:
        nested = np.asarray(tensors["weight.nested_absmax"], np.float32)
        scales = np.repeat(nested, state.nested_block)[: len(found)]
        values = np.asarray(tensors["weight.nested_quant_map"], np.float32)
        # Two roundings, as bitsandbytes has them: the product, then the sum.
        with np.errstate(all="ignore"):
            found = values[found.astype(np.intp)] * scales + np.float32(state.mean)
    largest = found.astype(np.float32)
    if not np.isfinite(largest).all():
        raise CheckpointError("'absmax' holds a NaN or an infinity. The checkpoint is damaged.")
    return largest


def decode(tensors: Mapping[str, npt.NDArray[np.generic]], state: QuantState) -> ScaledCodes:
    """Read a weight of any writer: one row for each block.

    Args:
        tensors: The parts by suffix; ``weight`` as bytes.
        state: What its JSON states.

    Returns:
        Codes [n / block, block]; what is behind the last element of the weight is filling.

    Raises:
        CheckpointError: A table is not that of its type, or a magnitude is not finite.
    """
    if not np.array_equal(tensors["weight.quant_map"], code_values(state.quant_type)):
        raise CheckpointError("'quant_map' is not the table of its type.")
    packed = np.asarray(tensors["weight"], np.uint8).reshape(-1)
    codes = np.zeros((state.num_blocks * state.block // 2, 2), np.uint8)
    used = (state.num_elements + 1) // 2
    codes[:used, 0] = packed[:used] >> 4
    codes[:used, 1] = packed[:used] & 15
    return ScaledCodes(
        codes.reshape(state.num_blocks, state.block),
        magnitudes(tensors, state)[:, None],
        state.block,
        values=code_values(state.quant_type),
    )


def dequantize(
    tensors: Mapping[str, npt.NDArray[np.generic]], state: QuantState, dtype: str
) -> npt.NDArray[np.generic]:
    """Return the numbers that a weight's parts stand for, rounded as ``dequantize_4bit`` does.

    Args:
        tensors: As for ``decode``.
        state: What its JSON states.
        dtype: Element type of the result.

    Returns:
        Numbers of the weight's shape; ``BF16`` as uint16 bits.

    Raises:
        CheckpointError: As ``decode``.
    """
    weight = replace(decode(tensors, state), precision=state.dtype)
    return numbers_of(weight, dtype).reshape(-1)[: state.num_elements].reshape(state.shape)


def quantization_config(
    *, quant_type: QuantType, double_quant: bool, modules_to_not_convert: tuple[str, ...]
) -> dict[str, object]:
    """Return what ``config.json`` says under that name, as transformers writes it.

    Args:
        quant_type: ``nf4`` or ``fp4``.
        double_quant: Whether magnitudes are quantized, too.
        modules_to_not_convert: Every linear layer left as it is, the head included; empty when
            these are those that transformers leaves by itself.
    """
    return {
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": quant_type,
        "bnb_4bit_use_double_quant": double_quant,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": list(modules_to_not_convert) or None,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "quant_method": "bitsandbytes",
    }


@cache
def code_values(quant_type: QuantType) -> npt.NDArray[np.float32]:
    """Return the value of each of the 16 codes, float32 [16].

    Args:
        quant_type: ``nf4`` or ``fp4``.
    """
    if quant_type == "nf4":
        return np.array(_NF4, np.float32)
    magnitudes = np.array(_FP4, np.float32) / np.float32(12.0)
    # The code of minus zero stands for plus zero.
    return np.concatenate([magnitudes, np.float32(0.0) - magnitudes])


@cache
def nested_values() -> npt.NDArray[np.float32]:
    """Return the value of each 8-bit code of a magnitude, float32 [256], ascending.

    Seven decades; the greater a decade, the more of its means of equal steps have a code.
    """
    found = [0.0, 1.0]
    for decade in range(7):
        edges = _even_steps(2**decade + 1)
        means = (edges[:-1] + edges[1:]) / np.float32(2.0)
        scaled = (np.float32(10.0 ** (decade - 6)) * means).tolist()
        found += [*scaled, *(-value for value in scaled)]
    return np.array(sorted(found), np.float32)


def _even_steps(count: int) -> npt.NDArray[np.float32]:
    """Return ``count`` float32 values from 0.1 to 1, each half counted from its own end.

    In float64 and rounded once, as a fused multiplication and addition does.
    """
    first, last = np.float32(0.1), np.float32(1.0)
    step = np.float64((last - first) / np.float32(count - 1))
    index = np.arange(count, dtype=np.float64)
    upwards = np.float64(first) + step * index
    downwards = np.float64(last) - step * (count - 1 - index)
    return np.where(index < count // 2, upwards, downwards).astype(np.float32)


@cache
def _tables(quant_type: QuantType) -> npt.NDArray[np.int32]:
    """Return the kernel's boundaries and flips; see ``quantize_4bit``."""
    order = _ORDERS[quant_type]
    ascending = code_values(quant_type)[list(order)]
    bounds = (ascending[:-1] + ascending[1:]) / np.float32(2.0)
    flips = [order[i] ^ order[i + 1] for i in range(15)]
    return np.concatenate([bounds.view(np.int32), np.array([*flips, order[0]], np.int32)])


@cache
def _nested_codes() -> npt.NDArray[np.uint8]:
    """Return the 8-bit code of each of 65,536 positions from -1 to 1."""
    values = nested_values()
    middles = np.float32(0.5) * (values[:-1] + values[1:])
    positions = np.float32(2.0) * np.arange(65536, dtype=np.float32) / np.float32(65535.0)
    return np.searchsorted(middles, positions - np.float32(1.0), side="left").astype(np.uint8)


def _mean(largest: npt.NDArray[np.float32]) -> np.float32:
    scratch, total = np.empty(512, np.uint8), np.empty(1, np.float32)
    native.word_kernel("quantized.blockwise.sum_in_lanes", 4)(
        address_of(largest), len(largest), address_of(scratch), address_of(total)
    )
    return np.float32(total[0] / np.float32(len(largest)))


def _compress(
    largest: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    mean = np.array([_mean(largest)], np.float32)
    codes = np.empty(len(largest), np.uint8)
    nested = np.empty(-(-len(largest) // NESTED_BLOCK), np.float32)
    native.word_kernel("quantized.blockwise.quantize_8bit", 6)(
        address_of(largest), len(largest), address_of(mean), address_of(_nested_codes()),
        address_of(codes), address_of(nested),
    )  # fmt: skip
    return codes, nested


def _refuse(flags: npt.NDArray[np.int64]) -> None:
    if flags[0]:
        raise NonFiniteError("holds a NaN or an infinity")

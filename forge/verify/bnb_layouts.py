"""Read layers of bitsandbytes' layouts, decoded here from their definition.

The modules that write them are not used, so that a writer's error is not repeated by its judge:

    4 bits   element n of the weight, rows one after another, is
             quant_map[nibble n] · absmax[n div 64], the high nibble of a byte first;
             with double quantization absmax[b] = nested_quant_map[absmax[b]]
             · nested_absmax[b div 256] + nested_offset
    8 bits   weight[o, i] · SCB[o] / 127

Legend: O output features, I input features, B blocks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.formats.contract import Part
from forge.verify.stored import Arrays, Floats, Stored

_CODES: Final[Mapping[str, tuple[float, ...]]] = {
    # Quantiles of the normal distribution: Dettmers et al., QLoRA, arXiv 2305.14314, appendix E.
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    # A sign, two bits of exponent, one of mantissa; bitsandbytes' table, largest value 1.
    "fp4": (
        0.0, 0.005208333333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25,
        -0.0, -0.005208333333, -0.66666667, -1.0, -0.33333333, -0.5, -0.16666667, -0.25,
    ),
}  # fmt: skip
_BLOCK: Final = 64
_NESTED_BLOCK: Final = 256


@dataclass(frozen=True, slots=True)
class BlocksOf4Bits:
    """bitsandbytes' NF4 and FP4.

    Attributes:
        kind: ``nf4`` or ``fp4``.
        nested: Whether the blocks' scales are quantized, too.
    """

    kind: str
    nested: bool

    bound = 0.25
    group_bound = 0.9

    @property
    def name(self) -> str:
        """Name in the catalog."""
        return f"bnb-{self.kind}"

    @property
    def _state(self) -> str:
        return f"weight.quant_state.bitsandbytes__{self.kind}"

    @property
    def own_suffixes(self) -> tuple[str, ...]:
        """What stands beside the packed weight, whose own name a plain weight has, too."""
        names = ["weight.absmax", "weight.quant_map", self._state]
        if self.nested:
            names += ["weight.nested_absmax", "weight.nested_quant_map"]
        return tuple(names)

    def parts(self, shape_OI: tuple[int, int], tensors: Sequence[str]) -> tuple[Part, ...]:
        """Return the packed weight and its state; the length of its JSON is the writer's."""
        count = shape_OI[0] * shape_OI[1]
        blocks = -(-count // _BLOCK)
        found = [
            Part("weight", (-(-count // 2), 1), "U8"),
            Part("weight.absmax", (blocks,), "U8" if self.nested else "F32"),
            Part("weight.quant_map", (16,), "F32"),
            Part(self._state, (-1,), "U8"),
        ]
        if self.nested:
            found += [
                Part("weight.nested_absmax", (-(-blocks // _NESTED_BLOCK),), "F32"),
                Part("weight.nested_quant_map", (256,), "F32"),
            ]
        return tuple(found)

    def shape_of(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """Return ``None``: only the state's JSON tells."""
        return None

    def stated_shape(self, state: bytes) -> tuple[int, int] | None:
        """Return the shape in the state's JSON."""
        match _json_of(state).get("shape"):
            case [int(rows), int(columns)] if rows > 0 and columns > 0:
                return rows, columns
        return None

    def open(self, arrays: Arrays, shape_OI: tuple[int, int]) -> Stored:
        """Decode a layer and check its state."""
        faults: list[str] = []
        state = _json_of(arrays[self._state].tobytes())
        quant_map = arrays["weight.quant_map"].astype(np.float32)
        if not np.allclose(quant_map, _CODES[self.kind], rtol=0, atol=1e-7):
            faults.append(f"its quant_map is not the table of {self.kind}")
        for key, value in (("quant_type", self.kind), ("blocksize", _BLOCK)):
            if state.get(key) != value:
                faults.append(f"its quant_state has {key} {state.get(key)!r}, not {value!r}")
        if state.get("shape") != list(shape_OI):
            faults.append(f"its quant_state has shape {state.get('shape')}, not {list(shape_OI)}")
        absmax_B = self._absmax(arrays, state, faults)
        if not np.isfinite(absmax_B).all() or (absmax_B < 0).any():
            faults.append("its absmax holds NaN, infinities or negative numbers")
        packed = arrays["weight"].astype(np.uint8, copy=False).reshape(-1)
        num_in = shape_OI[1]

        def rows(begin: int, end: int) -> Floats:
            first, last = begin * num_in, end * num_in
            pairs = packed[first // 2 : -(-last // 2)]
            nibbles = np.empty(2 * len(pairs), np.uint8)
            nibbles[0::2], nibbles[1::2] = pairs >> 4, pairs & 15
            codes = nibbles[first % 2 : first % 2 + last - first]
            scales = absmax_B[np.arange(first, last) // _BLOCK]
            return (quant_map[codes] * scales).reshape(end - begin, num_in)

        return Stored(rows, _BLOCK if num_in % _BLOCK == 0 else num_in, tuple(faults))

    def _absmax(
        self, arrays: Arrays, state: Mapping[str, object], faults: list[str]
    ) -> npt.NDArray[np.float32]:
        absmax = arrays["weight.absmax"]
        if not self.nested:
            return absmax.astype(np.float32)
        offset = state.get("nested_offset")
        if state.get("nested_blocksize") != _NESTED_BLOCK or not isinstance(offset, float):
            faults.append("its quant_state has no nested_offset, or another nested_blocksize")
            return np.full(absmax.shape, np.nan, np.float32)
        table = arrays["weight.nested_quant_map"].astype(np.float32)
        outer = arrays["weight.nested_absmax"].astype(np.float32)
        if (np.diff(table) <= 0).any():
            faults.append("its nested_quant_map does not ascend")
        scales: Floats = table[absmax.astype(np.intp)]
        scales *= outer[np.arange(len(absmax)) // _NESTED_BLOCK]
        scales += np.float32(offset)
        return scales

    def config_faults(self, declared: Mapping[str, object]) -> tuple[str, ...]:
        """Check the keys that transformers decides by."""
        return _unlike(
            declared,
            {
                "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": self.kind,
                "bnb_4bit_use_double_quant": self.nested, "bnb_4bit_quant_storage": "uint8",
            },
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RowsOf8Bits:
    """bitsandbytes' LLM.int8: a scale a row."""

    name = "bnb-int8"
    own_suffixes = ("SCB", "weight_format")
    bound = 0.1
    group_bound = 0.5

    def parts(self, shape_OI: tuple[int, int], tensors: Sequence[str]) -> tuple[Part, ...]:
        """Return the codes, the rows' scales and the layout's number."""
        found = [Part("weight", shape_OI, "I8"), Part("SCB", shape_OI[:1], "F32")]
        return (*found, Part("weight_format", (), "U8"))

    def shape_of(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """Return the weight's shape."""
        shape = shapes.get("weight", ())
        return (shape[0], shape[1]) if len(shape) == 2 else None

    def stated_shape(self, state: bytes) -> tuple[int, int] | None:
        """Return ``None``: there is no state."""
        return None

    def open(self, arrays: Arrays, shape_OI: tuple[int, int]) -> Stored:
        """Decode a layer."""
        codes_OI, scales_O = arrays["weight"], arrays["SCB"].astype(np.float32)
        faults = []
        if not np.isfinite(scales_O).all() or (scales_O < 0).any():
            faults.append("its SCB holds NaN, infinities or negative numbers")
        if int(arrays["weight_format"].reshape(())) != 0:
            faults.append("its weight_format is not 0, row by row")

        def rows(begin: int, end: int) -> Floats:
            steps_O = scales_O[begin:end, None] / np.float32(127)
            return codes_OI[begin:end].astype(np.float32) * steps_O

        return Stored(rows, shape_OI[1], tuple(faults))

    def config_faults(self, declared: Mapping[str, object]) -> tuple[str, ...]:
        """Check the keys that transformers decides by."""
        return _unlike(declared, {"load_in_8bit": True, "load_in_4bit": False})


def _unlike(declared: Mapping[str, object], expected: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(
        f"'{key}' is {json.dumps(declared.get(key))}, not {json.dumps(value)}"
        for key, value in expected.items()
        if declared.get(key) != value
    )


def _json_of(state: bytes) -> Mapping[str, object]:
    try:
        value = json.loads(state)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

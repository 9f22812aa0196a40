"""Read layers of the formats of codes: AWQ, GPTQ, compressed-tensors.

They are read by the modules that also write them, so ``unpack`` and ``pack`` are put to the test.
Legend: O output features, I input features, G groups.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from forge.formats.contract import LayoutFormat, Part, Scheme
from forge.verify.stored import Arrays, Floats, Stored, kept_names


@dataclass(frozen=True, slots=True)
class GroupsOfCodes:
    """AWQ, GPTQ and compressed-tensors: ``(code - zero) * scale``, group by group.

    Attributes:
        name: Name in the catalog.
        code_format: Its module.
        scheme: Bits and groups.
    """

    name: str
    code_format: LayoutFormat
    scheme: Scheme

    @property
    def own_suffixes(self) -> tuple[str, ...]:
        """Suffixes of all parts, none of which a plain layer has."""
        width = 8 * self.scheme.group_size
        parts = self.code_format.parts((width, width), self.scheme)
        return tuple(part.suffix for part in parts)

    @property
    def bound(self) -> float:
        """A normal distribution in groups of 128 has 0.1 at 4 bits; clipping adds little to it."""
        return 0.25 * 15 / (self.scheme.num_codes - 1)

    @property
    def group_bound(self) -> float:
        """0.5 for the worst values that rounding can meet, and half a maximum clipped away."""
        return min(0.9, 0.9 * 15 / (self.scheme.num_codes - 1))

    def parts(self, shape_OI: tuple[int, int], tensors: Sequence[str]) -> tuple[Part, ...]:
        """Return the format's parts."""
        return self.code_format.parts(shape_OI, self.scheme)

    def shape_of(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """Return the weight's shape."""
        try:
            return self.code_format.shape_of(shapes, self.scheme)
        except (KeyError, ValueError, IndexError):
            return None

    def stated_shape(self, state: bytes) -> tuple[int, int] | None:
        """Return ``None``: there is no state."""
        return None

    def open(self, arrays: Arrays, shape_OI: tuple[int, int]) -> Stored:
        """Unpack a layer, and pack it again to see that it gives the same bytes."""
        weight = self.code_format.unpack(arrays, shape_OI=shape_OI, scheme=self.scheme)
        again = self.code_format.pack(weight)
        faults = [
            f"its {suffix} is not what packing its codes again gives"
            for suffix, array in arrays.items()
            if suffix not in again or again[suffix].tobytes() != array.tobytes()
        ]
        if not np.isfinite(weight.scales_OG).all():
            faults.append("its scales hold NaN or infinities")
        elif (weight.scales_OG < 0).any():
            faults.append("its scales hold negative numbers")
        size = self.scheme.group_size
        codes_OI, scales_OG = weight.codes_OI, weight.scales_OG.astype(np.float32)
        zeros_OG = weight.zeros_OG.astype(np.float32)

        def rows(begin: int, end: int) -> Floats:
            values = codes_OI[begin:end].reshape(end - begin, -1, size).astype(np.float32)
            values -= zeros_OG[begin:end, :, None]
            values *= scales_OG[begin:end, :, None]
            return values.reshape(end - begin, -1)

        return Stored(rows, size, tuple(faults))

    def config_faults(self, declared: Mapping[str, object]) -> tuple[str, ...]:
        """Compare with what the format itself would have written."""
        expected = self.code_format.quantization_config(self.scheme, kept_names(declared))
        return tuple(
            f"'{key}' is {json.dumps(declared.get(key))}, not {json.dumps(expected.get(key))}"
            for key in sorted(expected.keys() | declared.keys())
            if json.dumps(expected.get(key)) != json.dumps(declared.get(key))
        )

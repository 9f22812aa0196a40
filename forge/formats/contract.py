"""What layouts take and give: the values and protocols of this room.

Methods (how codes are chosen) and layouts (how they lie on disk) never import each other. They
meet in ``QuantizedWeight``. Legend of shape suffixes: O output features, I input features,
G groups of input features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Scheme:
    """Which numbers a group of weights may become.

    Attributes:
        bits: Bits of one code.
        group_size: Neighbouring input features that share a scale and a zero point.
        symmetric: Whether the zero point is fixed at the middle code.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = False

    @property
    def num_codes(self) -> int:
        """How many codes there are."""
        return 1 << self.bits


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A linear layer's weight in codes: ``weight = (codes - zeros) * scales``, group by group.

    Attributes:
        codes_OI: uint8, each below ``scheme.num_codes``.
        scales_OG: float16, finite and not negative.
        zeros_OG: uint8, each below ``scheme.num_codes``.
        scheme: Bits and groups.
    """

    codes_OI: npt.NDArray[np.uint8]
    scales_OG: npt.NDArray[np.float16]
    zeros_OG: npt.NDArray[np.uint8]
    scheme: Scheme


@dataclass(frozen=True, slots=True)
class ScaledCodes:
    """A weight as any layout may hold it, wider than what methods choose: for reading only.

    ``weight = (value of the code - zero point) * scale * factor``, group by group; see
    ``numbers_of`` for the roundings.

    Attributes:
        codes_OI: uint8.
        scales_OG: float32, finite, of any sign.
        group_size: Neighbouring columns that share a scale; the last group may have fewer.
        zeros_OG: uint8, for codes that are their own values; ``None`` for zeros.
        values: float32 [256], the value of each code; ``None`` when a code is its own value.
        groups_I: int32, each below G: the group of each column, where columns are reordered.
        factor: A second factor, multiplied after the scale.
        precision: Element type in which the format's library multiplies; the product is rounded
            to it before anything else.
    """

    codes_OI: npt.NDArray[np.uint8]
    scales_OG: npt.NDArray[np.float32]
    group_size: int
    zeros_OG: npt.NDArray[np.uint8] | None = None
    values: npt.NDArray[np.float32] | None = None
    groups_I: npt.NDArray[np.int32] | None = None
    factor: float = 1.0
    precision: str = "F32"


@dataclass(frozen=True, slots=True)
class Part:
    """One of the tensors that a format writes for a linear layer.

    Attributes:
        suffix: What follows the layer's name and a dot: ``qweight``, ``weight.absmax``.
        shape: Dimensions.
        dtype: Name in safetensors' vocabulary.
    """

    suffix: str
    shape: tuple[int, ...]
    dtype: str


class CodeFormat(Protocol):
    """A layout of codes, scales and zero points. Modules of this room satisfy it."""

    def parts(self, shape_OI: tuple[int, int], scheme: Scheme) -> tuple[Part, ...]:
        """Return what is written for a weight; raise ``IncompatibleError`` where it cannot be."""

    def pack(self, weight: QuantizedWeight) -> dict[str, npt.NDArray[np.generic]]:
        """Return the arrays of ``parts`` by suffix."""

    def unpack(
        self,
        parts: Mapping[str, npt.NDArray[np.generic]],
        *,
        shape_OI: tuple[int, int],
        scheme: Scheme,
    ) -> QuantizedWeight:
        """Return the weight whose ``pack`` is exactly these arrays."""

    def quantization_config(
        self, scheme: Scheme, modules_to_not_convert: Sequence[str]
    ) -> dict[str, object]:
        """Return what ``config.json`` says under that name."""


class LayoutFormat(CodeFormat, Protocol):
    """A layout that can also tell its own checkpoints' schemes and shapes."""

    def scheme_of(self, config: Mapping[str, object]) -> Scheme:
        """Return the scheme of a ``quantization_config``; raise ``CheckpointError`` on others."""

    def shape_of(self, shapes: Mapping[str, tuple[int, ...]], scheme: Scheme) -> tuple[int, int]:
        """Return the shape [O, I] of the weight whose parts have these shapes, by suffix."""

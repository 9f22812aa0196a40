"""What methods hand over, what formats lay out: values and protocols that cross the border.

Methods (how codes are chosen) and formats (how they lie on disk) never import each other. They
meet in ``QuantizedWeight``. Legend of shape suffixes: O output features, I input features,
G groups of input features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """A layout of codes, scales and zero points. Modules of ``formats/`` satisfy it."""

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


@dataclass(frozen=True, slots=True)
class PlainTensor:
    """A tensor in full precision that quantization changed, such as a norm that took in scales.

    Attributes:
        data: Its raw bytes, uint8, contiguous.
        dtype: Name in safetensors' vocabulary, that of the source.
        shape: Dimensions, those of the source.
    """

    data: npt.NDArray[np.uint8]
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlockResult:
    """One decoder block, quantized.

    Attributes:
        index: Number of the block.
        weights: Quantized linear layers by module name (``model.layers.0.mlp.up_proj``).
        folded: Changed tensors in full precision by tensor name; everything else is copied.
        statistics: What was measured of each module, plain JSON values.
    """

    index: int
    weights: Mapping[str, QuantizedWeight]
    folded: Mapping[str, PlainTensor] = field(default_factory=dict)
    statistics: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

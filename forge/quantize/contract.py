"""What methods hand over beside codes: changed tensors, and whole decoder blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from forge.formats.contract import QuantizedWeight


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

"""What ``forge verify`` must know of a layout: parts, constants, the weights they stand for.

Legend: O output features, I input features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from forge.formats.contract import Part

Floats = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[np.generic]]

NUMPY: Final[Mapping[str, type[np.generic]]] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
"""numpy's types by safetensors' names; bfloat16 as its bits."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A quantized linear layer that was read.

    Attributes:
        rows: Returns the weights of rows ``[begin, end)``, float32 ``[rows, I]``.
        group_size: Neighbouring input features that share a scale.
        faults: What is wrong with the parts themselves, each a sentence's end.
    """

    rows: Callable[[int, int], Floats]
    group_size: int
    faults: tuple[str, ...] = ()


class Layout(Protocol):
    """One of the layouts that forge writes, with the scheme of a checkpoint."""

    @property
    def name(self) -> str:
        """Name in the catalog, such as ``awq-gemm``."""

    @property
    def own_suffixes(self) -> tuple[str, ...]:
        """Suffixes that only a quantized layer has."""

    @property
    def bound(self) -> float:
        """Largest acceptable error of a tensor relative to its norm."""

    @property
    def group_bound(self) -> float:
        """Largest acceptable error of a group relative to its norm."""

    def parts(self, shape_OI: tuple[int, int], tensors: Sequence[str]) -> tuple[Part, ...]:
        """Return what must be there for a weight, ``tensors`` being the suffixes that are."""

    def shape_of(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
        """Return the weight's shape by the shapes of its parts, or ``None`` when it is not told."""

    def stated_shape(self, state: bytes) -> tuple[int, int] | None:
        """Return the weight's shape by the bytes of a ``quant_state``, where there is one."""

    def open(self, arrays: Arrays, shape_OI: tuple[int, int]) -> Stored:
        """Read a layer; its arrays have the types and shapes of ``parts``."""

    def config_faults(self, declared: Mapping[str, object]) -> tuple[str, ...]:
        """Return where ``quantization_config`` is not what the layout's consumers expect."""


def kept_names(declared: Mapping[str, object]) -> tuple[str, ...]:
    """Return the modules in full precision that a ``quantization_config`` lists.

    Args:
        declared: The ``quantization_config``; each method has a key of its own for them.
    """
    for key in ("modules_to_not_convert", "llm_int8_skip_modules", "ignore"):
        names = declared.get(key)
        if isinstance(names, list):
            return tuple(str(name) for name in names)
    patterns = declared.get("dynamic")
    if not isinstance(patterns, Mapping):
        return ()
    # GPTQ's own: a minus, a colon, and a regular expression.
    return tuple(
        pattern.removeprefix("-:").replace("\\.", ".")
        for pattern in patterns
        if isinstance(pattern, str) and pattern.startswith("-:")
    )

"""The tensors of a quantized checkpoint by layer, and the checks that all families share.

A family (``families.py``) looks for its layers by the name of one part, and takes every part by
name with the shape and the types that it may have. What is wrong is then said before the first
weight is read, by the name of the tensor; what nobody took is found at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.checkpoints.header import TensorInfo
from forge.checkpoints.source import TensorSource
from forge.core.dtypes import BY_TORCH_NAME
from forge.core.errors import CheckpointError
from forge.formats.numbers import ARRAY_TYPES, FLOATS

Arrays = Mapping[str, npt.NDArray[np.generic]]
"""A layer's parts, by suffix or by name as its family took them."""

_SHOWN: Final = 3
_OF_ACTIVATIONS: Final = (
    "input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point",
    "activation_scale", "act_scale", "k_scale", "v_scale", "q_scale", "prob_scale", "kv_scale",
    "k_zero_point", "v_zero_point", "q_zero_point",
)  # fmt: skip
"""Last parts of names: what scales activations and caches at run time, and is no weight."""
_OF_CODES: Final = (
    "qweight", "qzeros", "g_idx", "weight_packed", "weight_scale", "weight_scale_2",
    "weight_scale_inv", "weight_zero_point", "weight_global_scale", "weight_shape", "weight_g_idx",
    "SCB", "weight_format", "absmax", "quant_map", "nested_absmax", "nested_quant_map",
    "bitsandbytes__nf4", "bitsandbytes__fp4",
)  # fmt: skip
"""Last parts of names that only quantized layers have."""


@dataclass(frozen=True, slots=True)
class DecodedTensor:
    """A weight that is computed when it is read.

    Attributes:
        name: Its name in full precision.
        shape: Its shape.
        dtype: Its element type: ``BF16``, ``F16`` or ``F32``.
        parts: Names of the stored tensors that it is computed from, by the key under which
            ``decode`` expects each.
        decode: Computes it, of that shape; ``BF16`` as uint16 bits.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    parts: Mapping[str, str]
    decode: Callable[[Arrays], npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Family:
    """What a family found in a checkpoint.

    Attributes:
        title: What the tensors are, for people: ``GPTQ, 4 bits``.
        tensors: All that is quantized.
    """

    title: str
    tensors: tuple[DecodedTensor, ...]


class StoredTensors:
    """The tensors of a quantized checkpoint, as they lie in its files.

    Args:
        source: The checkpoint's tensors.
        config: Its ``config.json``.
    """

    def __init__(self, source: TensorSource, config: Mapping[str, object]) -> None:
        self._source = source
        self._infos = {name: source.info(name) for name in source.names()}
        self._taken: set[str] = set()
        self._dtype = _stated_dtype(config)

    @property
    def label(self) -> str:
        """What the user typed, for messages."""
        return self._source.label

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in file order."""
        return self._infos

    def dtype_for(self, library: str) -> str:
        """Return the element type that decoded weights get.

        Args:
            library: What the format's own library gives, for a ``config.json`` that states none.
        """
        return self._dtype or (library if library in FLOATS else "BF16")

    def modules(self, suffix: str) -> list[str]:
        """Return the modules that have a tensor of this last part of its name, in file order.

        Args:
            suffix: The last part, or the last parts, such as ``qweight``.
        """
        ending = f".{suffix}"
        return [name[: -len(ending)] for name in self._infos if name.endswith(ending)]

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's metadata.

        Args:
            name: The tensor.

        Raises:
            CheckpointError: There is no such tensor, although a layer needs it.
        """
        found = self._infos.get(name)
        if found is None:
            raise CheckpointError(
                f"'{self.label}' lacks '{name}', although it has other parts of that layer. "
                "The checkpoint is incomplete; download it again."
            )
        return found

    def has(self, name: str) -> bool:
        """Tell whether there is a tensor.

        Args:
            name: The tensor.
        """
        return name in self._infos

    def take(
        self, name: str, dtypes: Collection[str], shape: Sequence[int] | None = None
    ) -> TensorInfo:
        """Return a part of a layer, checked.

        Args:
            name: The tensor.
            dtypes: Element types that it may have.
            shape: The shape that it must have; ``None`` when it says the layer's shape itself.

        Raises:
            CheckpointError: It is missing, or is something else.
        """
        found = self.info(name)
        fits = shape is None or found.shape == tuple(shape)
        if found.dtype not in dtypes or not fits:
            wanted = " or ".join(dtypes)
            raise CheckpointError(
                f"'{self.label}': '{name}' is {found.dtype} {list(found.shape)} and should be "
                f"{wanted}{'' if shape is None else f' {list(shape)}'}. The checkpoint is damaged, "
                "or its config.json belongs to another one."
            )
        self._taken.add(name)
        return found

    def matrix(self, name: str, dtypes: Collection[str]) -> tuple[int, int]:
        """Take a part that is a matrix of at least one element, and return its shape.

        Args:
            name: The tensor.
            dtypes: Element types that it may have.

        Raises:
            CheckpointError: As ``take``, or it is no matrix.
        """
        shape = self.take(name, dtypes).shape
        if len(shape) != 2 or 0 in shape:
            raise CheckpointError(f"'{self.label}': '{name}' is {list(shape)} and no matrix.")
        return shape[0], shape[1]

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """Return a small tensor at once, one that says what others are.

        Args:
            name: The tensor.

        Raises:
            CheckpointError: It cannot be read; of a model on the Hub, only headers are here.
        """
        return array_of(self._source, name)

    @property
    def is_readable(self) -> bool:
        """Whether tensors can be read; of a model whose headers alone were fetched they cannot."""
        return bool(self._source.files()) or not self._infos

    def wrong(self, module: str, what: str) -> CheckpointError:
        """Return an error about a layer.

        Args:
            module: The layer.
            what: What is the matter, a sentence.
        """
        return CheckpointError(
            f"'{self.label}', layer '{module}': {what} The checkpoint is damaged, or its "
            "config.json belongs to another one."
        )

    def left_over(self, title: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Sort what no layer took.

        Args:
            title: What the family is called, for messages.

        Returns:
            Names of plain tensors, and of scales of activations and caches.

        Raises:
            CheckpointError: Something is left that only a quantized layer has.
        """
        rest = [name for name in self._infos if name not in self._taken]
        odd = [name for name in rest if _is_coded(self._infos[name])]
        if odd:
            more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            raise CheckpointError(
                f"'{self.label}': '{odd[0]}'{more} belongs to no layer that is whole as {title}. "
                "The checkpoint is damaged, or a mixture that its config.json does not describe."
            )
        scales = tuple(name for name in rest if name.rpartition(".")[2] in _OF_ACTIVATIONS)
        return tuple(name for name in rest if name not in set(scales)), scales


def array_of(source: TensorSource, name: str) -> npt.NDArray[np.generic]:
    """Return a stored tensor as an array of ``ARRAY_TYPES``.

    Args:
        source: The checkpoint's tensors.
        name: The tensor.
    """
    info = source.info(name)
    return np.frombuffer(source.read(name), ARRAY_TYPES[info.dtype]).reshape(info.shape)


def _is_coded(info: TensorInfo) -> bool:
    last = info.name.rpartition(".")[2]
    if last in _OF_ACTIVATIONS:
        return False
    return (
        last in _OF_CODES
        or info.dtype.startswith("F8_")
        or (info.dtype in ("I8", "U8") and last.endswith(("weight", "_blocks", "_scales")))
    )


def _stated_dtype(config: Mapping[str, object]) -> str | None:
    """Return the type of the weights that a ``config.json`` states, where kernels read it."""
    for section in (config, config.get("text_config")):
        if not isinstance(section, Mapping):
            continue
        for key in ("dtype", "torch_dtype"):
            stated = section.get(key)
            row = (
                BY_TORCH_NAME.get(stated.removeprefix("torch."))
                if isinstance(stated, str)
                else None
            )
            if row is not None and row.name in FLOATS:
                return row.name
    return None

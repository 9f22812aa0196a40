"""Read a quantized checkpoint as if it had been dequantized.

Names, shapes and types are those of the model in full precision, known from the headers alone.
A weight is computed when it is read and kept by nobody, so no dequantized copy of the model ever
exists: a reader holds one tensor, as with every other source. Tensors in full precision are views
of the mapped files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from forge.checkpoints.dequantizing.stored import DecodedTensor, array_of
from forge.checkpoints.header import TensorInfo
from forge.checkpoints.source import TensorSource
from forge.core.dtypes import DTYPES
from forge.core.errors import CheckpointError, IncompatibleError

_NUMBERS: Final = re.compile(r"([0-9]+)")


class DequantizingSource:
    """The plain weights of a quantized checkpoint. Safe to use from many threads.

    ``info`` of a decoded tensor has the place of its first part; the bytes there are not what
    ``read`` returns.

    Args:
        stored: The tensors as they lie in the files.
        decoded: What is computed.
        plain: Names of the tensors that are in full precision.
    """

    def __init__(
        self, stored: TensorSource, decoded: Sequence[DecodedTensor], plain: Sequence[str]
    ) -> None:
        self._stored = stored
        self._decoded = {tensor.name: tensor for tensor in decoded}
        self._infos = _in_order(stored, self._decoded, plain)

    @property
    def label(self) -> str:
        """What the user typed, for messages."""
        return self._stored.label

    def names(self) -> tuple[str, ...]:
        """Return all tensor names: file by file, and in a file by name."""
        return tuple(self._infos)

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's metadata in full precision.

        Args:
            name: The tensor.

        Raises:
            CheckpointError: There is no such tensor.
        """
        try:
            return self._infos[name]
        except KeyError:
            raise CheckpointError(f"'{self.label}' has no tensor '{name}'.") from None

    def read(self, name: str) -> memoryview:
        """Return a tensor's bytes in full precision.

        Args:
            name: The tensor.

        Returns:
            A view of the file, or of newly computed bytes.

        Raises:
            CheckpointError: There is no such tensor, or its parts do not fit together.
        """
        tensor = self._decoded.get(name)
        if tensor is None:
            return self._stored.read(self.info(name).name)
        arrays = {key: array_of(self._stored, part) for key, part in tensor.parts.items()}
        try:
            values = tensor.decode(arrays)
        except (CheckpointError, IncompatibleError) as error:
            raise CheckpointError(f"'{self.label}', '{name}': {error}") from error
        return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data.toreadonly()

    def prefetch(self, name: str) -> None:
        """Tell the system that a tensor's parts will be read soon.

        Args:
            name: The tensor.
        """
        tensor = self._decoded.get(name)
        for part in (name,) if tensor is None else tensor.parts.values():
            self._stored.prefetch(part)

    def files(self) -> tuple[Path, ...]:
        """Return the weight files, in file order."""
        return self._stored.files()

    def close(self) -> None:
        """Release the files; views that are still held stay valid."""
        self._stored.close()


def _in_order(
    stored: TensorSource, decoded: Mapping[str, DecodedTensor], plain: Sequence[str]
) -> dict[str, TensorInfo]:
    """Return all tensors: file by file, and by name in a file, numbers as numbers.

    Files hold tensors by element size first, so the parts of a layer lie far apart, and the order
    of any one of them would tear a decoder block to pieces.
    """
    infos = [
        _info_of(tensor, stored.info(next(iter(tensor.parts.values()))))
        for tensor in decoded.values()
    ]
    for name in plain:
        if name in decoded:
            raise CheckpointError(
                f"'{stored.label}' holds '{name}' twice, in full precision and quantized. It is "
                "left over from another model; restore the original files."
            )
        infos.append(stored.info(name))
    files = dict.fromkeys(stored.info(name).file for name in stored.names())
    places = {file: number for number, file in enumerate(files)}
    infos.sort(key=lambda info: (places[info.file], _natural(info.name)))
    return {info.name: info for info in infos}


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts layer 2 before layer 10."""
    return [
        (int(part), "") if part.isdecimal() and part.isascii() else (-1, part)
        for part in _NUMBERS.split(name)
    ]


def _info_of(tensor: DecodedTensor, part: TensorInfo) -> TensorInfo:
    nbytes = math.prod(tensor.shape) * DTYPES[tensor.dtype].itemsize
    return TensorInfo(tensor.name, tensor.shape, tensor.dtype, part.file, part.offset, nbytes)

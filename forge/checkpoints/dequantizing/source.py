"""Read a quantized checkpoint as if it had been dequantized.

Names, shapes and types are those of the model in full precision, known from the headers alone.
A weight is computed when it is read and kept by nobody, so no dequantized copy of the model ever
exists: a reader holds one tensor, as with every other source. Tensors in full precision are views
of the mapped files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from forge.checkpoints.dequantizing.stored import DecodedTensor, array_of
from forge.checkpoints.header import TensorInfo
from forge.checkpoints.source import TensorSource
from forge.core.dtypes import DTYPES
from forge.core.errors import CheckpointError, IncompatibleError


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
        self._infos = _in_file_order(stored, self._decoded, plain)

    @property
    def label(self) -> str:
        """What the user typed, for messages."""
        return self._stored.label

    def names(self) -> tuple[str, ...]:
        """Return all tensor names: a decoded one where its first part lies."""
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


def _in_file_order(
    stored: TensorSource, decoded: Mapping[str, DecodedTensor], plain: Sequence[str]
) -> dict[str, TensorInfo]:
    kept = frozenset(plain)
    owner: dict[str, DecodedTensor] = {
        part: tensor for tensor in decoded.values() for part in tensor.parts.values()
    }
    found: dict[str, TensorInfo] = {}
    for name in stored.names():
        tensor = owner.get(name)
        if tensor is None:
            if name not in kept:
                continue
            info = stored.info(name)
        elif tensor.name in found:
            continue
        else:
            info = _info_of(tensor, stored.info(name))
        if info.name in found:
            raise CheckpointError(
                f"'{stored.label}' holds '{info.name}' twice, in full precision and quantized. "
                "It is left over from another model; restore the original files."
            )
        found[info.name] = info
    return found


def _info_of(tensor: DecodedTensor, part: TensorInfo) -> TensorInfo:
    numel = 1
    for size in tensor.shape:
        numel *= size
    nbytes = numel * DTYPES[tensor.dtype].itemsize
    return TensorInfo(tensor.name, tensor.shape, tensor.dtype, part.file, part.offset, nbytes)

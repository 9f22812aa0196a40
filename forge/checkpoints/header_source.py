"""A model of which only the headers are here, for checks that need no weights."""

from __future__ import annotations

from pathlib import Path

from forge.checkpoints.header import TensorInfo
from forge.checkpoints.source import SafetensorsSource
from forge.core.errors import CheckpointError


class HeaderOnlySource:
    """The metadata of tensors that have not been downloaded.

    Args:
        headers: A source over headers; its files need not exist.
    """

    def __init__(self, headers: SafetensorsSource) -> None:
        self._headers = headers

    @property
    def label(self) -> str:
        """What the user typed, for messages."""
        return self._headers.label

    def names(self) -> tuple[str, ...]:
        """Return all tensor names, in file order."""
        return self._headers.names()

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's metadata; its file is where a download would put it.

        Args:
            name: The tensor.

        Returns:
            Its place and shape.

        Raises:
            CheckpointError: There is no such tensor.
        """
        return self._headers.info(name)

    def read(self, name: str) -> memoryview:
        """Refuse: there are no bytes.

        Args:
            name: The tensor.

        Raises:
            CheckpointError: Always.
        """
        raise CheckpointError(
            f"'{self.label}': tensor '{name}' has not been downloaded; only headers were read."
        )

    def prefetch(self, name: str) -> None:
        """Do nothing; there are no bytes.

        Args:
            name: The tensor.
        """

    def files(self) -> tuple[Path, ...]:
        """Return no file, because none is here."""
        return ()

    def close(self) -> None:
        """Do nothing; no file is open."""

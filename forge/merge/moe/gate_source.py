"""Routers as a model's tensors, so that a plan can copy them like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from forge.checkpoints.header import TensorInfo
from forge.core.errors import CheckpointError
from forge.merge.moe.gates import Gates


class GateSource:
    """The routers of a mixture, in memory.

    Args:
        gates: Router weights by their names in the output.
    """

    def __init__(self, gates: Gates) -> None:
        self._gates = {name: np.ascontiguousarray(rows, np.float32) for name, rows in gates.items()}

    @property
    def label(self) -> str:
        """What messages call it."""
        return "the routers"

    def names(self) -> tuple[str, ...]:
        """Return the names of all routers."""
        return tuple(self._gates)

    def info(self, name: str) -> TensorInfo:
        """Return a router's metadata; it lies in no file.

        Args:
            name: The router.

        Raises:
            CheckpointError: There is no such router.
        """
        rows = self._rows(name)
        return TensorInfo(name, rows.shape, "F32", Path("routers"), 0, rows.nbytes)

    def read(self, name: str) -> memoryview:
        """Return a router's bytes.

        Args:
            name: The router.

        Raises:
            CheckpointError: There is no such router.
        """
        return self._rows(name).reshape(-1).view(np.uint8).data.toreadonly()

    def prefetch(self, name: str) -> None:
        """Do nothing: all of it is in memory."""

    def files(self) -> tuple[Path, ...]:
        """Return no file."""
        return ()

    def close(self) -> None:
        """Do nothing: there is no file."""

    def _rows(self, name: str) -> npt.NDArray[np.float32]:
        try:
            return self._gates[name]
        except KeyError:
            raise CheckpointError(f"There is no router '{name}'.") from None

"""Hidden states of all calibration tokens between two blocks.

Each block reads them and leaves its own in their place, so they are held once, in the precision
in which the model would hold them. What is too large for memory lies in a mapped file without a
name, which is gone when the process is.

Legend: S sequences, B sequences of a batch, T tokens of each, D hidden size.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import IO

import numpy as np
import torch

from forge.core.errors import OutputError

BATCH_TOKENS = 512
"""Tokens that go through a block at once: enough to keep a product busy, few enough that the
activations of a wide MLP stay small."""


class HiddenStates:
    """Hidden states, batch by batch.

    Args:
        num_sequences: S.
        num_tokens: T.
        dtype: ``torch.bfloat16`` or ``torch.float32``.
        spill_folder: Where a mapped file goes; ``None`` for the system's temporary folder.
        spill_above_bytes: Size from which they are mapped.

    Attributes:
        batches: The sequences of each batch.
        num_sequences: S.
        is_spilled: Whether they lie in a file; known after the first ``put``.
    """

    def __init__(
        self,
        num_sequences: int,
        num_tokens: int,
        *,
        dtype: torch.dtype,
        spill_folder: Path | None,
        spill_above_bytes: int,
    ) -> None:
        size = max(1, BATCH_TOKENS // num_tokens)
        self.batches = [
            slice(start, min(start + size, num_sequences))
            for start in range(0, num_sequences, size)
        ]
        self.num_sequences = num_sequences
        self.is_spilled = False
        self._shape = (num_sequences, num_tokens)
        self._dtype = dtype
        self._folder = spill_folder
        self._limit = spill_above_bytes
        self._states_STD: torch.Tensor | None = None

    def put(self, batch: int, states_BTD: torch.Tensor) -> None:
        """Store the states of a batch, rounded.

        Args:
            batch: Its number.
            states_BTD: float32 or bfloat16.

        Raises:
            OutputError: They must be spilled, and there is no room.
        """
        if self._states_STD is None:
            self._states_STD = self._allocate(states_BTD.shape[-1])
        self._states_STD[self.batches[batch]] = states_BTD.to("cpu", self._dtype)

    def get(self, batch: int) -> torch.Tensor:
        """Return the states of a batch, float32 [B, T, D], a copy.

        Args:
            batch: Its number.
        """
        assert self._states_STD is not None
        return self._states_STD[self.batches[batch]].to(torch.float32, copy=True)

    def _allocate(self, width: int) -> torch.Tensor:
        shape = (*self._shape, width)
        itemsize = 2 if self._dtype is torch.bfloat16 else 4
        num_bytes = itemsize * shape[0] * shape[1] * shape[2]
        if num_bytes <= self._limit:
            return torch.empty(shape, dtype=self._dtype)
        self.is_spilled = True
        try:
            # The map keeps the file, which has no name, until the process ends.
            with tempfile.TemporaryFile(dir=self._folder) as file:
                _reserve(file, num_bytes)
                words = np.uint16 if itemsize == 2 else np.float32
                mapped = np.memmap(file, words, "r+", shape=shape)
        except OSError as error:
            where = self._folder or tempfile.gettempdir()
            raise OutputError(
                f"The hidden states of the calibration set ({num_bytes / 1e9:.1f} GB) do not fit "
                f"into '{where}': {error.strerror}. Take fewer or shorter samples, or point TMPDIR "
                "to a larger disk."
            ) from error
        return torch.from_numpy(np.asarray(mapped)).view(self._dtype)


def _reserve(file: IO[bytes], num_bytes: int) -> None:
    try:
        # A map of a file with holes turns a full disk into a signal that kills the process.
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(file.fileno(), num_bytes)

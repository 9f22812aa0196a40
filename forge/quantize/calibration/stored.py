"""Tokens as a file beside the output, so that a run repeats whatever its text has become.

The file is ``.npy``, not safetensors: servers load every safetensors file of a model's folder,
and would take the tokens for weights.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.core.errors import CheckpointError

TOKENS_FILE: Final = "calibration_tokens.npy"
"""Name beside the output."""
_MAX_BYTES: Final = 1 << 30

Tokens = npt.NDArray[np.int64]


def digest(tokens_BT: Tokens) -> str:
    """Identify a calibration set.

    Args:
        tokens_BT: int64 [B, T].

    Returns:
        Hexadecimal SHA-256 of shape and tokens; the same on every machine.
    """
    hasher = hashlib.sha256(f"{tokens_BT.shape}".encode())
    hasher.update(np.ascontiguousarray(tokens_BT, "<i8").data)
    return hasher.hexdigest()


def dump_tokens(tokens_BT: Tokens) -> bytes:
    """Return the content of :data:`TOKENS_FILE`.

    Args:
        tokens_BT: int64 [B, T].

    Returns:
        A ``.npy`` file of int32, which holds every vocabulary.
    """
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(tokens_BT, "<i4"), allow_pickle=False)
    return file.getvalue()


def load_tokens(path: Path) -> Tokens:
    """Read tokens that an earlier run stored.

    Args:
        path: A ``.npy`` file of whole numbers [B, T].

    Returns:
        int64 [B, T].

    Raises:
        CheckpointError: There is no such file, or it holds something else.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"'{path}' is larger than 1 GiB; is it a file of tokens?")
        # Mapped, a header that claims more than the file holds allocates nothing.
        held = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    except (ValueError, EOFError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"'{path}' is no .npy file of tokens, such as the {TOKENS_FILE} beside an output."
        ) from error
    if held.dtype.kind not in "iu" or held.ndim != 2:
        raise CheckpointError(f"'{path}' must hold whole numbers, one row for each sequence.")
    return held.astype(np.int64)

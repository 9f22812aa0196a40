"""Hash a file and the tensors in it from the same blocks.

A checkpoint that is larger than the page cache is so read once and not twice.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forge.checkpoints.hashing import Algorithm
from forge.checkpoints.header import TensorInfo

if TYPE_CHECKING:
    from forge.merge.progress import Progress

_BLOCK_BYTES: Final = 1 << 20


def digest_file(
    path: Path,
    tensors: Sequence[TensorInfo],
    algorithm: Algorithm,
    progress: Progress | None,
    stop: threading.Event,
) -> tuple[str, dict[str, str]]:
    """Hash a file and, from the same blocks, the tensors in it.

    Args:
        path: The file.
        tensors: Where its tensors lie.
        algorithm: How to hash the whole file; tensors are hashed by BLAKE3.
        progress: Hears of every block.
        stop: Ends the reading early; the digests are then meaningless.

    Returns:
        The file's digest, and those of the tensors by name; all hexadecimal.

    Raises:
        OSError: The file cannot be read.
    """
    import blake3

    whole = hashlib.sha256() if algorithm == "sha256" else blake3.blake3()
    digests: dict[str, str] = {}
    queue = sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes))
    current, number = blake3.blake3(), 0
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    position = 0
    with path.open("rb", buffering=0) as file:
        while not stop.is_set():
            count = file.readinto(buffer)
            if not count:
                break
            whole.update(buffer[:count])
            begin, end = position, position + count
            while number < len(queue) and queue[number].offset < end:
                tensor = queue[number]
                last = tensor.offset + tensor.nbytes
                current.update(buffer[max(tensor.offset, begin) - begin : min(last, end) - begin])
                if last > end:
                    break
                digests[tensor.name] = current.hexdigest()
                current, number = blake3.blake3(), number + 1
            position = end
            if progress is not None:
                progress.advance(count)
    # Empty tensors at the file's end, and tensors of a file that shrank meanwhile.
    for tensor in queue[number:]:
        digests[tensor.name] = current.hexdigest()
        current = blake3.blake3()
    return whole.hexdigest(), digests

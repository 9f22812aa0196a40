"""Hash a file and the tensors in it from the same blocks.

A checkpoint that is larger than the page cache is so read once and not twice.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forge.checkpoints.hashing import Algorithm, new_checksum, tree_of
from forge.checkpoints.header import TensorInfo

if TYPE_CHECKING:
    from forge.checkpoints.progress import Progress

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
        algorithm: How to hash the whole file; see ``checkpoints/hashing.py``.
        progress: Hears of every block.
        stop: Ends the reading early; the digests are then meaningless.

    Returns:
        The file's digest, and those of the tensors by name; all hexadecimal.

    Raises:
        OSError: The file cannot be read.
    """
    whole = hashlib.sha256() if algorithm == "sha256" else new_checksum()
    digests: dict[str, str] = {}
    queue = sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes))
    is_tree = algorithm == "xxh3_128_tree"
    # Of a tree, the tensors' digests stand for all that follows the header.
    whole_bytes = queue[0].offset if is_tree and queue else path.stat().st_size
    current, number = new_checksum(), 0
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    position = 0
    with path.open("rb", buffering=0) as file:
        while not stop.is_set():
            count = file.readinto(buffer)
            if not count:
                break
            begin, end = position, position + count
            whole.update(buffer[: max(0, min(whole_bytes, end) - begin)])
            while number < len(queue) and queue[number].offset < end:
                tensor = queue[number]
                last = tensor.offset + tensor.nbytes
                current.update(buffer[max(tensor.offset, begin) - begin : min(last, end) - begin])
                if last > end:
                    break
                digests[tensor.name] = current.hexdigest()
                current, number = new_checksum(), number + 1
            position = end
            if progress is not None:
                progress.advance(count)
    # Empty tensors at the file's end, and tensors of a file that shrank meanwhile.
    for tensor in queue[number:]:
        digests[tensor.name] = current.hexdigest()
        current = new_checksum()
    digest = whole.hexdigest()
    if is_tree:
        digest = tree_of(digest, (digests[tensor.name] for tensor in queue))
    return digest, digests

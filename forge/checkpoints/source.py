"""Read the tensors of a safetensors checkpoint lazily and without a copy.

A source knows every tensor's place from the headers alone. Bytes are touched only by
``read``, which returns a view into a memory map: the page cache is the only buffer, so
reading a tensor twice, or from several threads, costs neither memory nor a second read.
"""

from __future__ import annotations

import mmap
import os
import shlex
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from forge.checkpoints.folder import contained_file
from forge.checkpoints.header import Header, TensorInfo, read_header
from forge.checkpoints.index import INDEX_FILE, check_index, read_weight_map
from forge.core.dtypes import DTYPES
from forge.core.errors import CheckpointError

SINGLE_FILE: Final = "model.safetensors"
CONVERT_PICKLED: Final = (
    "import sys, transformers as t; t.AutoModelForCausalLM.from_pretrained(sys.argv[1], "
    "dtype='auto', weights_only=True).save_pretrained(sys.argv[2])"
)
"""Python that writes safetensors; ``weights_only`` makes torch refuse whatever is no tensor."""


class TensorSource(Protocol):
    """Tensors by name, from wherever they come."""

    @property
    def label(self) -> str:
        """What the user typed, for messages."""

    def names(self) -> tuple[str, ...]:
        """Return all tensor names, in file order."""

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's metadata, or raise ``CheckpointError`` when there is no such tensor."""

    def read(self, name: str) -> memoryview:
        """Return the tensor's bytes, aligned to its element size; read-only, valid until close."""

    def prefetch(self, name: str) -> None:
        """Tell the system that the tensor will be read soon."""

    def files(self) -> tuple[Path, ...]:
        """Return the weight files, in file order, for hashing."""

    def close(self) -> None:
        """Release the files; views that are still held stay valid."""


class SafetensorsSource:
    """The tensors of one or several safetensors files. Safe to use from many threads.

    Args:
        label: What the user typed, for messages.
        headers: Checked headers by file, in file order; no tensor may be in two of them.
        notices: What the user should know about how the files were chosen.
    """

    def __init__(
        self, label: str, headers: Mapping[Path, Header], *, notices: tuple[str, ...] = ()
    ) -> None:
        self._label = label
        self.notices = notices
        self._headers = dict(headers)
        self._tensors: dict[str, TensorInfo] = {}
        for file, header in headers.items():
            for name, tensor in header.tensors.items():
                if name in self._tensors:
                    raise CheckpointError(
                        f"'{label}': tensor '{name}' is in both "
                        f"'{self._tensors[name].file.name}' and '{file.name}'."
                    )
                self._tensors[name] = tensor
        self._maps: dict[Path, mmap.mmap] = {}
        self._lock = threading.Lock()
        self._closed = False

    @property
    def label(self) -> str:
        """What the user typed, for messages."""
        return self._label

    def names(self) -> tuple[str, ...]:
        """Return all tensor names, in file order."""
        return tuple(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's metadata.

        Args:
            name: The tensor.

        Returns:
            Its place and shape.

        Raises:
            CheckpointError: There is no such tensor.
        """
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(f"'{self._label}' has no tensor '{name}'.") from None

    def read(self, name: str) -> memoryview:
        """Return a tensor's bytes.

        Args:
            name: The tensor.

        Returns:
            A read-only view of unsigned bytes into the mapped file. A tensor that the file
            holds misaligned (legal, and rare) is copied, so that typed loops can run on it.

        Raises:
            CheckpointError: There is no such tensor, the file changed since its header was
                read, or the source is closed.
        """
        tensor = self.info(name)
        if tensor.nbytes == 0:
            return memoryview(b"")
        view = memoryview(self._map(tensor.file))[tensor.offset : tensor.offset + tensor.nbytes]
        if tensor.offset % DTYPES[tensor.dtype].itemsize:
            return memoryview(bytes(view))
        return view

    def prefetch(self, name: str) -> None:
        """Tell the system that a tensor will be read soon.

        Args:
            name: The tensor.

        Raises:
            CheckpointError: As ``read``.
        """
        self._advise(name, mmap.MADV_WILLNEED)

    def release(self, name: str) -> None:
        """Tell the system that a tensor's pages may leave this process; reading it again is fine.

        Args:
            name: The tensor.

        Raises:
            CheckpointError: As ``read``.
        """
        self._advise(name, mmap.MADV_DONTNEED)

    def files(self) -> tuple[Path, ...]:
        """Return the weight files, in file order."""
        return tuple(self._headers)

    def close(self) -> None:
        """Release the files; a view that is still held keeps its own map alive."""
        with self._lock:
            self._closed = True
            maps, self._maps = self._maps, {}
        for mapped in maps.values():
            try:
                mapped.close()
            except BufferError:
                # Someone still holds a view; the map goes when the last view does.
                continue

    def _map(self, file: Path) -> mmap.mmap:
        mapped = self._maps.get(file)
        if mapped is not None:
            return mapped
        with self._lock:
            if self._closed:
                raise CheckpointError(f"'{self._label}' was read after it was closed.")
            if file not in self._maps:
                self._maps[file] = open_map(file, expected_bytes=self._headers[file].file_bytes)
            return self._maps[file]

    def _advise(self, name: str, advice: int) -> None:
        tensor = self.info(name)
        if tensor.nbytes:
            start = tensor.offset - tensor.offset % mmap.PAGESIZE
            end = tensor.offset + tensor.nbytes
            self._map(tensor.file).madvise(advice, start, end - start)


def open_map(file: Path, *, expected_bytes: int) -> mmap.mmap:
    """Map a file for reading.

    Args:
        file: The file.
        expected_bytes: Its size when its header was read.

    Raises:
        CheckpointError: It cannot be read, or has another size by now.
    """
    try:
        with file.open("rb") as handle:
            # A map beyond the end of a file kills the process on access, so a file that
            # shrank since its header was read must be noticed before.
            if os.fstat(handle.fileno()).st_size != expected_bytes:
                raise CheckpointError(f"'{file}' changed while it was in use; run again.")
            return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"'{file}' cannot be read: {error.strerror}.") from error


def open_safetensors(root: Path, *, label: str) -> SafetensorsSource:
    """Open the safetensors weights of a model's folder; only headers are read.

    A folder may hold ``model.safetensors``, or shards with an index. When it holds both,
    loaders differ in which one they read: both must then list the same tensors, and the
    index is used.

    Args:
        root: The folder.
        label: What the user typed, for messages.

    Returns:
        The source.

    Raises:
        CheckpointError: The folder has no safetensors weights (the message says what it has
            instead), or they are incomplete, inconsistent or hostile.
    """
    single = contained_file(root, SINGLE_FILE)
    weight_map = read_weight_map(root)
    if weight_map is None:
        if single is None:
            raise CheckpointError(_explain_no_weights(root, label))
        return SafetensorsSource(label, {single: read_header(single)})
    headers = _read_shards(root, weight_map, label=label, has_single=single is not None)
    check_index(weight_map, headers, root / INDEX_FILE)
    if single is None or single in headers:
        return SafetensorsSource(label, headers)
    _check_same_tensors(read_header(single), headers, root)
    notice = (
        f"'{label}' holds both {SINGLE_FILE} and an indexed set of shards; the shards are read."
    )
    return SafetensorsSource(label, headers, notices=(notice,))


def _read_shards(
    root: Path, weight_map: Mapping[str, str], *, label: str, has_single: bool
) -> dict[Path, Header]:
    headers: dict[Path, Header] = {}
    missing: list[str] = []
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        path = contained_file(root, shard)
        if path is None:
            missing.append(shard)
        else:
            headers[path] = read_header(path)
    if missing:
        also = (
            f" The folder also holds '{SINGLE_FILE}': if that is the model, "
            f"delete the stale '{INDEX_FILE}'."
            if has_single
            else " Download the rest."
        )
        raise CheckpointError(
            f"'{label}' lacks {len(missing)} of {len(shards)} weight files that its index "
            f"names: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}.{also}"
        )
    return headers


def _check_same_tensors(single: Header, headers: Mapping[Path, Header], root: Path) -> None:
    def signature(tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[object, ...]]:
        return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}

    sharded: dict[str, tuple[object, ...]] = {}
    for header in headers.values():
        sharded.update(signature(header.tensors))
    if signature(single.tensors) != sharded:
        raise CheckpointError(
            f"'{root}' holds both '{SINGLE_FILE}' and an index of other files, and they disagree "
            "about the tensors. One of them is left over from another model; delete it."
        )


def _explain_no_weights(root: Path, label: str) -> str:
    present = sorted(path.name for path in root.iterdir())
    start = f"'{label}' has no {SINGLE_FILE} and no {INDEX_FILE}"
    if "adapter_config.json" in present:
        return f"{start}: it is a LoRA adapter. Write it behind its base model: 'base+{label}'."
    if any(name.endswith(".gguf") for name in present):
        return f"{start}, only GGUF, which can be merged and quantized, and not be used here."
    pickled = [name for name in present if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickled:
        old, new = shlex.quote(label), shlex.quote(f"{label.rstrip('/')}-safetensors")
        return (
            f"{start}, only pickled weights ('{pickled[0]}'), which can run any code when they are "
            "loaded. Convert them with a loader that runs none, and copy the tokenizer's files: "
            f'python -c "{CONVERT_PICKLED}" {old} {new}'
        )
    others = [name for name in present if name.endswith(".safetensors")]
    if others:
        return (
            f"{start}, only {', '.join(others[:3])}. Rename the file to {SINGLE_FILE}, "
            "or restore its index."
        )
    return f"{start}. Is it the folder of a model?"

"""Read the header of a safetensors file, treating every byte of it as hostile.

The layout of a file:

    offset        bytes   content
    0             8       N, the header's length, unsigned little-endian
    8             N       UTF-8 JSON: {name: {dtype, shape, data_offsets}, ...}; the name
                          "__metadata__", where present, maps strings to strings
    8 + N         rest    the data section; data_offsets [begin, end) count from here

Each field is checked before it sizes an allocation or becomes an offset: the length
against the file, the JSON's nesting against what tensors need, the shape against the
offsets, and the offsets against each other. As in the reference implementation, the
tensors must cover the data section exactly, without overlap and without a hole, so a
file has no room for bytes that no tensor owns. The result can be trusted by readers.
"""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge.core.dtypes import DTYPES
from forge.core.errors import CheckpointError

LENGTH_BYTES: Final = 8
MAX_HEADER_BYTES: Final = 100_000_000
"""The reference implementation's own limit."""
MAX_RANK: Final = 32
MAX_DIMENSION: Final = 1 << 48
METADATA_KEY: Final = "__metadata__"
_ENTRY_KEYS: Final = frozenset({"dtype", "shape", "data_offsets"})


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies and what it is; no bytes of it.

    Attributes:
        name: Name in the checkpoint.
        shape: Dimensions, outermost first.
        dtype: Name in safetensors' vocabulary, such as ``BF16``.
        file: The file that holds it.
        offset: Absolute offset of its first byte in that file.
        nbytes: Its size in bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset: int
    nbytes: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header.

    Attributes:
        tensors: By name, in the order of their offsets.
        metadata: The file's ``__metadata__``, empty when it has none.
        data_start: Offset of the data section.
        file_bytes: Size of the file.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    file_bytes: int


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file.

    Args:
        path: The file.

    Returns:
        The checked header; each tensor lies wholly inside the file.

    Raises:
        CheckpointError: The file is missing, unreadable, truncated, corrupt or hostile.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"'{path}' is not a regular file.")
            length = header_length(file.read(LENGTH_BYTES), file=path, file_bytes=status.st_size)
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}.") from error
    return parse_header(raw, file=path, file_bytes=status.st_size)


def header_length(prefix: bytes, *, file: Path, file_bytes: int) -> int:
    """Return the header's length from a file's first eight bytes.

    Args:
        prefix: The first bytes of the file, at least eight of them.
        file: Named in messages.
        file_bytes: Size of the file, the length's upper bound.

    Returns:
        The length in bytes, safe to allocate.

    Raises:
        CheckpointError: The file is too short, or the length exceeds the file or the limit.
    """
    if file_bytes < LENGTH_BYTES or len(prefix) < LENGTH_BYTES:
        raise CheckpointError(
            f"'{file}' has {file_bytes} bytes, too few for a safetensors header. "
            "Download or copy it again."
        )
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > file_bytes - LENGTH_BYTES:
        raise CheckpointError(
            f"'{file}' claims a header of {length} bytes, but has only {file_bytes} bytes. "
            "It is truncated or not a safetensors file; download or copy it again."
        )
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"'{file}' claims a header of {length} bytes; the format allows {MAX_HEADER_BYTES}."
        )
    return length


def parse_header(raw: bytes, *, file: Path, file_bytes: int) -> Header:
    """Check the JSON of a header against the size of its file.

    Args:
        raw: The header's bytes, without the eight that hold its length.
        file: Named in messages and carried by each ``TensorInfo``.
        file_bytes: Size of the whole file.

    Returns:
        The checked header.

    Raises:
        CheckpointError: Any field is malformed or contradicts another one.
    """
    table = _load_table(raw, file)
    data_start = LENGTH_BYTES + len(raw)
    data_bytes = file_bytes - data_start
    metadata = _checked_metadata(table.pop(METADATA_KEY, None), file)
    tensors = [
        _checked_tensor(name, entry, file=file, data_start=data_start, data_bytes=data_bytes)
        for name, entry in table.items()
    ]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_cover(tensors, file=file, data_start=data_start, file_bytes=file_bytes)
    return Header({tensor.name: tensor for tensor in tensors}, metadata, data_start, file_bytes)


def _load_table(raw: bytes, file: Path) -> dict[str, object]:
    if not raw.startswith(b"{"):
        raise CheckpointError(f"'{file}' is not a safetensors file: its header is not JSON.")
    # A tensor takes three brackets and at least 45 bytes. Far more brackets than that
    # would only serve to make small text into many Python objects.
    if (raw.count(b"{") + raw.count(b"[")) * 8 > len(raw) + 256:
        raise CheckpointError(f"'{file}' has a header of nested brackets, not of tensors.")
    try:
        table = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"'{file}' has a corrupt header: {error}.") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"'{file}' has a header that is not a JSON object.")
    return table


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {key[:200]!r} appears twice")
            seen.add(key)
    return table


def _refuse_constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


def _checked_metadata(value: object, file: Path) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CheckpointError(f"'{file}': __metadata__ must map strings to strings.")
    metadata: dict[str, str] = {}
    for key, text in value.items():
        if not isinstance(text, str):
            raise CheckpointError(f"'{file}': __metadata__ entry {key!r} is not a string.")
        metadata[key] = text
    return metadata


def _checked_tensor(
    name: str, entry: object, *, file: Path, data_start: int, data_bytes: int
) -> TensorInfo:
    def wrong(what: str) -> CheckpointError:
        return CheckpointError(f"'{file}': tensor {name[:200]!r} {what}.")

    if not name or not name.isprintable():
        raise wrong("has an empty name or one with unprintable characters")
    if not isinstance(entry, dict) or entry.keys() != _ENTRY_KEYS:
        raise wrong("must have exactly dtype, shape and data_offsets")
    dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
    if dtype is None:
        raise wrong(f"has dtype {str(dtype_name)[:40]!r}, which forge does not know")
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise wrong(f"has a shape that is not a list of at most {MAX_RANK} dimensions")
    for dimension in shape:
        if not _is_count(dimension) or dimension > MAX_DIMENSION:
            raise wrong(f"has a shape that is not made of whole numbers from 0 to {MAX_DIMENSION}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise wrong("has data_offsets that are not two whole numbers")
    begin, end = offsets
    if begin > end or end > data_bytes:
        raise wrong(
            f"lies at bytes [{begin}, {end}), outside the {data_bytes} data bytes of the file; "
            "the file is truncated or corrupt"
        )
    nbytes = math.prod(shape) * dtype.itemsize
    if end - begin != nbytes:
        raise wrong(f"has {end - begin} bytes, but {dtype.name} {shape} needs {nbytes}")
    return TensorInfo(name, tuple(shape), dtype.name, file, data_start + begin, nbytes)


def _is_count(value: object) -> bool:
    # bool is a subclass of int, and JSON's true must not become a 1.
    return type(value) is int and value >= 0


def _check_cover(
    tensors: list[TensorInfo], *, file: Path, data_start: int, file_bytes: int
) -> None:
    position = data_start
    previous = ""
    for tensor in tensors:
        if tensor.offset < position:
            raise CheckpointError(f"'{file}': tensors {previous!r} and {tensor.name!r} overlap.")
        if tensor.offset > position:
            raise CheckpointError(
                f"'{file}': {tensor.offset - position} bytes before tensor {tensor.name!r} "
                "belong to no tensor."
            )
        position = tensor.offset + tensor.nbytes
        previous = tensor.name
    if position != file_bytes:
        raise CheckpointError(
            f"'{file}': {file_bytes - position} bytes at its end belong to no tensor."
        )

"""Read the header of a GGUF file, treating every byte of it as hostile.

The layout of a file, version 2 and 3, all numbers little-endian:

    field            bytes        content
    magic            4            "GGUF"
    version          4            u32
    num_tensors      8            u64
    num_keys         8            u64
    keys             ...          num_keys times: key (string), type (u32), value
    tensors          ...          num_tensors times: name (string), rank (u32), dimensions (u64
                                  each, the fastest first), type (u32), offset (u64)
    padding          ...          to a multiple of general.alignment, 32 unless stated
    data             rest         offsets count from here; each is a multiple of the alignment

    a string         8 + n        its length (u64), then UTF-8
    an array         12 + ...     type of its elements (u32), their number (u64), the elements

Each field is checked before it sizes an allocation or becomes an offset. As in the reference
implementation, tensors follow each other with no more than padding between them; here, nothing
may follow the last one either, so a file has no room for bytes that no tensor owns.

Reference: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import stat
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from forge.checkpoints.gguf.cursor import Cursor
from forge.checkpoints.gguf.types import GGML_TYPES, GgmlType
from forge.core.errors import CheckpointError

Value: TypeAlias = "bool | int | float | bytes | array[int] | array[float] | list[bytes]"
"""A metadata value. Strings stay bytes: which of them must be UTF-8 is for their readers to say."""

MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_DEFAULT_ALIGNMENT: Final = 32
_MAX_ALIGNMENT: Final = 1 << 20
_MAX_RANK: Final = 4
_MAX_DIMENSION: Final = 1 << 40
_MAX_KEY_BYTES: Final = 65_535
_MAX_NAME_BYTES: Final = 255
_MAX_TEXT_BYTES: Final = 8 << 20
_MAX_TENSORS: Final = 1 << 18
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_BOOL, _STRING, _ARRAY = 7, 8, 9
_CODES: Final = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_NUMBERS: Final = {kind: struct.Struct("<" + code) for kind, code in _CODES.items()}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies in a GGUF file, and what it is.

    Attributes:
        name: Name in the file.
        shape: Dimensions, outermost first: the reverse of the file's order.
        type: Its type.
        file: The file that holds it.
        offset: Absolute offset of its first byte.
        nbytes: Its size in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    file: Path
    offset: int
    nbytes: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A checked header.

    Attributes:
        path: The file.
        metadata: Its keys and values.
        tensors: By name, in the order of their offsets; each lies wholly inside the file.
        file_bytes: Size of the file.
    """

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]
    file_bytes: int


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file.

    Args:
        path: The file.

    Returns:
        The checked header.

    Raises:
        CheckpointError: The file is missing, unreadable, truncated, corrupt, hostile, or of a
            version or byte order that forge does not read.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"'{path}' is not a regular file.")
            cursor = Cursor(file, path, file_bytes=status.st_size)
            return _read(cursor, path, status.st_size)
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}.") from error


def _read(cursor: Cursor, path: Path, file_bytes: int) -> GgufHeader:
    _check_start(cursor, path, file_bytes)
    num_tensors = cursor.count(_U64, "the number of tensors")
    num_keys = cursor.count(_U64, "the number of metadata keys")
    if num_tensors > _MAX_TENSORS:
        raise cursor.wrong(f"claims {num_tensors} tensors; forge reads up to {_MAX_TENSORS}")
    cursor.spend(num_keys, "metadata keys")
    metadata: dict[str, Value] = {}
    for _ in range(num_keys):
        key = _printable(cursor.text("a metadata key", limit=_MAX_KEY_BYTES), cursor, "key")
        if key in metadata:
            raise cursor.wrong(f"holds the metadata key {key[:200]!r} twice")
        metadata[key] = _value(cursor, key)
    alignment = _alignment(metadata, cursor)
    found = [_tensor(cursor, path) for _ in range(num_tensors)]
    data_start = _up(cursor.position, alignment)
    tensors: dict[str, GgufTensor] = {}
    for tensor in found:
        if tensor.name in tensors:
            raise cursor.wrong(f"holds the tensor {tensor.name!r} twice")
        tensors[tensor.name] = _placed(tensor, cursor, data_start, file_bytes, alignment)
    ordered = sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_cover(ordered, cursor, data_start, file_bytes, alignment)
    return GgufHeader(path, metadata, {tensor.name: tensor for tensor in ordered}, file_bytes)


def _check_start(cursor: Cursor, path: Path, file_bytes: int) -> None:
    if file_bytes < 24:
        raise cursor.wrong(
            f"has {file_bytes} bytes, too few for a GGUF header; download or copy it again"
        )
    if cursor.count(_U32, "the magic number") != int.from_bytes(MAGIC, "little"):
        raise cursor.wrong("is not a GGUF file: it does not begin with the letters GGUF")
    version = cursor.count(_U32, "the version")
    if version and version & 0xFFFF == 0:
        raise cursor.wrong(
            "is a big-endian GGUF file, of which forge reads none. Use the little-endian file that "
            "is published beside it, or convert it with gguf_convert_endian.py of llama.cpp"
        )
    if version not in _VERSIONS:
        raise cursor.wrong(
            f"is GGUF version {version}; forge reads versions {' and '.join(map(str, _VERSIONS))}. "
            "Convert the original model again with a current llama.cpp"
        )


def _printable(raw: bytes, cursor: Cursor, what: str) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable():
        raise cursor.wrong(f"has a {what} that is empty or not printable text: {raw[:60]!r}")
    return text


def _value(cursor: Cursor, key: str) -> Value:
    what = f"the value of '{key[:200]}'"
    kind = cursor.count(_U32, f"the type of '{key[:200]}'")
    if kind == _STRING:
        return cursor.text(what, limit=_MAX_TEXT_BYTES)
    if kind == _ARRAY:
        return _array(cursor, key)
    if kind not in _NUMBERS:
        raise cursor.wrong(f"gives '{key[:200]}' the value type {kind}, which GGUF does not have")
    value = cursor.number(_NUMBERS[kind], what)
    return _truth(value, cursor, what) if kind == _BOOL else value


def _truth(value: float, cursor: Cursor, what: str) -> bool:
    if value not in (0, 1):
        raise cursor.wrong(f"holds {value} for {what}, which must be true (1) or false (0)")
    return bool(value)


def _array(cursor: Cursor, key: str) -> Value:
    what = f"the array '{key[:200]}'"
    kind = cursor.count(_U32, f"the element type of {what}")
    count = cursor.count(_U64, f"the number of elements of {what}")
    if kind == _ARRAY:
        raise cursor.wrong(f"holds arrays within {what}, which no reader of GGUF accepts")
    if kind != _STRING and kind not in _CODES:
        raise cursor.wrong(f"gives {what} the element type {kind}, which GGUF does not have")
    cursor.spend(count, what)
    if kind == _STRING:
        return cursor.texts(count, what)
    values = cursor.numbers(count, what, code=_CODES[kind], size=_NUMBERS[kind].size)
    if kind == _BOOL and any(value > 1 for value in values):
        raise cursor.wrong(f"holds truth values other than 0 and 1 in {what}")
    return values


def _alignment(metadata: Mapping[str, Value], cursor: Cursor) -> int:
    value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(value) is not int or not 0 < value <= _MAX_ALIGNMENT or value & (value - 1):
        raise cursor.wrong(
            f"states the alignment {str(value)[:40]}; it must be a power of two up to "
            f"{_MAX_ALIGNMENT}"
        )
    return value


def _tensor(cursor: Cursor, path: Path) -> GgufTensor:
    """Read one entry; its offset still counts from the data section."""
    name = _printable(cursor.text("a tensor's name", limit=_MAX_NAME_BYTES), cursor, "tensor name")
    rank = cursor.count(_U32, f"the rank of '{name}'")
    if not 1 <= rank <= _MAX_RANK:
        raise cursor.wrong(f"gives tensor '{name}' {rank} dimensions; GGUF allows 1 to {_MAX_RANK}")
    dimensions = [cursor.count(_U64, f"the dimensions of '{name}'") for _ in range(rank)]
    number = cursor.count(_U32, f"the type of '{name}'")
    offset = cursor.count(_U64, f"the offset of '{name}'")
    if not all(1 <= dimension <= _MAX_DIMENSION for dimension in dimensions):
        raise cursor.wrong(f"gives tensor '{name}' the impossible dimensions {dimensions}")
    kind = GGML_TYPES.get(number)
    if kind is None:
        raise cursor.wrong(
            f"stores tensor '{name}' as ggml type {number}, which is not in forge's table: it was "
            "removed from the format, or is newer. Use a file in Q8_0, BF16 or F16"
        )
    if dimensions[0] % kind.elements:
        raise cursor.wrong(
            f"stores tensor '{name}' as {kind.name} with rows of {dimensions[0]} elements, which "
            f"are not whole blocks of {kind.elements}"
        )
    nbytes = math.prod(dimensions) // kind.elements * kind.nbytes
    return GgufTensor(name, tuple(reversed(dimensions)), kind, path, offset, nbytes)


def _placed(
    tensor: GgufTensor, cursor: Cursor, data_start: int, file_bytes: int, alignment: int
) -> GgufTensor:
    if tensor.offset % alignment:
        raise cursor.wrong(
            f"puts tensor '{tensor.name}' at offset {tensor.offset}, not a multiple of its "
            f"alignment {alignment}"
        )
    begin = data_start + tensor.offset
    if begin + tensor.nbytes > file_bytes:
        raise cursor.wrong(
            f"puts tensor '{tensor.name}' at bytes [{begin}, {begin + tensor.nbytes}), beyond its "
            f"end at {file_bytes}. It is truncated or corrupt; download or copy it again"
        )
    return GgufTensor(tensor.name, tensor.shape, tensor.type, tensor.file, begin, tensor.nbytes)


def _check_cover(
    tensors: list[GgufTensor], cursor: Cursor, data_start: int, file_bytes: int, alignment: int
) -> None:
    end, previous = data_start, "the header"
    for tensor in tensors:
        if tensor.offset < end:
            raise cursor.wrong(f"lets tensors '{previous}' and '{tensor.name}' overlap")
        if tensor.offset > _up(end, alignment):
            raise cursor.wrong(
                f"holds {tensor.offset - end} bytes before tensor '{tensor.name}' that belong to "
                "no tensor"
            )
        end, previous = tensor.offset + tensor.nbytes, tensor.name
    if file_bytes > _up(end, alignment):
        raise cursor.wrong(f"holds {file_bytes - end} bytes at its end that belong to no tensor")


def _up(position: int, alignment: int) -> int:
    return position + -position % alignment

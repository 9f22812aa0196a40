"""Walk through the bytes of a GGUF header without ever believing what they say.

The header states no length of its own: where it ends is known only when it has been read. The
file is therefore read in pieces as the walk needs them, and each count is held against the
bytes that are left in the file, and against a budget, before it sizes anything.
"""

from __future__ import annotations

import struct
import sys
from array import array
from pathlib import Path
from typing import BinaryIO, Final

from forge.core.errors import CheckpointError

MAX_HEADER_BYTES: Final = 128 << 20
"""The largest published headers, with vocabularies of 262,144 tokens, are below 20 MB."""
MAX_VALUES: Final = 1 << 22
"""Most metadata values in a file, those of arrays included; published files have below 600,000."""
_PIECE_BYTES: Final = 1 << 20
_LENGTH: Final = struct.Struct("<Q")
_ARRAY_CODES: Final = {1: "b", 2: "h", 4: "i", 8: "q"}


class Cursor:
    """A position in an untrusted file.

    Args:
        file: Open for reading in binary, at its start.
        path: Named in messages.
        file_bytes: Size of the file.
    """

    def __init__(self, file: BinaryIO, path: Path, *, file_bytes: int) -> None:
        self._file = file
        self._path = path
        self._file_bytes = file_bytes
        self._bytes = bytearray()
        self._values_left = MAX_VALUES
        self.position = 0

    def wrong(self, what: str) -> CheckpointError:
        """Return an error about this file."""
        return CheckpointError(f"'{self._path}' {what}.")

    def number(self, form: struct.Struct, what: str) -> int | float:
        """Read one number.

        Args:
            form: Its form; little-endian, one value.
            what: What the number is, for messages.

        Raises:
            CheckpointError: The file ends before.
        """
        self._need(form.size, what)
        (value,) = form.unpack_from(self._bytes, self.position)
        self.position += form.size
        return value  # type: ignore[no-any-return]

    def count(self, form: struct.Struct, what: str) -> int:
        """Read one whole number, as ``number`` does."""
        value = self.number(form, what)
        assert isinstance(value, int)
        return value

    def text(self, what: str, *, limit: int) -> bytes:
        """Read one string.

        Args:
            what: What the string is, for messages.
            limit: Most bytes that it may have.

        Raises:
            CheckpointError: It is longer than the limit, or than the file.
        """
        length = self.count(_LENGTH, f"the length of {what}")
        if length > limit:
            raise self.wrong(f"claims {length} bytes for {what}; {limit} are allowed")
        self._need(length, what)
        begin, self.position = self.position, self.position + length
        return bytes(self._bytes[begin : self.position])

    def spend(self, num_values: int, what: str) -> None:
        """Take values from the budget that bounds the work and the memory of a header.

        Args:
            num_values: How many values will be read.
            what: What they are, for messages.

        Raises:
            CheckpointError: The budget is exhausted.
        """
        if num_values > self._values_left:
            raise self.wrong(
                f"claims {num_values} values for {what}; a header may hold {MAX_VALUES} in all"
            )
        self._values_left -= num_values

    def numbers(self, count: int, what: str, *, code: str, size: int) -> array[int] | array[float]:
        """Read an array of numbers.

        Args:
            count: How many; already held against the budget.
            what: What they are, for messages.
            code: Type code of ``struct`` for one of them.
            size: Bytes of one of them.

        Raises:
            CheckpointError: The file ends before.
        """
        self._need(count * size, what)
        is_float = code in "fd"
        letter = code if is_float else _ARRAY_CODES[size]
        values: array[int] = array(letter if is_float or code.islower() else letter.upper())
        begin, self.position = self.position, self.position + count * size
        values.frombytes(self._bytes[begin : self.position])
        if sys.byteorder == "big":
            values.byteswap()
        return values

    def texts(self, count: int, what: str) -> list[bytes]:
        """Read an array of strings.

        Args:
            count: How many; already held against the budget.
            what: What they are, for messages.

        Raises:
            CheckpointError: The file ends before.
        """
        self._need(count * _LENGTH.size, what)
        found: list[bytes] = []
        unpack = _LENGTH.unpack_from
        # The hot loop of opening a file: a vocabulary has a few hundred thousand strings.
        for _ in range(count):
            if self.position + _LENGTH.size > len(self._bytes):
                self._need(_LENGTH.size, what)
            (length,) = unpack(self._bytes, self.position)
            begin = self.position + _LENGTH.size
            end = begin + length
            if end > len(self._bytes):
                self._need(_LENGTH.size + length, what)
            found.append(bytes(self._bytes[begin:end]))
            self.position = end
        return found

    def _need(self, num_bytes: int, what: str) -> None:
        """Have that many bytes after the position in memory, or refuse the file."""
        end = self.position + num_bytes
        if end <= len(self._bytes):
            return
        if end > self._file_bytes:
            raise self.wrong(
                f"ends within {what}: {num_bytes} bytes are claimed at offset {self.position}, "
                f"and the file has {self._file_bytes}. It is truncated or corrupt; download or "
                "copy it again"
            )
        if end > MAX_HEADER_BYTES:
            raise self.wrong(f"has a header of more than {MAX_HEADER_BYTES} bytes, at {what}")
        wanted = max(end - len(self._bytes), _PIECE_BYTES)
        self._bytes += self._file.read(min(wanted, self._file_bytes - len(self._bytes)))
        if end > len(self._bytes):
            raise self.wrong("changed while it was read; run again")

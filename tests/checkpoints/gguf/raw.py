"""Put a GGUF together byte by byte, so that any field of it can lie."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

U32, STRING, ARRAY = 4, 8, 9


def u32(value: int) -> bytes:
    """Return an unsigned number of 32 bits."""
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    """Return an unsigned number of 64 bits."""
    return struct.pack("<Q", value)


def text(content: str | bytes, *, length: int | None = None) -> bytes:
    """Return a string, with a length that may lie."""
    raw = content.encode() if isinstance(content, str) else content
    return u64(len(raw) if length is None else length) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    """Return a metadata entry."""
    return text(key) + u32(kind) + value


@dataclass(frozen=True)
class Entry:
    """A tensor's entry; dimensions as the file has them, the fastest first."""

    name: str | bytes = "token_embd.weight"
    dimensions: Sequence[int] = (32, 4)
    kind: int = 0
    offset: int = 0
    rank: int | None = None

    def encode(self) -> bytes:
        """Return its bytes."""
        rank = len(self.dimensions) if self.rank is None else self.rank
        dimensions = b"".join(map(u64, self.dimensions))
        return text(self.name) + u32(rank) + dimensions + u32(self.kind) + u64(self.offset)


@dataclass(frozen=True)
class Raw:
    """A whole file; every default is right."""

    magic: bytes = b"GGUF"
    version: bytes = u32(3)
    pairs: Sequence[bytes] = (
        pair("general.architecture", STRING, text("llama")),
        pair("llama.block_count", U32, u32(1)),
        pair("llama.attention.head_count", U32, u32(1)),
    )
    entries: Sequence[Entry] = (Entry(),)
    num_pairs: int | None = None
    num_entries: int | None = None
    data: bytes = field(default=bytes(32 * 4 * 4))
    alignment: int = 32
    tail: bytes = b""

    def encode(self, **changes: Any) -> bytes:
        """Return its bytes, with some fields changed."""
        raw = replace(self, **changes)
        counts = (
            len(raw.entries) if raw.num_entries is None else raw.num_entries,
            len(raw.pairs) if raw.num_pairs is None else raw.num_pairs,
        )
        head = raw.magic + raw.version + b"".join(map(u64, counts)) + b"".join(raw.pairs)
        head += b"".join(entry.encode() for entry in raw.entries)
        return head + bytes(-len(head) % raw.alignment) + raw.data + raw.tail

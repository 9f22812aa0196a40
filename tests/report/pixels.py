"""Read back what a renderer drew: a PNG as rows of pixels, with the standard library alone."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """Pixels of four bytes (red, green, blue, opacity)."""

    width: int
    height: int
    rows: tuple[bytes, ...]

    def pixel(self, x: int, y: int) -> tuple[int, int, int]:
        """Return the colour of a pixel."""
        red, green, blue = self.rows[y][4 * x : 4 * x + 3]
        return red, green, blue

    def ink(self, *, darker_than: int = 128) -> list[tuple[int, int]]:
        """Return the places of all pixels that are darker than a level of grey."""
        return [
            (x, y)
            for y, row in enumerate(self.rows)
            for x in range(self.width)
            if row[4 * x + 3] > 128 and sum(row[4 * x : 4 * x + 3]) < 3 * darker_than
        ]


def read_png(content: bytes) -> Picture:
    """Decode a PNG of eight bits and four channels that is not interlaced."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    place, packed, header = 8, b"", b""
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        kind, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        assert zlib.crc32(kind + body) == int.from_bytes(
            content[place + 8 + length : place + 12 + length]
        )
        header = body if kind == b"IHDR" else header
        packed += body if kind == b"IDAT" else b""
        place += 12 + length
    width, height, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    assert (depth, colours, interlaced) == (8, 6, 0)
    raw, stride = zlib.decompress(packed), 4 * width
    rows: list[bytes] = []
    above = bytes(stride)
    for number in range(height):
        start = number * (stride + 1)
        above = _unfiltered(raw[start], raw[start + 1 : start + 1 + stride], above)
        rows.append(above)
    return Picture(width, height, tuple(rows))


def _unfiltered(kind: int, line: bytes, above: bytes) -> bytes:
    out = bytearray(line)
    for place in range(len(out)):
        left = out[place - 4] if place >= 4 else 0
        corner = above[place - 4] if place >= 4 else 0
        up = above[place]
        guess = (0, left, up, (left + up) // 2, _paeth(left, up, corner))[kind]
        out[place] = (out[place] + guess) & 0xFF
    return bytes(out)


def _paeth(left: int, up: int, corner: int) -> int:
    estimate = left + up - corner
    return min((left, up, corner), key=lambda value: abs(estimate - value))

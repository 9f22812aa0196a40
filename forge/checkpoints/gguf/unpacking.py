"""The steps that all block decoders are made of, in the forms that numpy does fastest.

numpy starts an inner loop for every stretch of memory that lies in one piece, at the cost of
about forty bytes of arithmetic. A block's fields are shorter than that, so they are first gathered
into planes, contiguous over all blocks: a plane is unpacked by a few vector instructions, and
only the conversion to float32, which must happen anyway, scatters it into the blocks. For
the same reason scales are spread over the elements that they belong to before they multiply.

Shape suffixes: B blocks, N bytes of one, E elements of one, P planes, W elements of a plane.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.uint8] | npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]


def half(blocks_BN: Bytes, at: int) -> Floats:
    """Return the float16 at an offset of each block.

    Args:
        blocks_BN: uint8 [B, N].
        at: The offset in bytes.

    Returns:
        float32 [B, 1].
    """
    return np.ascontiguousarray(blocks_BN[:, at : at + 2]).view(np.float16).astype(np.float32)


def spread(scales_BG: Floats, width: int) -> Floats:
    """Repeat every scale for each element of its group.

    Args:
        scales_BG: float32 [B, G].
        width: Elements of a group, an even number.

    Returns:
        float32 [B, G · width].
    """
    # Two floats are copied as one word of 64 bits, which halves the work.
    words = np.ascontiguousarray(scales_BG).view(np.uint32).astype(np.uint64)
    words |= words << np.uint64(32)
    spread_E = np.repeat(words.reshape(-1), width // 2).view(np.float32)
    return spread_E.reshape(scales_BG.shape[0], -1)


def planes(packed_BN: Bytes, width: int) -> Bytes:
    """Gather the fields of all blocks into planes.

    Args:
        packed_BN: uint8 [B, P · W].
        width: W, bytes of a block in one plane.

    Returns:
        uint8 [P, B, W], contiguous.
    """
    fields_BPW = packed_BN.reshape(packed_BN.shape[0], -1, width)
    return np.ascontiguousarray(fields_BPW.swapaxes(0, 1))


def look_up(table: bytes, codes: Bytes) -> npt.NDArray[np.int8]:
    """Replace each code by its value.

    Args:
        table: 256 signed bytes.
        codes: uint8, contiguous, of any shape.

    Returns:
        int8 of the same shape.
    """
    # As fast as a table can be, and several times faster than numpy's own gathering.
    return np.frombuffer(codes.tobytes().translate(table), np.int8).reshape(codes.shape)

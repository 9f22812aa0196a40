"""Blocks decode to the bits that gguf's own decoder gives, whatever the bytes are."""

import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from forge.checkpoints.gguf import decoding
from forge.checkpoints.gguf.decoding import DECODERS, dequantize, values_of
from forge.checkpoints.gguf.header import GgufTensor
from forge.checkpoints.gguf.layout import Placed
from forge.checkpoints.gguf.rows import RowOrder
from forge.checkpoints.gguf.types import BY_NAME, GGML_TYPES

_ORACLE = [name for name in DECODERS if name != "Q8_K"]


def _blocks(kind: str, count: int, *, seed: int = 0) -> np.ndarray:
    """Return random blocks: any bytes are valid, but for scales that are no numbers."""
    blocks = np.random.default_rng(seed).integers(
        0, 256, (count, BY_NAME[kind].nbytes), dtype=np.uint8
    )
    for at in {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "MXFP4": ()}.get(
        kind, (0, 2) if kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else (0,)
    ):
        halves = blocks[:, at : at + 2].copy().view(np.float16)
        halves[~np.isfinite(halves)] = 0.5
        blocks[:, at : at + 2] = halves.view(np.uint8)
    return blocks


def _same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == theirs.dtype == np.float32
    assert np.array_equal(ours.reshape(-1).view(np.uint32), theirs.reshape(-1).view(np.uint32))


@pytest.mark.parametrize("kind", _ORACLE)
def test_equals_gguf_bit_for_bit(kind: str) -> None:
    blocks = _blocks(kind, 1024)
    with np.errstate(over="ignore"):
        theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    assert len(np.unique(theirs)) > 256
    _same_bits(dequantize(blocks.data.cast("B"), kind), theirs)


@pytest.mark.parametrize("kind", _ORACLE)
def test_every_code_in_every_place(kind: str) -> None:
    # Blocks that hold the same byte everywhere but in one place of the codes.
    size = BY_NAME[kind].nbytes
    blocks = np.repeat(_blocks(kind, 1, seed=3), 2 * size, axis=0)
    for place in range(size):
        blocks[2 * place, place] ^= 0x0F
        blocks[2 * place + 1, place] ^= 0x30
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    finite = np.isfinite(theirs).all(axis=1)
    assert finite.sum() > size
    ours = dequantize(blocks.data.cast("B"), kind).reshape(theirs.shape)
    _same_bits(ours[finite], theirs[finite])
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))


def test_q8_k_equals_its_definition() -> None:
    scales = np.array([0.25, -3e-5, 0.0], np.float32)
    blocks = _blocks("Q8_K", 3)
    blocks[:, :4] = scales[:, None].view(np.uint8)
    ours = dequantize(blocks.data.cast("B"), "Q8_K").reshape(3, 256)
    for block, scale, values in zip(blocks, scales, ours, strict=True):
        for place in range(256):
            code = int(block[4 + place])
            assert values[place] == scale * np.float32(code - 256 if code > 127 else code)


@pytest.mark.parametrize("kind", DECODERS)
def test_pieces_do_not_change_the_result(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = _blocks(kind, 37)
    if kind == "Q8_K":
        blocks[:, :4] = np.frombuffer(np.float32(0.5).tobytes(), np.uint8)
    whole = dequantize(blocks.data.cast("B"), kind)
    monkeypatch.setattr(decoding, "_PIECE_ELEMENTS", 5 * BY_NAME[kind].elements)
    _same_bits(dequantize(blocks.data.cast("B"), kind), whole)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"])
def test_what_gguf_quantized_comes_back_close(kind: str) -> None:
    values = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    ours = dequantize(np.ascontiguousarray(packed).data.cast("B"), kind).reshape(values.shape)
    error = np.sqrt(np.mean((ours - values) ** 2))
    assert error < {"Q8_0": 0.01, "Q5_0": 0.05, "Q5_1": 0.05}.get(kind, 0.2)


@pytest.mark.parametrize("kind", DECODERS)
def test_memory_is_the_result_and_a_few_pieces(kind: str, tmp_path: Path) -> None:
    rows, columns = 4096, 1024
    packed = bytes(rows * columns // BY_NAME[kind].elements * BY_NAME[kind].nbytes)
    tensor = GgufTensor("w", (rows, columns), BY_NAME[kind], tmp_path, 0, len(packed))
    for order in (None, RowOrder("pairs", 8)):
        placed = Placed(tensor, (rows, columns), "F32", order=order)
        tracemalloc.start()
        result = values_of(placed, memoryview(packed))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert result.nbytes == 4 * rows * columns
        assert peak < result.nbytes + 8 * 4 * decoding._PIECE_ELEMENTS


def test_infinite_scales_stay_visible() -> None:
    blocks = _blocks("Q4_0", 1)
    blocks[:, :2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
    assert not np.isfinite(dequantize(blocks.data.cast("B"), "Q4_0")).all()


def test_the_table_is_that_of_gguf() -> None:
    assert {kind.name for kind in GGML_TYPES.values()} == {
        kind.name for kind in gguf.GGMLQuantizationType
    }
    for kind in gguf.GGMLQuantizationType:
        ours = GGML_TYPES[int(kind)]
        assert ours.name == kind.name
        # gguf's table still has the two float32 that blocks of Q8_1 had once; ggml has two float16.
        if kind.name != "Q8_1":
            assert (ours.elements, ours.nbytes) == gguf.GGML_QUANT_SIZES[kind]
    readable = {kind.name for kind in GGML_TYPES.values() if kind.dtype is not None}
    assert readable == set(DECODERS) | {"F32", "F16", "BF16", "F64"}

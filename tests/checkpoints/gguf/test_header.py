"""A header is read as gguf reads it, and a hostile one is refused in one sentence."""

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.checkpoints.gguf import cursor, header
from forge.checkpoints.gguf.header import read_gguf_header
from forge.core.errors import CheckpointError
from tests.checkpoints.gguf.raw import ARRAY, STRING, U32, Entry, Raw, pair, text, u32, u64


def _write(path: Path, **changes: object) -> Path:
    path.write_bytes(Raw().encode(**changes))
    return path


def _refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_gguf_header(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_reads_what_gguf_wrote(tmp_path: Path) -> None:
    path = tmp_path / "all.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_string("text", "Grüße")
    writer.add_bool("yes", True)
    writer.add_bool("no", False)
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -30000)
    writer.add_uint32("u32", 4_000_000_000)
    writer.add_int32("i32", -2_000_000_000)
    writer.add_uint64("u64", 2**63 + 1)
    writer.add_int64("i64", -(2**62))
    writer.add_float32("f32", 0.1)
    writer.add_float64("f64", 0.1)
    writer.add_array("texts", ["a", "", "ü"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("reals", [0.5, -1.5])
    writer.add_array("truths", [True, False])
    matrix = np.arange(96, dtype=np.float32).reshape(3, 32)
    writer.add_tensor("a", matrix)
    writer.add_tensor("b", np.arange(5, dtype=np.float16))
    writer.add_tensor(
        "c",
        gguf.quants.quantize(matrix, gguf.GGMLQuantizationType.Q8_0),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0,
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    ours, theirs = read_gguf_header(path), gguf.GGUFReader(path)
    for key, value in ours.metadata.items():
        expected = theirs.fields[key].contents()
        if isinstance(value, bytes):
            assert value.decode() == expected
        elif isinstance(value, list):
            assert [item.decode() for item in value] == expected
        elif isinstance(value, bool | int | float):
            assert value == expected
            assert isinstance(value, type(expected))
        else:
            assert value.tolist() == expected
    assert len(ours.metadata) == 19
    assert [*ours.tensors] == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert found.shape == tuple(reversed(tensor.shape.tolist()))
        assert (found.offset, found.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert found.type.name == tensor.tensor_type.name


def test_version_2_is_read(tmp_path: Path) -> None:
    path = _write(tmp_path / "old.gguf", version=u32(2))
    assert [*read_gguf_header(path).tensors] == ["token_embd.weight"]


_ALIGN = "general.alignment"
_TWO = (Entry("a", (32,)), Entry("b", (32,), offset=128))
HOSTILE: dict[str, tuple[dict[str, object], str]] = {
    "not GGUF": ({"magic": b"GGML"}, "does not begin with the letters GGUF"),
    "version 0": ({"version": u32(0)}, "version 0"),
    "version 1": ({"version": u32(1)}, "version 1"),
    "version 4": ({"version": u32(4)}, "version 4"),
    "big-endian": ({"version": struct.pack(">I", 3)}, "big-endian"),
    "more pairs than there are": ({"num_pairs": 4}, "ends within|are allowed"),
    "pairs beyond counting": ({"num_pairs": 2**64 - 1}, "metadata keys"),
    "more tensors than there are": ({"num_entries": 3}, "ends within|not printable"),
    "tensors beyond counting": ({"num_entries": 2**63}, "9223372036854775808 tensors"),
    "a key twice": ({"pairs": [pair("x", U32, u32(1))] * 2}, "'x' twice"),
    "a key of nothing": ({"pairs": [pair("", U32, u32(1))]}, "empty or not printable"),
    "a key that is not text": (
        {"pairs": [text(b"\xff\xfe") + u32(U32) + u32(1)]}, "empty or not printable",
    ),
    "a key with a line break": ({"pairs": [pair("a\nb", U32, u32(1))]}, "not printable"),
    "a key that is too long": ({"pairs": [text("x" * 70000)]}, "65535 are allowed"),
    "a string longer than the file": (
        {"pairs": [text("x") + u32(STRING) + text("a", length=500_000)]}, "ends within the value",
    ),
    "a string beyond counting": (
        {"pairs": [text("x") + u32(STRING) + text("a", length=2**63)]}, "are allowed",
    ),
    "an unknown value type": ({"pairs": [pair("x", 13, u64(0))]}, "value type 13"),
    "a truth of 2": ({"pairs": [pair("x", 7, b"\2")]}, r"must be true \(1\) or false"),
    "an array of truths of 2": (
        {"pairs": [pair("x", ARRAY, u32(7) + u64(2) + b"\1\2")]}, "truth values",
    ),
    "an array of arrays": (
        {"pairs": [pair("x", ARRAY, u32(ARRAY) + u64(1) + u32(4) + u64(0))]}, "arrays within",
    ),
    "an array of unknown things": (
        {"pairs": [pair("x", ARRAY, u32(99) + u64(1))]}, "element type 99",
    ),
    "an array longer than the file": (
        {"pairs": [pair("x", ARRAY, u32(4) + u64(3_000_000))]}, "ends within the array",
    ),
    "an array beyond counting": (
        {"pairs": [pair("x", ARRAY, u32(0) + u64(2**62))]}, "may hold 4194304 in all",
    ),
    "strings longer than the file": (
        {"pairs": [pair("x", ARRAY, u32(STRING) + u64(1000) + text("a"))]}, "ends within",
    ),
    "a string in an array that is too long": (
        {"pairs": [pair("x", ARRAY, u32(STRING) + u64(1) + text("a", length=2**40))]},
        "ends within",
    ),
    "an alignment of 0": ({"pairs": [pair(_ALIGN, U32, u32(0))]}, "power of two"),
    "an alignment of 24": ({"pairs": [pair(_ALIGN, U32, u32(24))]}, "power of two"),
    "an alignment of 2³¹": ({"pairs": [pair(_ALIGN, U32, u32(2**31))]}, "power of two"),
    "an alignment of text": ({"pairs": [pair(_ALIGN, STRING, text("32"))]}, "power of two"),
    "a tensor twice": ({"entries": [Entry(), Entry(offset=512)]}, "twice"),
    "a tensor without a name": ({"entries": [Entry(name="")]}, "empty or not printable"),
    "a tensor's name that is too long": ({"entries": [Entry(name="x" * 300)]}, "255 are allowed"),
    "no dimension": ({"entries": [Entry(dimensions=())]}, "0 dimensions"),
    "five dimensions": ({"entries": [Entry(dimensions=(1,) * 5)]}, "5 dimensions"),
    "dimensions beyond counting": ({"entries": [Entry(rank=2**31)]}, "2147483648 dimensions"),
    "a dimension of 0": ({"entries": [Entry(dimensions=(32, 0))]}, "impossible dimensions"),
    "a dimension of 2⁶³": ({"entries": [Entry(dimensions=(2**63,))]}, "impossible dimensions"),
    "a huge tensor": ({"entries": [Entry(dimensions=(2**40, 2**20))]}, "beyond its end"),
    "a type that was removed": ({"entries": [Entry(kind=4)]}, "ggml type 4"),
    "a type of the future": ({"entries": [Entry(kind=4000)]}, "ggml type 4000"),
    "rows of broken blocks": ({"entries": [Entry(dimensions=(31, 2), kind=8)]}, "whole blocks"),
    "an offset out of step": ({"entries": [Entry(offset=16)]}, "not a multiple"),
    "an offset beyond the end": ({"entries": [Entry(offset=2**20)]}, "beyond its end"),
    "an offset beyond counting": ({"entries": [Entry(offset=2**64 - 32)]}, "beyond its end"),
    "tensors that overlap": (
        {"entries": [Entry("a", (64,)), Entry("b", (64,), offset=128)]}, "'a' and 'b' overlap",
    ),
    "a hole between tensors": (
        {"entries": [Entry("a", (8,)), Entry("b", (8,), offset=256)]}, "belong to no tensor",
    ),
    "bytes at the end": ({"tail": b"x" * 64}, "64 bytes at its end"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_lie_is_refused(case: str, tmp_path: Path) -> None:
    changes, words = HOSTILE[case]
    path = _write(tmp_path / "bad.gguf", **changes)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=words):
        read_gguf_header(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20, "a claimed size was believed"
    _refusal(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = Raw().encode(entries=_TWO, data=bytes(256))
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole)
    assert len(read_gguf_header(path).tensors) == 2
    data = len(whole) - 256
    for length in [*range(data), *range(data, len(whole), 31), len(whole) - 1]:
        path.write_bytes(whole[:length])
        _refusal(path)


def test_a_header_has_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursor, "MAX_HEADER_BYTES", 4096)
    monkeypatch.setattr(cursor, "_PIECE_BYTES", 512)
    path = _write(tmp_path / "fat.gguf", pairs=[pair("x", STRING, text("a" * 9000))])
    assert "header of more than 4096 bytes" in _refusal(path)
    monkeypatch.setattr(header, "_MAX_TENSORS", 1)
    path = _write(tmp_path / "many.gguf", entries=_TWO, data=bytes(256))
    assert "2 tensors" in _refusal(path)


def test_pieces_of_the_file_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"word {number}" for number in range(500)]
    value = u32(STRING) + u64(len(words)) + b"".join(map(text, words))
    path = _write(tmp_path / "long.gguf", pairs=[pair("x", ARRAY, value)])
    expected = read_gguf_header(path)
    monkeypatch.setattr(cursor, "_PIECE_BYTES", 7)
    assert read_gguf_header(path) == expected
    assert expected.metadata["x"] == [word.encode() for word in words]


@settings(max_examples=150, deadline=None)
@given(
    place=st.integers(0, 500), value=st.integers(0, 255), more=st.integers(0, 500),
    other=st.sampled_from([0, 1, 127, 128, 255]),
)  # fmt: skip
def test_noise_never_breaks_more_than_the_file(
    place: int, value: int, more: int, other: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = bytearray(Raw().encode(entries=_TWO, data=bytes(256)))
    raw[place % len(raw)] = value
    raw[more % len(raw)] = other
    path = tmp_path_factory.mktemp("noise") / "noise.gguf"
    path.write_bytes(raw)
    try:
        found = read_gguf_header(path)
    except CheckpointError:
        return
    for tensor in found.tensors.values():
        assert tensor.offset + tensor.nbytes <= len(raw)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "cannot be read" in _refusal(tmp_path)
    assert "cannot be read" in _refusal(tmp_path / "absent.gguf")

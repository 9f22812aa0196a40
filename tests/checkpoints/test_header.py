"""Headers: everything the reference implementation writes is read, and nothing else is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from forge.checkpoints.header import parse_header, read_header
from forge.core.errors import CheckpointError
from tests.factory import header_bytes

_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12
).filter(lambda name: name.isprintable() and name != "__metadata__")
_SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


def _entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _file(path: Path, table: object, data: bytes = b"") -> Path:
    path.write_bytes(header_bytes(table) + data)  # type: ignore[arg-type]
    return path


@given(st.dictionaries(_NAMES, st.tuples(st.sampled_from(sorted(_DTYPES)), _SHAPES), max_size=6))
@settings(max_examples=60, deadline=None)
def test_reads_what_the_reference_implementation_writes(
    rows: dict[str, tuple[str, tuple[int, ...]]],
) -> None:
    arrays = {name: np.ones(shape, _DTYPES[dtype]) for name, (dtype, shape) in rows.items()}
    raw = save(arrays, metadata={"format": "pt"})
    length = int.from_bytes(raw[:8], "little")
    header = parse_header(raw[8 : 8 + length], file=Path("x"), file_bytes=len(raw))
    assert header.metadata == {"format": "pt"}
    assert header.tensors.keys() == rows.keys()
    for name, (dtype, shape) in rows.items():
        tensor = header.tensors[name]
        assert (tensor.dtype, tensor.shape) == (dtype, shape)
        assert tensor.numel == arrays[name].size
        assert raw[tensor.offset : tensor.offset + tensor.nbytes] == arrays[name].tobytes()


@given(st.binary(max_size=200))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_bytes_raise_nothing_but_checkpoint_errors(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError):
        read_header(path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["F32", "BF16", 2**63, 2**64, -1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["dtype", "shape", "data_offsets", "x", "__metadata__"]), inner, max_size=4
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), _JSON, max_size=3))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_json_is_read_or_refused(tmp_path: Path, table: dict[str, object]) -> None:
    path = _file(tmp_path / "fuzz.safetensors", table)
    try:
        header = read_header(path)
    except CheckpointError:
        return
    assert all(tensor.nbytes == 0 for tensor in header.tensors.values())


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_byte_never_escapes(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(save({"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.int64)}))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(raw)
    try:
        header = read_header(path)
    except CheckpointError:
        return
    for tensor in header.tensors.values():
        assert header.data_start <= tensor.offset
        assert tensor.offset + tensor.nbytes <= len(raw)


_GOOD = _entry("F32", [2], 0, 8)
_CASES: dict[str, tuple[object, bytes, str]] = {
    "overlap": (
        {"a": _GOOD, "b": _entry("F32", [2], 4, 12)}, b"\0" * 12, "'a' and 'b' overlap",
    ),
    "same place": ({"a": _GOOD, "b": _GOOD}, b"\0" * 8, "overlap"),
    "hole": ({"a": _GOOD, "b": _entry("F32", [1], 12, 16)}, b"\0" * 16, "4 bytes before"),
    "hole at the start": ({"a": _entry("F32", [1], 4, 8)}, b"\0" * 8, "4 bytes before"),
    "bytes at the end": ({"a": _GOOD}, b"\0" * 9, "1 bytes at its end"),
    "truncated data": ({"a": _GOOD}, b"\0" * 7, "truncated"),
    "wrong size": ({"a": _entry("F32", [3], 0, 8)}, b"\0" * 8, "needs 12"),
    "huge product": ({"a": _entry("F32", [2**47, 2**47], 0, 8)}, b"\0" * 8, "needs"),
    "product that wraps to 8 in 64 bits": (
        {"a": _entry("F32", [2**32, 2**30 + 1], 0, 8)}, b"\0" * 8, "needs",
    ),
    "huge dimension": ({"a": _entry("F32", [2**60], 0, 8)}, b"\0" * 8, "whole numbers"),
    "negative dimension": ({"a": _entry("F32", [-2], 0, 8)}, b"\0" * 8, "whole numbers"),
    "true as dimension": ({"a": _entry("F32", [True, 2], 0, 8)}, b"\0" * 8, "whole numbers"),
    "float as dimension": ({"a": _entry("F32", [2.0], 0, 8)}, b"\0" * 8, "whole numbers"),  # type: ignore[list-item]
    "rank": ({"a": _entry("F32", [1] * 33, 0, 4)}, b"\0" * 4, "at most 32"),
    "shape no list": ({"a": {**_GOOD, "shape": 2}}, b"\0" * 8, "not a list"),
    "unknown dtype": ({"a": {**_GOOD, "dtype": "F33"}}, b"\0" * 8, "'F33'"),
    "dtype no string": ({"a": {**_GOOD, "dtype": ["F32"]}}, b"\0" * 8, "does not know"),
    "reversed": ({"a": _entry("F32", [2], 8, 0)}, b"\0" * 8, "[8, 0)"),
    "negative offset": ({"a": _entry("F32", [2], -8, 0)}, b"\0" * 8, "whole numbers"),
    "three offsets": ({"a": {**_GOOD, "data_offsets": [0, 8, 8]}}, b"\0" * 8, "two whole"),
    "extra key": ({"a": {**_GOOD, "x": 1}}, b"\0" * 8, "exactly"),
    "missing key": ({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8, "exactly"),
    "entry no object": ({"a": 1}, b"", "exactly"),
    "empty name": ({"": _GOOD}, b"\0" * 8, "empty name"),
    "zero byte in name": ({"a\0b": _GOOD}, b"\0" * 8, "unprintable"),
    "escape in name": ({"\x1b[31m": _GOOD}, b"\0" * 8, "unprintable"),
    "surrogate in name": ({"\ud800": _GOOD}, b"\0" * 8, "unprintable"),
    "metadata no object": ({"__metadata__": 1}, b"", "__metadata__"),
    "metadata value": ({"__metadata__": {"a": 1}}, b"", "'a' is not a string"),
}  # fmt: skip


@pytest.mark.parametrize("case", _CASES)
def test_refuses(tmp_path: Path, case: str) -> None:
    table, data, message = _CASES[case]
    path = _file(tmp_path / "bad.safetensors", table, data)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert message in str(caught.value)
    assert "bad.safetensors" in str(caught.value)


def _framed(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


_RAW: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "0 bytes"),
    "seven bytes": (lambda: b"\0" * 7, "7 bytes"),
    "claims 2^60": (lambda: (2**60).to_bytes(8, "little") + b"{}", "claims a header"),
    "claims 2^64-1": (lambda: b"\xff" * 8 + b"{}", "claims a header"),
    "one more than there is": (lambda: (3).to_bytes(8, "little") + b"{}", "claims a header"),
    "no JSON": (lambda: _framed(b"abcd"), "not JSON"),
    "array": (lambda: _framed(b"[]"), "not JSON"),
    "empty header": (lambda: _framed(b""), "not JSON"),
    "not UTF-8": (lambda: _framed(b'{"\xff":1}'), "utf-8"),
    "torn JSON": (lambda: _framed(b'{"a":'), "corrupt header"),
    "NaN": (lambda: _framed(b'{"a":NaN}'), "NaN is not JSON"),
    "twice": (lambda: _framed(b'{"a":1,"a":2}'), "'a' appears twice"),
    "deep": (lambda: _framed(b'{"a":' + b"[" * 200_000), "nested brackets"),
    "deep with padding": (
        lambda: _framed(b'{"a":' + b"[" * 40_000 + b" " * 360_000), "recursion|corrupt header",
    ),
    "huge number": (lambda: _framed(b'{"a":' + b"9" * 10_000 + b"}"), "corrupt header"),
}  # fmt: skip


@pytest.mark.parametrize("case", _RAW)
def test_refuses_bytes(tmp_path: Path, case: str) -> None:
    make, message = _RAW[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(make())
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


def test_refuses_a_header_beyond_the_limit_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(300_000_000)
    with pytest.raises(CheckpointError, match="the format allows 100000000"):
        read_header(path)


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path)
    with pytest.raises(CheckpointError, match="No such file"):
        read_header(tmp_path / "absent")


def test_keeps_the_order_of_offsets(tmp_path: Path) -> None:
    table = {"late": _entry("U8", [1], 1, 2), "early": _entry("U8", [1], 0, 1)}
    header = read_header(_file(tmp_path / "x", table, b"ab"))
    assert list(header.tensors) == ["early", "late"]

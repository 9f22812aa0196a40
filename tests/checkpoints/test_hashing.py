"""Digests of tensors are XXH3-128, and a safetensors file's digest is made of them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import xxhash
from safetensors.numpy import save_file

from forge.checkpoints.hashing import (
    checksum_of,
    checksum_of_range,
    content_digest,
    record_file,
    record_files,
    record_safetensors,
)
from forge.core.errors import CheckpointError


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hash") / "big"
    path.write_bytes(hashlib.shake_256(b"seed").digest(3_500_001))
    return path


def test_files_and_ranges_have_the_xxh3_of_their_bytes(big: Path, tmp_path: Path) -> None:
    content = big.read_bytes()
    assert checksum_of(memoryview(content)) == xxhash.xxh3_128(content).hexdigest()
    for offset, nbytes in ((0, 0), (5, 1), (1_000_000, 2_500_001)):
        part = content[offset : offset + nbytes]
        assert checksum_of_range(big, offset, nbytes) == xxhash.xxh3_128(part).hexdigest()
    (tmp_path / "empty").touch()
    records = record_files([big, tmp_path / "empty"])
    assert [record.name for record in records] == ["big", "empty"]
    assert records[0].as_json() == {
        "bytes": 3_500_001,
        "xxh3_128": xxhash.xxh3_128(content).hexdigest(),
    }
    assert records[1].digest == xxhash.xxh3_128(b"").hexdigest()


def test_a_safetensors_file_has_the_digest_of_its_header_and_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"b": np.arange(7.0), "a": np.ones((2, 3), np.float32), "c": np.zeros((0, 4))}
    save_file(tensors, path)
    content = path.read_bytes()
    data_start = 8 + int.from_bytes(content[:8], "little")
    table = json.loads(content[8:data_start])
    order = sorted(table, key=lambda name: table[name]["data_offsets"])
    parts = [content[:data_start], *(tensors[name].tobytes() for name in order)]
    lines = "".join(f"{xxhash.xxh3_128(part).hexdigest()}\n" for part in parts)
    record = record_file(path)
    assert (record.algorithm, record.bytes) == ("xxh3_128_tree", len(content))
    assert record.digest == xxhash.xxh3_128(lines.encode()).hexdigest()

    known = {"a": xxhash.xxh3_128(tensors["a"].tobytes()).hexdigest()}
    assert record_safetensors(path, known=known) == record
    assert record_safetensors(path, known={"a": "0" * 32}) != record, "it must not read 'a' again"
    path.write_bytes(content[:-1] + b"\1")
    assert record_file(path).digest != record.digest


def test_content_does_not_depend_on_the_order_of_tensors() -> None:
    rows = [("b", "F32", (2,), "1" * 32), ("a", "BF16", (3, 1), "2" * 32)]
    lines = f"a\0BF16\0[3, 1]\0{'2' * 32}\nb\0F32\0[2]\0{'1' * 32}\n"
    assert content_digest(rows) == hashlib.sha256(lines.encode()).hexdigest()
    assert content_digest(rows[::-1]) == content_digest(rows)


def test_a_short_or_missing_file_is_an_error_and_not_a_wrong_hash(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="shorter than expected"):
        checksum_of_range(path, 0, 10)
    with pytest.raises(CheckpointError, match="cannot be read"):
        record_file(tmp_path / "absent")
    with pytest.raises(CheckpointError):
        record_file(tmp_path / "absent.safetensors")

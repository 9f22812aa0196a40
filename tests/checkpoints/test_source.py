"""Sources: zero-copy reading, and folders that lie."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from forge.checkpoints.index import INDEX_FILE
from forge.checkpoints.source import open_safetensors
from forge.core.errors import CheckpointError
from tests.factory import (
    from_bytes,
    header_bytes,
    read_values,
    tiny_checkpoint,
    write_safetensors,
)


def _edit_index(root: Path, **changes: str) -> None:
    path = root / INDEX_FILE
    index = json.loads(path.read_text())
    index["weight_map"].update(changes)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("shards", [1, 3])
def test_reads_every_tensor_as_it_was_written(tmp_path: Path, shards: int) -> None:
    root = tiny_checkpoint(tmp_path, shards=shards)
    source = open_safetensors(root, label="m")
    expected = read_values(root)
    assert set(source.names()) == set(expected)
    assert len(source.files()) == shards
    for name, values in expected.items():
        info = source.info(name)
        view = source.read(name)
        assert view.readonly
        assert view.nbytes == info.nbytes
        assert np.array_equal(from_bytes(view, info.dtype, info.shape), values)
    source.close()


def test_a_view_outlives_close_and_a_closed_source_refuses(tmp_path: Path) -> None:
    source = open_safetensors(tiny_checkpoint(tmp_path), label="m")
    view = source.read("model.norm.weight")
    before = bytes(view)
    source.close()
    assert bytes(view) == before
    with pytest.raises(CheckpointError, match="after it was closed"):
        source.read("model.norm.weight")


def test_names_the_model_when_a_tensor_is_missing(tmp_path: Path) -> None:
    source = open_safetensors(tiny_checkpoint(tmp_path), label="my/model")
    with pytest.raises(CheckpointError, match="'my/model' has no tensor 'x'"):
        source.read("x")


def test_prefetch_and_release_change_nothing(tmp_path: Path) -> None:
    source = open_safetensors(tiny_checkpoint(tmp_path), label="m")
    for name in source.names():
        before = bytes(source.read(name))
        source.prefetch(name)
        source.release(name)
        assert bytes(source.read(name)) == before


def test_a_misaligned_tensor_is_copied_to_an_aligned_place(tmp_path: Path) -> None:
    values = np.arange(5, dtype=np.float64)
    table = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F64", "shape": [5], "data_offsets": [3, 43]},
        "c": {"dtype": "F32", "shape": [0, 7], "data_offsets": [43, 43]},
    }
    (tmp_path / "model.safetensors").write_bytes(header_bytes(table) + b"xyz" + values.tobytes())
    source = open_safetensors(tmp_path, label="m")
    array = np.frombuffer(source.read("b"), np.float64)
    assert array.flags.aligned
    assert np.array_equal(array, values)
    assert source.read("c").nbytes == 0


def test_many_threads_share_one_map(tmp_path: Path) -> None:
    source = open_safetensors(tiny_checkpoint(tmp_path, shards=3), label="m")
    seen: dict[str, list[bytes]] = {name: [] for name in source.names()}
    start = threading.Barrier(8)

    def read_all() -> None:
        start.wait()
        for name in source.names():
            seen[name].append(bytes(source.read(name)))

    threads = [threading.Thread(target=read_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(copies) == 8 and len(set(copies)) == 1 for copies in seen.values())


def test_a_file_that_changed_since_its_header_was_read_is_noticed(tmp_path: Path) -> None:
    source = open_safetensors(tiny_checkpoint(tmp_path), label="m")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(CheckpointError, match="changed while it was in use"):
        source.read("model.norm.weight")


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "x\\y",
              "model.bin", "a\0b.safetensors"],
)  # fmt: skip
def test_an_index_cannot_point_elsewhere(tmp_path: Path, shard: str) -> None:
    root = tiny_checkpoint(tmp_path / "m", shards=2)
    write_safetensors(tmp_path / "outside.safetensors", {"model.norm.weight": ("U8", [1], b"x")})
    _edit_index(root, **{"model.norm.weight": shard})
    with pytest.raises(CheckpointError, match="not a safetensors file of its folder"):
        open_safetensors(root, label="m")


def test_a_shard_cannot_be_a_link_out_of_the_folder(tmp_path: Path) -> None:
    root = tiny_checkpoint(tmp_path / "m")
    secret = tmp_path / "secret.safetensors"
    (root / "model.safetensors").rename(secret)
    (root / "model.safetensors").symlink_to(secret)
    with pytest.raises(CheckpointError, match="outside the model's folder"):
        open_safetensors(root, label="m")


def test_the_cache_of_the_hub_may_link_to_its_blobs_only(tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    root = tiny_checkpoint(repository / "snapshots" / "abc", shards=1)
    blob = repository / "blobs" / "0123"
    blob.parent.mkdir()
    (root / "model.safetensors").rename(blob)
    (root / "model.safetensors").symlink_to("../../blobs/0123")
    assert open_safetensors(root, label="m").names()
    blob.rename(repository / "0123")
    (root / "model.safetensors").unlink()
    (root / "model.safetensors").symlink_to("../../0123")
    with pytest.raises(CheckpointError, match="outside the model's folder"):
        open_safetensors(root, label="m")


def test_a_folder_reached_through_a_link_is_fine(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "real", shards=2)
    (tmp_path / "link").symlink_to("real")
    assert open_safetensors(tmp_path / "link", label="m").names()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    root = tiny_checkpoint(tmp_path, shards=3)
    (root / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 3 .*model-00002-of-00003"):
        open_safetensors(root, label="m")


def test_an_index_must_agree_with_its_shards(tmp_path: Path) -> None:
    root = tiny_checkpoint(tmp_path / "a", shards=2)
    _edit_index(root, **{"model.norm.weight": "model-00001-of-00002.safetensors"})
    with pytest.raises(CheckpointError, match="which does not hold it"):
        open_safetensors(root, label="m")
    root = tiny_checkpoint(tmp_path / "b", shards=2)
    index = json.loads((root / INDEX_FILE).read_text())
    del index["weight_map"]["model.norm.weight"]
    (root / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"does not place tensor 'model.norm.weight'"):
        open_safetensors(root, label="m")


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    row = ("U8", [1], b"x")
    write_safetensors(tmp_path / "a.safetensors", {"x": row, "y": row})
    write_safetensors(tmp_path / "b.safetensors", {"z": row, "y": row})
    weight_map = {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"does not place tensor 'y' in 'b.safetensors'"):
        open_safetensors(tmp_path, label="m")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"), ("[]", "JSON object"), ("{}", "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"), ('{"weight_map": {"a": 1}}', "no file name"),
        ("[" * 100_000, "not valid JSON"),
    ],
)  # fmt: skip
def test_a_broken_index_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / INDEX_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        open_safetensors(tmp_path, label="m")


def test_a_stale_index_beside_a_single_file_is_an_error(tmp_path: Path) -> None:
    root = tiny_checkpoint(tmp_path, shards=2)
    tiny_checkpoint(tmp_path, shards=1, layers=3)
    with pytest.raises(CheckpointError, match="disagree"):
        open_safetensors(root, label="m")
    (root / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="delete the stale"):
        open_safetensors(root, label="m")


def test_two_equal_sets_of_files_are_read_with_a_notice(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, shards=1)
    source = open_safetensors(tiny_checkpoint(tmp_path, shards=2), label="m")
    assert [path.name for path in source.files()] == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    ]  # fmt: skip
    assert "the shards are read" in source.notices[0]


@pytest.mark.parametrize(
    ("file", "hint"),
    [
        ("pytorch_model.bin", "weights_only=True"), ("model.Q4_K.gguf", "GGUF"),
        ("adapter_config.json", "base+m"), ("other.safetensors", "Rename"),
        ("readme.txt", "folder of a model"),
    ],
)  # fmt: skip
def test_a_folder_without_weights_says_what_it_has(tmp_path: Path, file: str, hint: str) -> None:
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=hint.replace("+", r"\+")):
        open_safetensors(tmp_path, label="m")

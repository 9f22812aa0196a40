"""Every way in which a checkpoint can differ from its manifest is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from forge.core.errors import CheckpointError
from forge.verify import digests as module
from forge.verify.folder import verify_folder
from tests.factory import write_safetensors
from tests.verify.published import describe, edit_manifest, publish, tensors_of, write_manifest

WEIGHTS = "model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"


def found(root: Path) -> list[tuple[str, str]]:
    return [(item.kind, item.name) for item in verify_folder(root).differences]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return publish(tmp_path / "model")


def flip(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)


def offset_of(path: Path, name: str) -> int:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    begin = json.loads(raw[8 : 8 + length])[name]["data_offsets"][0]
    assert isinstance(begin, int)
    return 8 + length + begin


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("block", [64, 1000, 1 << 20])
def test_an_untouched_checkpoint_is_ok(
    shards: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", block)
    root = publish(tmp_path / "model", shards=shards)
    report = verify_folder(root)
    assert report.differences == ()
    assert report.ok
    assert report.num_bytes == sum(
        path.stat().st_size
        for path in root.rglob("*")
        if path.is_file() and path.name != "forge_manifest.json"
    )
    assert report.num_tensors == 21


@pytest.mark.parametrize("block", [64, 1 << 20])
def test_one_flipped_bit_names_file_and_tensor(
    block: int, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", block)
    flip(published / WEIGHTS, offset_of(published / WEIGHTS, UP) + 11)
    assert found(published) == [("hash", WEIGHTS), ("tensor", UP)]


def test_a_manifest_may_use_another_hash(published: Path) -> None:
    write_manifest(published, describe(published, algorithm="xxh3_128"))
    assert found(published) == []
    flip(published / WEIGHTS, offset_of(published / WEIGHTS, UP) + 11)
    report = verify_folder(published)
    assert [item.kind for item in report.differences] == ["hash", "tensor"]
    assert "has XXH3-128 " in report.differences[0].message


def test_a_changed_small_file_is_found(published: Path) -> None:
    flip(published / "chat_templates" / "tool.jinja", 3)
    flip(published / "config.json", len((published / "config.json").read_bytes()) - 1)
    assert ("hash", "chat_templates/tool.jinja") in found(published)
    assert ("hash", "config.json") in found(published)


def test_missing_and_additional_files_are_found(published: Path) -> None:
    (published / "generation_config.json").unlink()
    (published / "extra.bin").write_bytes(b"x")
    (published / "more").mkdir()
    (published / "more" / "deep.txt").write_bytes(b"x")
    assert found(published) == [
        ("extra", "extra.bin"),
        ("extra", "more/deep.txt"),
        ("missing", "generation_config.json"),
    ]


def test_a_stale_index_is_found(published: Path) -> None:
    (published / "model.safetensors.index.json").write_text(
        '{"weight_map": {"x": "y.safetensors"}}'
    )
    kinds = found(published)
    assert ("extra", "model.safetensors.index.json") in kinds
    assert ("structure", str(published)) in kinds


def test_hidden_files_are_not_looked_at(published: Path) -> None:
    (published / ".gitattributes").write_text("x")
    (published / ".cache").mkdir()
    (published / ".cache" / "x").write_text("x")
    assert found(published) == []


def test_a_truncated_file_is_found_with_all_its_tensors(published: Path) -> None:
    path = published / WEIGHTS
    path.write_bytes(path.read_bytes()[:-2])
    kinds = found(published)
    assert ("structure", WEIGHTS) in kinds
    assert ("size", WEIGHTS) in kinds
    assert sum(kind == "tensor" for kind, _ in kinds) == 21


def rename(tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    tensors["model.layers.1.mlp.other.weight"] = tensors.pop(UP)


def reshape(tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    dtype, shape, data = tensors[UP]
    tensors[UP] = (dtype, shape[::-1], data)


def retype(tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    _, shape, data = tensors[UP]
    tensors[UP] = ("F16", shape, data)


@pytest.mark.parametrize(
    ("edit", "words"),
    [(rename, "is not in the manifest"), (reshape, "the manifest says BF16 [32, 16]"),
     (retype, "is F16 [32, 16]; the manifest says BF16")],
)  # fmt: skip
def test_tensors_that_are_others_than_stated_are_named(
    edit: Callable[[dict[str, tuple[str, list[int], bytes]]], None], words: str, published: Path
) -> None:
    tensors = tensors_of(published / WEIGHTS)
    edit(tensors)
    write_safetensors(published / WEIGHTS, tensors)
    report = verify_folder(published)
    assert any(words in item.message for item in report.differences if item.kind == "tensor")
    if edit is rename:
        assert ("tensor", UP) in [(item.kind, item.name) for item in report.differences]


def test_a_config_of_another_depth_is_found(tmp_path: Path) -> None:
    root = publish(tmp_path / "model")
    config = json.loads((root / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (root / "config.json").write_text(json.dumps(config))
    messages = [item.message for item in verify_folder(root).differences]
    assert "config.json states 3 layers; the files hold 2." in messages


def test_an_edited_manifest_is_found(published: Path) -> None:
    def edit(manifest: dict[str, object]) -> None:
        tensors = manifest["tensors"]
        assert isinstance(tensors, dict)
        del tensors[UP]

    edit_manifest(published, edit)
    assert found(published) == [("tensor", UP), ("manifest", "forge_manifest.json")]


def test_a_link_out_of_the_folder_is_not_followed(published: Path, tmp_path: Path) -> None:
    content = (published / "config.json").read_bytes()
    (tmp_path / "elsewhere.json").write_bytes(content)
    (published / "config.json").unlink()
    (published / "config.json").symlink_to(tmp_path / "elsewhere.json")
    assert ("structure", "config.json") in found(published)


def test_without_a_manifest_there_is_nothing_to_verify(published: Path) -> None:
    (published / "forge_manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no forge_manifest\.json"):
        verify_folder(published)
    with pytest.raises(CheckpointError, match="is not a folder"):
        verify_folder(published / "nothing")


class Counter:
    """Adds up what it hears; several threads call it."""

    def __init__(self) -> None:
        self.total = 0
        self.heard: list[int] = []

    def stage(self, name: str) -> None:
        assert name == "verifying"

    def start(self, total_bytes: int, done_bytes: int) -> None:
        assert done_bytes == 0
        self.total = total_bytes

    def advance(self, num_bytes: int) -> None:
        self.heard.append(num_bytes)

    def notice(self, text: str) -> None:
        raise AssertionError(text)


def test_progress_hears_every_byte(published: Path) -> None:
    progress = Counter()
    report = verify_folder(published, progress=progress)
    assert sum(progress.heard) == progress.total == report.num_bytes > 0

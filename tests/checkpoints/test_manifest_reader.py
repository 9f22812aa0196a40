"""A manifest is a stranger's file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forge.checkpoints.hashing import content_digest
from forge.checkpoints.manifest_reader import read_manifest
from forge.core.errors import CheckpointError
from tests.verify.published import MANIFEST, edit_manifest, publish

CLAIM = {"bytes": 1, "sha256": "0" * 64}


def set_key(*path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def edit(manifest: dict[str, Any]) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (set_key("schema", value=2), "schema 2; this forge reads 1"),
        (set_key("files", value=[]), "'files' is []"),
        (set_key("tensors", value=None), "'tensors' is None"),
        (set_key("models", value=[1]), "'models' is [1]"),
        (set_key("content_digest", value=3), "'content_digest' is 3"),
        (set_key("files", "config.json", value={"bytes": True, "sha256": "0" * 64}), "is damaged"),
        (set_key("files", "config.json", value={"bytes": 1, "sha256": "xyz"}), "is damaged"),
        (set_key("files", "../../etc/passwd", value=CLAIM), "which is no file of its folder"),
        (set_key("files", "/etc/passwd", value=CLAIM), "which is no file of its folder"),
        (set_key("files", "a/b/c", value=CLAIM), "which is no file of its folder"),
        (set_key("files", "", value=CLAIM), "which is no file of its folder"),
        (set_key("files", MANIFEST, value=CLAIM), "which is no file of its folder"),
        (set_key("tensors", "x", value={"dtype": "BF16", "shape": [-1], "xxh3_128": ""}),
         "'tensors.x' is"),
        (set_key("tensors", "x", value=7), "'tensors.x' is 7"),
    ],
)  # fmt: skip
def test_a_malformed_manifest_is_refused(
    edit: Callable[[dict[str, Any]], None], words: str, tmp_path: Path
) -> None:
    root = publish(tmp_path / "model")
    edit_manifest(root, edit)
    with pytest.raises(CheckpointError) as caught:
        read_manifest(root)
    assert words in str(caught.value)
    assert MANIFEST in str(caught.value)


def test_a_good_manifest_is_read(tmp_path: Path) -> None:
    manifest = read_manifest(publish(tmp_path / "model"))
    assert manifest is not None
    assert manifest.models == ("a", "b")
    claim = manifest.tensors["model.embed_tokens.weight"]
    assert (claim.dtype, claim.shape, claim.method) == ("BF16", (32, 16), "ties")
    assert claim.num_elements == 512
    assert claim.statistics["norms"] == [3.0, 4.0]
    assert "method" not in claim.statistics
    assert (
        content_digest(
            (name, claim.dtype, claim.shape, claim.xxh3_128)
            for name, claim in manifest.tensors.items()
        )
        == manifest.content_digest
    )
    assert "chat_templates/tool.jinja" in manifest.files


def test_no_manifest_is_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None

"""What a model is: its fingerprint changes with every byte that counts, and with no other."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from forge import api
from forge.checkpoints.checkpoint import open_checkpoint
from forge.recipes.reference import ModelReference
from forge.results.records import ModelRecord
from forge.runtime.subject import describe
from tests.factory import tiny_checkpoint


def record_of(folder: Path) -> ModelRecord:
    checkpoint = open_checkpoint(ModelReference.parse(str(folder)), stored=True)
    try:
        return describe(checkpoint)
    finally:
        checkpoint.source.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_checkpoint(folder)
    return folder


def test_a_copy_is_the_same_model(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(model, copy)
    (copy / "README.md").write_text("---\nlicense: mit\n---\n# A card\n")
    first, second = record_of(model), record_of(copy)
    assert first.fingerprint == second.fingerprint
    assert (first.label, second.label) == ("model", "copy")
    assert (first.licence, second.licence) == (None, "mit")


def test_a_folder_that_is_called_after_its_format_says_of_what(tmp_path: Path) -> None:
    folder = tmp_path / "biomistral-awq" / "awq-gemm"
    tiny_checkpoint(folder)
    assert record_of(folder).label == "biomistral-awq/awq-gemm"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_one_byte_makes_another_model(model: Path, name: str) -> None:
    before = record_of(model).fingerprint
    path = model / name
    stat = path.stat()
    content = bytearray(path.read_bytes())
    if name == "model.safetensors":
        content[-1] ^= 1
    else:
        content += b" "
    path.write_bytes(content)
    # The same times as before: what counts are bytes.
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert record_of(model).fingerprint != before


def test_an_unreadable_card_says_nothing_about_the_model(model: Path) -> None:
    (model / "README.md").write_text("---\nlicense: [\n---\n")
    assert record_of(model).licence is None


def test_a_merge_carries_what_it_measured(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        tiny_checkpoint(tmp_path / name, seed=seed)
    recipe = tmp_path / "merge.yaml"
    recipe.write_text(
        f"merge_method: slerp\nbase_model: {tmp_path}/a\nmodels:\n  - model: {tmp_path}/a\n"
        f"  - model: {tmp_path}/b\nparameters: {{t: 0.5}}\ndtype: bfloat16\n"
    )
    api.merge(str(recipe), tmp_path / "merged")
    found = record_of(tmp_path / "merged")
    assert found.method == "slerp"
    assert found.manifest is not None
    assert "tensors" not in found.manifest
    assert "files" not in found.manifest
    statistics = found.manifest["statistics"]
    assert isinstance(statistics, list)
    assert [row["place"] for row in statistics if "layer" in row["place"]][:2] == [
        "layer 0", "layer 1",
    ]  # fmt: skip
    assert found.num_parameters == record_of(tmp_path / "a").num_parameters

"""A recipe through mergekit itself, offline."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from forge import api
from forge.core.errors import IncompatibleError, MissingExtraError, OutputError
from forge.merge.mergekit_recipe import mergekit_recipe
from tests.factory import read_values, tiny_checkpoint

RECIPE: dict[str, Any] = {
    "name": "mix",
    "seed": 5,
    "max_shard_size": "1GB",
    "merge_method": "slerp",
    "base_model": "base",
    "models": [{"model": "base"}, {"model": "tuned"}],
    "parameters": {"t": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}]},
    "dtype": "bfloat16",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tiny_checkpoint(tmp_path / "base")
    tiny_checkpoint(tmp_path / "tuned", tune=1)
    return tmp_path


def write(folder: Path, **changes: object) -> str:
    content = {key: value for key, value in {**RECIPE, **changes}.items() if value is not None}
    (folder / "mix.yaml").write_text(yaml.safe_dump(content))
    return "mix.yaml"


def test_it_merges_verifies_and_agrees_with_forge(folder: Path) -> None:
    pytest.importorskip("mergekit")
    result = api.merge(write(folder), Path("theirs"), engine="mergekit", threads=1)
    assert result.num_tensors == 21
    assert api.verify(Path("theirs")).ok
    manifest = json.loads(Path("theirs/forge_manifest.json").read_text())
    assert manifest["engine"]["name"] == "mergekit"
    assert manifest["recipe"]["seed"] == 5
    assert "max_shard_size" not in manifest["recipe"]
    assert [item["role"] for item in manifest["inputs"]] == ["base", "model"]
    assert all(len(item["files"][0]["xxh3_128_tree"]) == 32 for item in manifest["inputs"])
    assert str(folder) not in Path("theirs/README.md").read_text()
    assert Path("theirs/model.safetensors").stat().st_mode & 0o777 == 0o644
    assert not Path("theirs.forge-partial").exists()
    api.merge("mix.yaml", Path("ours"))
    theirs, ours = read_values(Path("theirs")), read_values(Path("ours"))
    assert theirs.keys() == ours.keys()
    for name, values in ours.items():
        # Two bfloat16 steps: mergekit rounds more than once.
        assert theirs[name] == pytest.approx(values, rel=2**-6, abs=1e-3), name


def test_a_failure_says_what_mergekit_said_and_leaves_nothing(folder: Path) -> None:
    pytest.importorskip("mergekit")
    config = json.loads(Path("tuned/config.json").read_text())
    config["architectures"], config["model_type"] = ["Unheard"], "unheard"
    Path("tuned/config.json").write_text(json.dumps(config))
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(IncompatibleError, match=r"mergekit failed with exit code 1\. It said:"):
        api.merge(write(folder), Path("out"), engine="mergekit")
    assert sorted(path.name for path in folder.iterdir()) == [*sorted([*before, "mix.yaml"])]


def test_an_existing_output_is_refused_before_anything_runs(folder: Path) -> None:
    pytest.importorskip("mergekit")
    with pytest.raises(OutputError, match="exists and is not empty"):
        api.merge(write(folder), Path("base"), engine="mergekit")


def test_without_the_extra_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'forge\[mergekit\]'"):
        api.merge(write(folder), Path("out"), engine="mergekit")


def test_own_keys_are_stripped_and_words_translated(folder: Path) -> None:
    recipe = api.load_recipe(
        write(
            folder,
            merge_method="dare_ties",
            models=[{"model": "tuned", "parameters": {"weight": 0.5, "density": 0.5}}],
            parameters={"rescale": "l1"},
        )
    )
    content = mergekit_recipe(recipe)
    assert not {"name", "seed", "max_shard_size"} & content.keys()
    assert content["parameters"] == {"rescale": True}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parameters": {"rescale": "density"}}, "'rescale: density' cannot be done by mergekit"),
        ({"parameters": None, "seed": 2**32}, "takes no seed above"),
        ({"parameters": None, "allow_nonfinite": True}, "has no meaning for mergekit"),
    ],
)
def test_what_mergekit_cannot_do_is_refused(
    changes: dict[str, object], words: str, folder: Path
) -> None:
    models = [{"model": "tuned", "parameters": {"weight": 0.5, "density": 0.5}}]
    recipe = api.load_recipe(write(folder, merge_method="dare_ties", models=models, **changes))
    with pytest.raises(IncompatibleError, match=words):
        mergekit_recipe(recipe)


def test_tied_and_untied_models_are_refused(folder: Path) -> None:
    pytest.importorskip("mergekit")
    tiny_checkpoint(folder / "tied", tie=True)
    models = [{"model": "base"}, {"model": "tied"}]
    with pytest.raises(IncompatibleError, match=r"^tied is tied .* but base is not, which mergek"):
        api.merge(write(folder, models=models), Path("out"), engine="mergekit")
    assert not (folder / "out").exists()


def test_quantized_models_are_refused(folder: Path) -> None:
    pytest.importorskip("mergekit")
    config = json.loads((folder / "tuned" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "tuned" / "config.json").write_text(json.dumps(config))
    with pytest.raises(IncompatibleError, match=r"^tuned is quantized \(gptq, 4 bits\), and merge"):
        api.merge(write(folder), Path("out"), engine="mergekit")
    assert not (folder / "out").exists()


def test_slices_with_methods_of_their_own_are_refused(folder: Path) -> None:
    source = {"model": "tuned", "layer_range": [0, 1]}
    part = {"merge_method": "linear", "parameters": {"weight": 1}, "sources": [source]}
    recipe = api.load_recipe(
        write(folder, merge_method="passthrough", models=None, parameters=None, slices=[part])
    )
    with pytest.raises(IncompatibleError, match="one merge_method for all slices"):
        mergekit_recipe(recipe)


def test_a_stopped_merge_leaves_nothing_behind(folder: Path) -> None:
    pytest.importorskip("mergekit")
    write(folder)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "forge",
            "merge",
            "mix.yaml",
            "--out",
            "out",
            "--engine",
            "mergekit",
        ],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not Path("out.forge-partial/mergekit.log").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    _, message = process.communicate(timeout=30)
    assert process.returncode == 143
    assert message.splitlines()[-1] == "interrupted"
    assert not Path("out.forge-partial").exists()
    assert not Path("out").exists()

"""DeepSeek-V3 holds a layer behind its last, which predicts a further token: merged without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from forge.api import check, merge
from forge.cli.app import run
from tests.architectures.tiny_models import save_tiny

KEY = "num_nextn_predict_layers"


def save_with_further_layer(folder: Path, *, seed: int) -> None:
    """Save a model of two layers as it is published: with layer 2, which transformers ignores."""
    save_tiny("deepseek_v3", folder, seed=seed)
    path = folder / "model.safetensors"
    further = {
        name.replace("layers.1.", "layers.2."): tensor.clone()
        for name, tensor in load_file(path).items()
        if ".layers.1." in name
    }
    further["model.layers.2.eh_proj.weight"] = torch.ones(64, 128)
    save_file(load_file(path) | further, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {KEY: 1}))


def test_it_is_left_out_and_no_longer_promised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, out = (tmp_path / name for name in ("a", "b", "out"))
    for seed, folder in enumerate((a, b)):
        save_with_further_layer(folder, seed=seed)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"merge_method: slerp\nbase_model: {a}\nmodels: [{{model: {a}}}, {{model: {b}}}]\n"
        "parameters: {t: 0.5}\n"
    )
    found = [each for each in check(recipe).findings if each.code == "layers-extra"]
    assert [each.level for each in found] == ["warning", "warning"]
    assert f"{KEY} is written as 0" in found[0].message
    merge(recipe, out=out)
    assert json.loads((out / "config.json").read_text())[KEY] == 0
    assert not any(".layers.2." in name for name in load_file(out / "model.safetensors"))
    _, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    assert run(["verify", str(out)]) == 0
    # Quantization takes the merge, and says of the original what to do.
    arguments = ["--method", "rtn", "--group-size", "32", "--dry-run"]
    assert run(["quantize", str(out), *arguments]) == 0
    capsys.readouterr()
    assert run(["quantize", str(a), *arguments]) == 2
    assert "holds 1 layer behind its last" in capsys.readouterr().err


def test_a_promise_that_no_file_kept_is_left_alone(tmp_path: Path) -> None:
    """transformers itself saves the key without the layer; nothing was left out here."""
    for seed, name in enumerate(("a", "b")):
        save_tiny("deepseek_v3", tmp_path / name, seed=seed)
    recipe = tmp_path / "recipe.yaml"
    entries = "".join(
        f"  - model: {tmp_path / name}\n    parameters: {{weight: 1}}\n" for name in ("a", "b")
    )
    recipe.write_text(f"merge_method: linear\nmodels:\n{entries}")
    merge(recipe, out=tmp_path / "out")
    before, after = (
        json.loads((tmp_path / name / "config.json").read_text())[KEY] for name in ("a", "out")
    )
    assert before == after == 1

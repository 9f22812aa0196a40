"""``base+adapter`` is a model for every verb: what it adds, its vocabulary and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from forge.cli.app import run
from tests.factory import (
    random_values,
    read_values,
    tiny_checkpoint,
    to_bytes,
    write_safetensors,
    write_tokenizer,
)

Capture = pytest.CaptureFixture[str]

_UP = "model.layers.0.mlp.up_proj"
_ROWS = 40


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a base, an adapter that adds tokens, and another model of as many."""
    tiny_checkpoint(tmp_path / "base", hidden=64)
    tiny_checkpoint(tmp_path / "other", hidden=64, vocab=_ROWS, tune=1, extra_tokens=["ward"])
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    prefix = "base_model.model."
    tensors = {
        f"{prefix}{_UP}.lora_A.weight": random_values("a", (3, 64), seed=1),
        f"{prefix}{_UP}.lora_B.weight": random_values("b", (128, 3), seed=1),
        f"{prefix}model.embed_tokens.weight": random_values("e", (_ROWS, 64), seed=1),
        f"{prefix}lm_head.weight": random_values("h", (_ROWS, 64), seed=1),
    }
    rows = {name: ("F32", one.shape, to_bytes(one, "F32")) for name, one in tensors.items()}
    write_safetensors(adapter / "adapter_model.safetensors", rows)
    settings = {
        "peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["up_proj"],
        "rank_pattern": {"up_proj": 3}, "alpha_pattern": {"up_proj": 6},
        "base_model_name_or_path": "someone/base",
    }  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    write_tokenizer(adapter, extra_tokens=["ward"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def _expected(place: Path) -> dict[str, np.ndarray]:
    values, factors = read_values(place / "base"), read_values(place / "adapter")
    stem = "base_model.model."
    a, b = (factors[f"{stem}{_UP}.lora_{part}.weight"].astype("f8") for part in "AB")
    values[f"{_UP}.weight"] = values[f"{_UP}.weight"] + 2.0 * (b @ a)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        values[name] = factors[stem + name]
    return values


def _manifest(folder: Path) -> dict[str, object]:
    manifest: dict[str, object] = json.loads((folder / "forge_manifest.json").read_text())
    return manifest


def _check_inputs(folder: Path) -> None:
    inputs = _manifest(folder)["inputs"]
    assert isinstance(inputs, list)
    files = [file["name"] for file in inputs[0]["files"]]
    assert files == ["model.safetensors", "adapter_model.safetensors", "adapter_config.json"]
    assert inputs[0]["lora_revision"] is None


def test_merge(place: Path, capsys: Capture) -> None:
    (place / "recipe.yaml").write_text(
        "merge_method: passthrough\nmodels:\n  - model: ./base+./adapter\ndtype: bfloat16\n"
    )
    assert run(["check", "recipe.yaml"]) == 0
    assert "from 32 to 40 rows" in capsys.readouterr().out
    assert run(["merge", "recipe.yaml", "--out", "merged", "-q"]) == 0
    merged = read_values(place / "merged")
    for name, values in _expected(place).items():
        assert np.allclose(merged[name], values, rtol=2**-8, atol=1e-6), name
    assert json.loads((place / "merged/config.json").read_text())["vocab_size"] == _ROWS
    tokenizer = (place / "merged/tokenizer.json").read_bytes()
    assert tokenizer == (place / "adapter/tokenizer.json").read_bytes()
    _check_inputs(place / "merged")
    notices = _manifest(place / "merged")["notices"]
    assert isinstance(notices, list)
    assert any("tokenizer is that of the adapter" in str(notice) for notice in notices)


def test_merge_with_a_model_of_its_vocabulary(place: Path) -> None:
    (place / "recipe.yaml").write_text(
        "merge_method: linear\nmodels:\n  - model: ./base+./adapter\n"
        "    parameters: {weight: 0.25}\n  - model: ./other\n    parameters: {weight: 0.75}\n"
        "dtype: float32\n"
    )
    assert run(["merge", "recipe.yaml", "--out", "merged", "-q"]) == 0
    merged, other = read_values(place / "merged"), read_values(place / "other")
    for name, values in _expected(place).items():
        expected = 0.25 * values + 0.75 * other[name]
        assert np.allclose(merged[name], expected, rtol=2**-8, atol=2e-3), name


def test_changed_settings_are_another_merge(place: Path) -> None:
    (place / "recipe.yaml").write_text(
        "merge_method: passthrough\nmodels:\n  - model: ./base+./adapter\ndtype: bfloat16\n"
    )
    assert run(["merge", "recipe.yaml", "--out", "merged", "-q"]) == 0
    assert run(["merge", "recipe.yaml", "--out", "merged", "-q"]) == 0
    settings = place / "adapter/adapter_config.json"
    settings.write_text(settings.read_text().replace('"up_proj": 6', '"up_proj": 60'))
    assert run(["merge", "recipe.yaml", "--out", "merged", "-q"]) == 2
    assert run(["merge", "recipe.yaml", "--out", "merged", "-q", "--overwrite"]) == 0


def test_a_warning_for_an_adapter_of_another_model(place: Path, capsys: Capture) -> None:
    (place / "base").rename(place / "renamed")
    (place / "recipe.yaml").write_text(
        "merge_method: passthrough\nmodels:\n  - model: ./renamed+./adapter\ndtype: bfloat16\n"
    )
    assert run(["check", "recipe.yaml", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [one["level"] for one in findings if one["code"] == "adapter-base"] == ["warning"]


def test_diff(place: Path, capsys: Capture) -> None:
    assert run(["diff", "base+adapter", "base+adapter", "-q"]) == 0
    assert "No difference: 21 tensors" in capsys.readouterr().out
    assert run(["diff", "base", "base+adapter", "--json", "-q"]) == 0
    assert "tokenizer.json" in capsys.readouterr().out


def test_quantize(place: Path) -> None:
    arguments = ["--method", "bnb", "--type", "nf4", "--verify", "off", "--out", "small", "-q"]
    assert run(["quantize", "base+adapter", *arguments]) == 0
    _check_inputs(place / "small")
    assert json.loads((place / "small/config.json").read_text())["vocab_size"] == _ROWS
    tokenizer = (place / "small/tokenizer.json").read_bytes()
    assert tokenizer == (place / "adapter/tokenizer.json").read_bytes()
    tensors = _manifest(place / "small")["tensors"]
    assert isinstance(tensors, dict)
    assert tensors["model.embed_tokens.weight"]["shape"] == [_ROWS, 64]

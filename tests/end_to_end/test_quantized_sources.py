"""A quantized parent goes through merge, quantize, diff and verify as its dequantized copy does."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from forge import api  # noqa: E402
from forge.formats.catalog import format_row  # noqa: E402
from forge.quantize.layouts import Layout  # noqa: E402
from forge.recipes.quantize_types import Variant  # noqa: E402
from tests.factory import write_tokenizer  # noqa: E402
from tests.runtime.folders import is_block_linear, llama, quantize_weight  # noqa: E402

KINDS = ("awq-gemm", "gptq", "bnb-nf4", "bnb-int8", "fp8")


@dataclass(frozen=True)
class Parents:
    """A base in bfloat16, a quantized fine-tune, and the numbers that this one stands for."""

    base: Path
    quantized: Path
    dense: Path


def _fp8(weight: Any) -> tuple[dict[str, Any], Any]:
    scale = (weight.float().abs().amax() / 448).reshape(1, 1)
    codes = (weight.float() / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scale}, codes.float() * scale


def _codes(weight: Any, kind: str) -> tuple[dict[str, Any], Any]:
    made, values = quantize_weight(weight.float().numpy(), Variant(kind, 4, 64))
    parts = {suffix: torch.from_numpy(np.ascontiguousarray(part)) for suffix, part in made.items()}
    found = torch.from_numpy(values)
    # Layouts of codes have scales in float16, in which their libraries multiply.
    return parts, found.half() if format_row(kind).kind == "codes" else found


@pytest.fixture(scope="module", params=KINDS)
def parents(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Parents:
    """Write the three."""
    kind: str = request.param
    place = tmp_path_factory.mktemp(kind)
    base, dense, quantized = (place / name for name in ("base", "dense", "quantized"))
    model = llama(vocab_size=96)
    model.save_pretrained(base)
    write_tokenizer(base)
    tensors = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(7)
    parts: dict[str, Any] = {}
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator) * 0.02
        tensors[name] = tensor = (tensor.float() + noise).bfloat16()
        if not is_block_linear(name, tensor):
            parts[name] = tensor
            continue
        made, values = _fp8(tensor) if kind == "fp8" else _codes(tensor, kind)
        parts |= {f"{name.removesuffix('.weight')}.{suffix}": part for suffix, part in made.items()}
        tensors[name] = values.bfloat16()
    for folder, content in ((dense, tensors), (quantized, parts)):
        shutil.copytree(base, folder)
        save_file(content, folder / "model.safetensors", {"format": "pt"})
    declared: dict[str, object] = {"quant_method": "fp8"}
    if kind != "fp8":
        declared = Layout(Variant(kind, 4, 64), {}).quantization_config((), ("lm_head",))
    config = json.loads((base / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps({**config, "quantization_config": declared}))
    return Parents(base, quantized, dense)


def _merge(parents: Parents, tuned: Path, out: Path) -> dict[str, Any]:
    recipe = {
        "merge_method": "ties", "base_model": str(parents.base), "dtype": "bfloat16",
        "models": [{"model": str(tuned), "parameters": {"weight": 0.7, "density": 0.6}}],
    }  # fmt: skip
    file = out.with_suffix(".yaml")
    file.write_text(json.dumps(recipe))
    api.merge(file, out)
    manifest: dict[str, Any] = json.loads((out / "forge_manifest.json").read_text())
    return manifest


def test_a_merge_equals_that_of_the_dequantized_parent(parents: Parents, tmp_path: Path) -> None:
    made = _merge(parents, parents.quantized, tmp_path / "of-codes")
    expected = _merge(parents, parents.dense, tmp_path / "of-numbers")
    found, wanted = (
        load_file(tmp_path / name / "model.safetensors") for name in ("of-codes", "of-numbers")
    )
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name].view(torch.int16), tensor.view(torch.int16)), name
    notice = next(text for text in made["notices"] if "not in full precision" in text)
    assert str(parents.quantized) in notice
    assert "14 of 21 tensors" in notice
    assert not any("not in full precision" in text for text in expected["notices"])
    config = json.loads((tmp_path / "of-codes" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config == json.loads((tmp_path / "of-numbers" / "config.json").read_text())
    listed = {row["name"] for entry in made["inputs"] for row in entry["files"]}
    assert listed == {"model.safetensors"}
    assert api.verify(tmp_path / "of-codes").ok


def test_a_merge_is_not_made_twice(parents: Parents, tmp_path: Path) -> None:
    _merge(parents, parents.quantized, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    _merge(parents, parents.quantized, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before


def test_quantizing_again_equals_quantizing_the_numbers(parents: Parents, tmp_path: Path) -> None:
    for name, source in (("again", parents.quantized), ("first", parents.dense)):
        recipe = api.load_quantize_recipe(
            None, options={"model": str(source), "method": "rtn", "format": "gptq",
                           "group_size": 64},
        )  # fmt: skip
        api.quantize(recipe, tmp_path / name, verification="quick")
    again, first = (load_file(tmp_path / name / "model.safetensors") for name in ("again", "first"))
    assert again.keys() == first.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    manifest = json.loads((tmp_path / "again" / "forge_manifest.json").read_text())
    assert any("not in full precision" in text for text in manifest["notices"])
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "gptq"


def test_a_difference_is_taken_of_the_numbers(parents: Parents) -> None:
    assert api.diff(str(parents.quantized), str(parents.dense)).has_equal_tensors
    assert not api.diff(str(parents.quantized), str(parents.base)).has_equal_tensors


@pytest.mark.slow
@pytest.mark.parametrize(("method", "proof"), [("awq", "quick"), ("rtn", "full")])
def test_a_quantized_model_is_watched_at_work_and_compared_with(
    parents: Parents, tmp_path: Path, method: str, proof: Any
) -> None:
    calibration = {"calibration_samples": 4, "calibration_tokens": 64} if method == "awq" else {}
    recipe = api.load_quantize_recipe(
        None, options={"model": str(parents.quantized), "method": method, "group_size": 64,
                       **calibration},
    )  # fmt: skip
    api.quantize(recipe, tmp_path / "out", verification=proof, tokens=128)
    if proof == "full":
        manifest = json.loads((tmp_path / "out" / "forge_manifest.json").read_text())
        states = {check["check"]: check["state"] for check in manifest["verification"]["checks"]}
        assert states["divergence"] == states["load"] == "passed", states

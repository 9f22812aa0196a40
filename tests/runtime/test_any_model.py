"""Any model loads by the right hand, says which that was, and does not take more than there is."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from forge.checkpoints.checkpoint import open_checkpoint
from forge.core.errors import CheckpointError, ForgeError, IncompatibleError
from forge.recipes.reference import ModelReference
from forge.runtime import any_model
from forge.runtime.any_model import load_any, weights_in_memory
from tests.factory import tiny_checkpoint, to_bytes, write_safetensors
from tests.runtime.folders import llama, quantized_pair

IDS = torch.arange(4, 20).view(1, 16)


def logits(model: transformers.PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_a_plain_model_is_measured_in_float32_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(any_model, "_multiplies_bfloat16", lambda: False)
    folder = tiny_checkpoint(tmp_path / "model")
    loaded = load_any(str(folder))
    assert (loaded.backend, loaded.dtype, loaded.model.dtype) == ("forge", "float32", torch.float32)
    assert loaded.tokenizer("aspirin treats").input_ids == [1, 4, 5]
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded.model), logits(reference))


def test_a_cpu_with_tiles_keeps_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(any_model, "_multiplies_bfloat16", lambda: True)
    assert load_any(str(tiny_checkpoint(tmp_path / "a"))).dtype == "bfloat16"
    assert load_any(str(tiny_checkpoint(tmp_path / "b", dtype="F16"))).dtype == "float32"


def test_the_asked_type_is_the_one_that_runs(tmp_path: Path) -> None:
    loaded = load_any(str(tiny_checkpoint(tmp_path / "model")), dtype="bfloat16")
    assert (loaded.dtype, loaded.model.dtype) == ("bfloat16", torch.bfloat16)


def test_what_forge_quantized_runs_in_forge(tmp_path: Path) -> None:
    pair = quantized_pair(llama(), tmp_path, "awq-gemm")
    loaded = load_any(str(pair.quantized), dtype="float32")
    dense = load_any(str(pair.dense), dtype="float32")
    assert (loaded.backend, dense.backend) == ("forge", "forge")
    expected = logits(dense.model)
    assert (logits(loaded.model) - expected).abs().max() <= 2e-5 * expected.abs().max()


def int_quantized(root: Path) -> tuple[Path, Path]:
    """Write a model whose linear weights are int8 as compressed-tensors stores them, unpacked."""
    dense, foreign = root / "dense", root / "foreign"
    tiny_checkpoint(dense, hidden=32, dtype="F32")
    tiny_checkpoint(foreign, hidden=32, dtype="F32")
    tensors = load_file(dense / "model.safetensors")
    stored = dict(tensors)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        scale = tensors[name].abs().amax(1, keepdim=True) / 127
        codes = (tensors[name] / scale).round()
        tensors[name] = codes * scale
        stored[name] = codes.to(torch.int8)
        stored[name.removesuffix("weight") + "weight_scale"] = scale
    save_file(tensors, dense / "model.safetensors", {"format": "pt"})
    save_file(stored, foreign / "model.safetensors", {"format": "pt"})
    config = json.loads((foreign / "config.json").read_text())
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"],
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weights, "format": "int-quantized"}
        },
    }  # fmt: skip
    (foreign / "config.json").write_text(json.dumps(config))
    return dense, foreign


def test_a_foreign_format_runs_in_transformers_and_says_so(tmp_path: Path) -> None:
    dense, foreign = int_quantized(tmp_path)
    with warnings.catch_warnings():
        # What other libraries deprecate is no mistake of ours.
        warnings.simplefilter("ignore")
        loaded = load_any(str(foreign), dtype="float32")
    assert (loaded.backend, loaded.dtype) == ("transformers", "float32")
    torch.testing.assert_close(
        logits(loaded.model), logits(load_any(str(dense)).model), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"quant_method": "magic"}, "quantized by 'magic', which neither forge nor transformers"),
        ("int4", "quantized by None, which neither"),
        ({"quant_method": "eetq"}, "and transformers cannot load it either: .*Install the package"),
    ],
)
def test_a_format_that_nobody_loads(declared: object, message: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", config_overrides={"quantization_config": declared})
    with pytest.raises(CheckpointError, match=message):
        load_any(str(folder))


def test_a_model_that_does_not_fit_is_refused_by_its_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_checkpoint(tmp_path / "model", shards=2)
    checkpoint = open_checkpoint(ModelReference.parse(str(folder)), stored=True)
    num_parameters = sum(
        np.prod(checkpoint.source.info(name).shape) for name in checkpoint.source.names()
    )
    assert weights_in_memory(checkpoint, dtype="float32") == 4 * num_parameters
    monkeypatch.setattr(any_model, "available_memory", lambda: 4 * num_parameters)
    load_any(str(folder), dtype="float32")
    monkeypatch.setattr(any_model, "available_memory", lambda: 4 * num_parameters - 1)
    monkeypatch.setattr("forge.runtime.assemble.assemble", None)
    with pytest.raises(IncompatibleError, match=r"needs 0\.0 GB for its weights in float32"):
        load_any(str(folder), dtype="float32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "Nothing is computed in 'int8'"),
        ({"dtype": "float33"}, "Nothing is computed in 'float33'"),
        ({"device": "tpu"}, "There is no device 'tpu' here"),
    ],
)
def test_wrong_options(options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ForgeError, match=message):
        load_any(str(tiny_checkpoint(tmp_path / "model")), **options)  # type: ignore[arg-type]


def test_only_who_asks_for_a_tokenizer_needs_one(tmp_path: Path) -> None:
    loaded = load_any(str(tiny_checkpoint(tmp_path / "model", with_tokenizer=False)))
    assert loaded.model(torch.tensor([[1, 2]])).logits.shape[1] == 2
    with pytest.raises(CheckpointError, match="has no tokenizer that can be loaded"):
        _ = loaded.tokenizer


def test_an_adapter_is_part_of_the_model(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", dtype="F32")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    target = "model.layers.0.self_attn.q_proj"
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    parts = {"lora_A": ((1, 16), 1.0), "lora_B": ((16, 1), 0.25)}
    write_safetensors(
        adapter / "adapter_model.safetensors",
        {
            f"base_model.model.{target}.{name}.weight": (
                "F32", shape, to_bytes(np.full(shape, value), "F32"),
            )
            for name, (shape, value) in parts.items()
        },
    )  # fmt: skip
    plain = load_any(str(base)).model.get_submodule(target).weight
    tuned = load_any(f"{base}+{adapter}").model.get_submodule(target).weight
    # alpha / r times B times A.
    torch.testing.assert_close(tuned - plain, torch.full((16, 16), 0.5))

"""PEFT loads what was extracted on the base, and the two together are the fine-tune again."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("peft")

from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from forge.adapters.contract import Request
from forge.adapters.extract import run_extract
from forge.checkpoints.checkpoint import open_checkpoint
from forge.core.errors import IncompatibleError
from forge.recipes.reference import ModelReference
from tests.architectures.tiny_models import tiny_model
from tests.factory import from_bytes, read_values

RANK = 3
CASES = ("llama", "llama biases", "gpt2", "phi3", "mixtral")
MORE_CASES = ("qwen2", "gpt_neox", "bloom", "falcon 7b")


def _tune(model: PreTrainedModel, *, embeddings: bool) -> None:
    """Change every layer by a matrix of low rank, and every vector at will."""
    ends = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter in ends and not embeddings:
                continue
            if parameter.ndim == 1:
                parameter += 0.05 * torch.randn_like(parameter)
                continue
            *stack, rows, columns = parameter.shape
            left = torch.randn(*stack, rows, RANK)
            parameter += 0.01 * left @ torch.randn(*stack, RANK, columns)


def _logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.arange(3, 40)[None]).logits
    return logits


def _check(tmp_path: Path, case: str, request: Request, *, embeddings: bool) -> Path:
    base, out = tmp_path / "base", tmp_path / "adapter"
    model = tiny_model(case)
    model.save_pretrained(base)
    _tune(model, embeddings=embeddings)
    model.save_pretrained(tmp_path / "tuned")
    result = run_extract(str(tmp_path / "tuned"), str(base), out, request)
    assert result.kept > 0.9999
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out)
    assert not [one for one in caught if "adapter keys" in str(one.message)]
    assert torch.allclose(_logits(loaded.eval()), _logits(model), atol=2e-4)
    expected = read_values(tmp_path / "tuned")
    reference = ModelReference(str(base), lora=ModelReference(str(out)))
    source = open_checkpoint(reference).source
    assert set(source.names()) == set(expected)
    for name in source.names():
        info = source.info(name)
        ours = from_bytes(source.read(name), info.dtype, info.shape)
        assert np.allclose(ours, expected[name], atol=2e-6), name
    source.close()
    return out


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE_CASES)]
)
def test_layers_and_vectors(tmp_path: Path, case: str) -> None:
    _check(tmp_path, case, Request(RANK, None, "skip", "float32"), embeddings=False)


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_whole_embeddings(tmp_path: Path, case: str) -> None:
    _check(tmp_path, case, Request(RANK, None, "full", "float32"), embeddings=True)


def test_factors_of_embeddings(tmp_path: Path) -> None:
    _check(tmp_path, "llama", Request(RANK, None, "lora", "float32"), embeddings=True)


def test_a_share_of_the_energy(tmp_path: Path) -> None:
    _check(tmp_path, "llama biases", Request(None, 0.999999, "skip", "float32"), embeddings=False)


def test_a_tied_embedding_is_held_once_and_stays_tied(tmp_path: Path) -> None:
    out = _check(tmp_path, "gemma", Request(RANK, None, "full", "float32"), embeddings=True)
    config = open_checkpoint(
        ModelReference(str(tmp_path / "base"), lora=ModelReference(str(out)))
    ).config
    assert config["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("case", "request_", "dense"),
    [
        ("qwen3_moe", Request(RANK, None, "skip", "float32"), "mlp.gate"),
        # Layer 0 is dense, and layer 1 has shared experts.
        ("deepseek_v3", Request(None, 0.999999, "skip", "float32"), "layers.0.mlp.gate_proj"),
        pytest.param(
            "qwen2_moe", Request(RANK, None, "skip", "float32"), "shared_expert.down_proj",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_only_experts_that_peft_does_not_load_are_left_out(
    tmp_path: Path, case: str, request_: Request, dense: str
) -> None:
    base, tuned, out = tmp_path / "base", tmp_path / "tuned", tmp_path / "adapter"
    model = tiny_model(case)
    model.save_pretrained(base)
    _tune(model, embeddings=False)
    model.save_pretrained(tuned)
    result = run_extract(str(tuned), str(base), out, request_)
    lost = [row.name for row in result.tensors if row.fate == "lost"]
    assert lost
    assert all(".experts." in name for name in lost)
    assert any(dense in row.name for row in result.tensors if row.fate == "factors")
    assert any("experts of Mixtral alone" in str(text) for text in result.manifest["notices"])
    expected = read_values(tuned) | {name: read_values(base)[name] for name in lost}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out)
    assert not [one for one in caught if "adapter keys" in str(one.message)]
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = read_values(tmp_path / "merged")
    source = open_checkpoint(ModelReference(str(base), lora=ModelReference(str(out)))).source
    assert set(source.names()) == set(expected) == set(merged)
    for name, values in expected.items():
        info = source.info(name)
        ours = from_bytes(source.read(name), info.dtype, info.shape)
        assert np.allclose(merged[name], values, atol=1e-4), name
        assert np.allclose(ours, values, atol=1e-4), name
    source.close()


def test_experts_need_one_rank(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path / "base")
    _tune(model, embeddings=False)
    model.save_pretrained(tmp_path / "tuned")
    request = Request(None, 0.5, "skip", "float32")
    with pytest.raises(IncompatibleError, match="only if all have one rank"):
        run_extract(str(tmp_path / "tuned"), str(tmp_path / "base"), tmp_path / "out", request)

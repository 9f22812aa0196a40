"""Rows of decoder blocks: every linear is found, and every feeder takes in a scale exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from forge.architectures.block_table import BLOCKS
from forge.architectures.blocks import is_kept, linear_groups, quantizable_linears
from forge.architectures.names import architecture_of
from forge.architectures.table import ARCHITECTURES, Architecture
from forge.core.errors import CheckpointError, IncompatibleError
from tests.architectures.tiny_models import CASES, save_tiny

_NOT_FED = {
    # Linears whose input nothing makes alone, so that they are quantized without a scale.
    "llama grouped": {"o_proj"},
    "llama 3 8b": {"o_proj"},
    "llama 3 70b": {"o_proj"},
    # Its values are wider than its keys, so that heads do not divide into equal parts.
    "deepseek_v2 narrow": {"o_proj"},
    "mistral": {"o_proj"},
    "olmo2": {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"},
    "phi": {"fc2"},
    "gpt_neox": {"dense_4h_to_h"},
    "bloom": {"dense_4h_to_h"},
    "bloom post": {"query_key_value", "dense_h_to_4h", "dense_4h_to_h"},
    "falcon 7b": {"dense", "dense_4h_to_h"},
    "falcon 40b": {"dense", "dense_4h_to_h"},
    "falcon 11b": {"dense", "dense_4h_to_h"},
    "falcon rw": {"dense_4h_to_h"},
    "gpt2": {"mlp.c_proj"},
    "gptj": {"fc_out"},
    "mpt": {"out_proj", "down_proj"},
    "opt 350m": {"q_proj", "k_proj", "v_proj", "fc1"},
    "starcoder2": {"c_proj"},
}


@pytest.mark.parametrize("case", CASES)
def test_folding_a_random_scale_into_every_feeder_changes_no_output(
    case: str, tmp_path: Path
) -> None:
    model = save_tiny(case, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    architecture = architecture_of(config)
    groups = linear_groups(
        architecture, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, config
    )
    generator = torch.Generator().manual_seed(7)
    fed: set[str] = set()
    unfed: set[str] = set()
    for group in (group for block in groups.values() for group in block):
        names = {linear.module for linear in group.linears}
        if group.norm is None and group.feeder is None:
            unfed |= names
            continue
        fed |= names
        size = group.linears[0].shape_OI[1]
        scale = torch.exp(torch.randn(size, generator=generator))
        for linear in group.linears:
            tensors[linear.tensor] *= scale[:, None] if linear.transposed else scale
        for companion in group.companions:
            tensors[companion] *= scale
        if group.norm is not None:
            one = 1.0 if BLOCKS[architecture.name].one_plus else 0.0
            norm = tensors[f"{group.norm}.weight"]
            norm.copy_((norm + one) / scale - one)
            if f"{group.norm}.bias" in tensors:
                tensors[f"{group.norm}.bias"] /= scale
        else:
            rows = list(group.rows)
            feeder = tensors[f"{group.feeder}.weight"]
            if group.linears[0].transposed:
                feeder[:, rows] /= scale
            else:
                feeder[rows] /= scale[:, None]
            if f"{group.feeder}.bias" in tensors:
                tensors[f"{group.feeder}.bias"][rows] /= scale
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    folded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.randint(3, 96, (2, 24), generator=generator)
    with torch.no_grad():
        expected, found = model(tokens).logits, folded(tokens).logits
    assert torch.linalg.norm(found - expected) < 2e-4 * torch.linalg.norm(expected)
    assert not torch.equal(found, expected)
    ends = _NOT_FED.get(case, set())
    assert {name for name in fed | unfed if name.endswith(tuple(f".{end}" for end in ends))} == (
        unfed
    )


@pytest.mark.parametrize("case", CASES)
def test_every_matrix_of_a_block_is_a_linear_or_a_router(case: str, tmp_path: Path) -> None:
    save_tiny(case, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    architecture = architecture_of(json.loads((tmp_path / "config.json").read_text()))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    linears = quantizable_linears(architecture, shapes)
    matrices = {
        name
        for name, shape in shapes.items()
        if len(shape) == 2 and architecture.layer_of(name) is not None and "norm" not in name
    }
    left = matrices - {linear.tensor for linear in linears}
    assert all(name.endswith(("gate.weight",)) for name in left)
    has_experts = any(word in case for word in ("moe", "mixtral", "deepseek"))
    assert has_experts == bool(left)
    assert len({linear.tensor for linear in linears}) == len(linears)
    for linear in linears:
        stored = shapes[linear.tensor]
        assert (tuple(reversed(stored)) if linear.transposed else stored) == linear.shape_OI
        assert linear.clipped != any(
            word in linear.module
            for word in ("q_proj", "k_proj", "qkv", "query", "c_attn", "q_a_", "q_b_", "kv_")
        )


def test_experts_fused_into_one_tensor_are_refused_by_name() -> None:
    shapes = {
        "model.layers.0.self_attn.q_proj.weight": (64, 64),
        "model.layers.0.self_attn.k_proj.weight": (64, 64),
        "model.layers.0.self_attn.v_proj.weight": (64, 64),
        "model.layers.0.self_attn.o_proj.weight": (64, 64),
        "model.layers.0.input_layernorm.weight": (64,),
        "model.layers.0.mlp.experts.gate_up_proj": (4, 64, 64),
    }
    with pytest.raises(IncompatibleError, match=r"'model\.layers\.0\.mlp\.experts\.gate_up_proj'"):
        quantizable_linears(ARCHITECTURES["qwen3_moe"], shapes)


def test_a_matrix_that_the_row_does_not_know_is_refused_by_name() -> None:
    shapes = {"model.layers.0.mlp.surprise.weight": (64, 64)}
    with pytest.raises(IncompatibleError, match="surprise"):
        quantizable_linears(ARCHITECTURES["llama"], shapes)


def test_a_missing_linear_is_named() -> None:
    shapes = {
        "model.layers.3.mlp.gate_proj.weight": (96, 64),
        "model.layers.3.mlp.down_proj.weight": (64, 96),
        "model.layers.3.post_attention_layernorm.weight": (64,),
    }
    with pytest.raises(CheckpointError, match=r"layers\.3\.mlp\.up_proj\.weight' is missing"):
        quantizable_linears(ARCHITECTURES["llama"], shapes)


def test_a_missing_norm_is_named() -> None:
    shapes = {
        "model.layers.0.mlp.gate_proj.weight": (96, 64),
        "model.layers.0.mlp.up_proj.weight": (96, 64),
        "model.layers.0.mlp.down_proj.weight": (64, 96),
    }
    with pytest.raises(CheckpointError, match=r"post_attention_layernorm\.weight' is missing"):
        quantizable_linears(ARCHITECTURES["llama"], shapes)


def test_a_family_without_a_row_says_what_a_row_needs() -> None:
    with pytest.raises(IncompatibleError, match=r"'llamma'.*Did you mean 'llama'.*A row"):
        quantizable_linears(Architecture("llamma"), {"model.layers.0.a.weight": (8, 8)})


def test_every_row_of_blocks_belongs_to_a_row_of_the_table() -> None:
    assert set(BLOCKS.names()) == set(ARCHITECTURES.names())


def test_kept_modules_match_whole_words_between_dots() -> None:
    module = "model.layers.1.mlp.down_proj"
    assert is_kept(module, ("down_proj",))
    assert is_kept(module, ("layers.1",))
    assert not is_kept(module, ("proj", "layers.11", "own_proj"))
    assert not is_kept(module, ())

"""A model with an adapter is what PEFT's ``merge_and_unload`` makes of it, for every form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("peft")

from peft import IA3Config, PeftConfig, TrainableTokensConfig
from peft.utils.other import get_pattern_key

from forge.checkpoints.lora.config import read_adapter_config
from tests.factory import read_values
from tests.oracle.peft_adapters import (
    lora,
    merged_by_forge,
    merged_by_peft,
    units_apart,
    write_adapter,
    write_base,
)

_LAYERS = ("q_proj", "o_proj", "down_proj")

FORMS: dict[str, tuple[str, PeftConfig]] = {
    "plain": ("llama", lora(*_LAYERS)),
    "rank-stabilized": ("llama", lora(*_LAYERS, use_rslora=True)),
    "patterns": (
        "llama",
        lora(
            *_LAYERS,
            rank_pattern={
                "^model.layers.0.self_attn.q_proj": 2, r"layers\.\d+\.mlp\..*": 3, "o_proj": 5,
                "self_attn.o_proj": 7,
            },
            alpha_pattern={"layers.1.self_attn.q_proj": 3, "down_proj": 5.5, "proj": 100},
        ),
    ),
    "rank-stabilized patterns": (
        "llama", lora(*_LAYERS, use_rslora=True, rank_pattern={"q_proj": 9}),
    ),
    "some layers": ("llama", lora("q_proj", layers_to_transform=[1], layers_pattern="layers")),
    "dora": ("llama", lora(*_LAYERS, use_dora=True)),
    "dora of an embedding": ("llama", lora("q_proj", "embed_tokens", use_dora=True)),
    "dora, [in, out]": ("gpt2", lora("c_attn", "c_proj", use_dora=True)),
    "[in, out]": ("gpt2", lora("c_attn", "c_proj", "c_fc")),
    "[in, out], and a head": ("gpt2", lora("c_proj", "lm_head")),
    "embedding": ("llama", lora("q_proj", "embed_tokens")),
    "head": ("llama", lora("q_proj", "lm_head")),
    "fused layers": ("phi3", lora("qkv_proj", "gate_up_proj")),
    "whole modules": ("llama", lora("q_proj", modules_to_save=["embed_tokens", "lm_head", "norm"])),
    "all biases": ("llama biases", lora("q_proj", bias="all")),
    "biases of layers": ("llama biases", lora("q_proj", "down_proj", bias="lora_only")),
    "biases of factors": ("llama biases", lora("q_proj", "down_proj", lora_bias=True)),
    "tokens": ("llama", lora("q_proj", trainable_token_indices=[3, 90, 4])),
    "tokens of embedding and head": (
        "llama", lora("q_proj", trainable_token_indices={"embed_tokens": [3, 9], "lm_head": [5]}),
    ),
    "tokens alone": ("llama", TrainableTokensConfig(token_indices=[5, 0, 95])),
    "experts": (
        "mixtral",
        lora("q_proj", target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    ),
    "experts, one parameter": (
        "qwen3_moe", lora("q_proj", target_parameters=["mlp.experts.gate_up_proj"]),
    ),
    "router": ("mixtral", lora("q_proj", target_parameters=["mlp.gate.weight"], r=2)),
    "ia3": (
        "llama",
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ),
    "ia3, [in, out] and biases": (
        "gpt2", IA3Config(target_modules=["c_attn", "c_proj"], feedforward_modules=["c_proj"]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_equals_peft(tmp_path: Path, form: str) -> None:
    case, config = FORMS[form]
    base = write_base(tmp_path / "base", case)
    adapter = write_adapter(base, tmp_path / "adapter", config)
    _compare(base, adapter, tmp_path / "theirs")


def test_what_peft_writes_by_default_has_no_unknown_key(tmp_path: Path) -> None:
    keys = lora("q_proj").to_dict()
    keys["target_modules"] = ["q_proj"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(keys))
    assert read_adapter_config(tmp_path).rank == 4


def test_patterns_are_matched_as_peft_does(tmp_path: Path) -> None:
    patterns = {
        "^model.layers.0.q_proj": 3, r"layers\.[12]\..*": 4, "k_proj|v_proj": 5, "proj": 6, "q": 7,
        "model.layers.3": 8, r".*\.experts\.gate_up_proj": 9,
    }  # fmt: skip
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "rank_pattern": patterns}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    config = read_adapter_config(tmp_path)
    leaves = ("q_proj", "k_proj", "mlp.proj", "proj2", "mlp.experts.gate_up_proj")
    for module in [f"model.layers.{layer}.{leaf}" for layer in (0, 1, 3, 12) for leaf in leaves]:
        expected = patterns.get(get_pattern_key(list(patterns), module), 2)
        assert config.rank_of(module) == expected, module


TIED: dict[str, PeftConfig] = {
    "embedding": lora("q_proj", "embed_tokens"),
    "head": lora("q_proj", "lm_head"),
    "dora": lora("embed_tokens", use_dora=True),
    "whole embedding": lora("q_proj", modules_to_save=["embed_tokens"]),
    "whole head": lora("q_proj", modules_to_save=["lm_head"]),
    "whole both": lora("q_proj", modules_to_save=["embed_tokens", "lm_head"]),
    "whole both, kept tied": lora(
        "q_proj", modules_to_save=["embed_tokens"], ensure_weight_tying=True
    ),
    "tokens": lora("q_proj", trainable_token_indices=[3, 90]),
    "tokens of both": lora(
        "q_proj", trainable_token_indices={"embed_tokens": [3, 90], "lm_head": [5]}
    ),
}


@pytest.mark.parametrize("form", TIED)
def test_tied_equals_peft(tmp_path: Path, form: str) -> None:
    base = write_base(tmp_path / "base", "llama", tied=True)
    adapter = write_adapter(base, tmp_path / "adapter", TIED[form])
    _compare(base, adapter, tmp_path / "theirs")


def test_what_is_added_to_both_of_a_tied_pair_is_added_twice(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "llama", tied=True)
    adapter = write_adapter(base, tmp_path / "adapter", lora("embed_tokens", "lm_head"))
    theirs, _ = merged_by_peft(base, adapter, tmp_path / "theirs")
    ours, checkpoint = merged_by_forge(base, adapter)
    name, factors = "model.embed_tokens.weight", read_values(adapter)
    of_head, of_embedding = (
        2.5 * factors[f"base_model.model.{b}"] @ factors[f"base_model.model.{a}"]
        for a, b in (
            ("lm_head.lora_A.weight", "lm_head.lora_B.weight"),
            ("model.embed_tokens.lora_embedding_A", "model.embed_tokens.lora_embedding_B"),
        )
    )
    # PEFT rounds after each of the two.
    scales = [of_head, of_embedding.T, ours[name] - of_head]
    assert units_apart(ours[name], theirs[name], *scales) <= 2
    assert any("changes both" in notice for notice in checkpoint.notices)


RESIZED: dict[str, tuple[bool, PeftConfig]] = {
    "untied": (False, lora("q_proj")),
    "tied": (True, lora("q_proj")),
    "tied, embedding": (True, lora("q_proj", "embed_tokens")),
    "whole": (False, lora("q_proj", modules_to_save=["embed_tokens", "lm_head"])),
    "whole, tied": (True, lora("q_proj", modules_to_save=["embed_tokens", "lm_head"])),
    "tokens": (False, lora("q_proj", trainable_token_indices=[96, 97, 99])),
    "tokens, tied": (True, lora("q_proj", trainable_token_indices=[96, 97, 99])),
}


@pytest.mark.parametrize("form", RESIZED)
def test_added_tokens_equal_peft(tmp_path: Path, form: str) -> None:
    tied, config = RESIZED[form]
    base = write_base(tmp_path / "base", "llama", tied=tied)
    adapter = write_adapter(base, tmp_path / "adapter", config, resized=100)
    ours = _compare(base, adapter, tmp_path / "theirs", resized=100)
    assert len(ours["model.embed_tokens.weight"]) == 100


def _compare(
    base: Path, adapter: Path, folder: Path, *, resized: int | None = None
) -> dict[str, np.ndarray]:
    """Compare all tensors, in units of the last place of the largest of base, change and result."""
    theirs, config = merged_by_peft(base, adapter, folder, resized=resized)
    ours, checkpoint = merged_by_forge(base, adapter)
    before, stored = read_values(base), read_values(adapter)
    assert set(ours) == set(theirs)
    changed = 0
    for name, values in ours.items():
        assert values.shape == theirs[name].shape, name
        former = stored.get(f"base_model.model.{name[:-7]}.base_layer.weight", before.get(name))
        is_like = former is not None and former.shape == values.shape
        if is_like and np.array_equal(values, former):
            assert np.array_equal(theirs[name], former), name
            continue
        changed += 1
        scales = [former, values - former] if is_like else []
        assert units_apart(values, theirs[name], *scales) <= 1, name
    assert changed
    for key in ("vocab_size", "tie_word_embeddings"):
        assert checkpoint.config.get(key) == config.get(key), key
    return ours

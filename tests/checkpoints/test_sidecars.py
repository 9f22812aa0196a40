"""Configs of outputs: what changed is updated, what is per layer fits, all else stays."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from forge.architectures.table import ARCHITECTURES
from forge.checkpoints.sidecars import (
    LayerOrigin,
    config_file,
    layer_entries,
    merged_config,
    model_card,
)
from forge.core.errors import IncompatibleError
from forge.recipes.reference import ModelReference
from tests.factory import tiny_checkpoint, tiny_config

LLAMA, QWEN3 = ARCHITECTURES["llama"], ARCHITECTURES["qwen3"]


def test_nothing_asked_means_nothing_changed_but_local_paths() -> None:
    config = {**tiny_config(), "_name_or_path": "/home/me/model"}
    assert merged_config(config, LLAMA) == tiny_config()
    assert config["_name_or_path"] == "/home/me/model"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({"dtype": "x", "torch_dtype": "y"}, {"dtype": "bfloat16", "torch_dtype": "bfloat16"}),
        ({}, {"torch_dtype": "bfloat16"}),
    ],
)
def test_the_key_of_the_dtype_is_kept(before: dict[str, object], after: dict[str, object]) -> None:
    config = {"model_type": "llama", "num_hidden_layers": 2, **before}
    merged = merged_config(config, LLAMA, dtype="bfloat16")
    assert merged == {"model_type": "llama", "num_hidden_layers": 2, **after}


def test_vocabulary_and_tying() -> None:
    merged = merged_config(tiny_config(), LLAMA, vocab_size=40, tied=True)
    assert merged == {**tiny_config(), "vocab_size": 40, "tie_word_embeddings": True}


def _qwen(*kinds: str, **extra: object) -> dict[str, object]:
    return {
        "model_type": "qwen3", "num_hidden_layers": len(kinds), "layer_types": list(kinds), **extra,
    }  # fmt: skip


def _stack(config: Mapping[str, object], *layers: int) -> list[LayerOrigin]:
    return [LayerOrigin(config, layer) for layer in layers]


def test_per_layer_lists_follow_the_layers() -> None:
    a, b = _qwen("f", "s", "f"), _qwen("S", "F", "S")
    layers = [*_stack(a, 0, 1, 1), *_stack(b, 2, 0), *_stack(a, 2)]
    merged = merged_config(a, QWEN3, layers=layers)
    assert merged["num_hidden_layers"] == 6
    assert merged["layer_types"] == ["f", "s", "s", "S", "S", "f"]
    assert a["layer_types"] == ["f", "s", "f"]


def test_lists_of_layer_numbers_follow_too() -> None:
    architecture = ARCHITECTURES["qwen2_moe"]
    config = {"model_type": "qwen2_moe", "num_hidden_layers": 4, "mlp_only_layers": [1, 3]}
    merged = merged_config(config, architecture, layers=_stack(config, 3, 0, 1, 1))
    assert merged["mlp_only_layers"] == [0, 2, 3]


def test_rules_over_numbers_are_spelt_out_where_layers_move() -> None:
    gemma = {"model_type": "gemma3_text", "num_hidden_layers": 6, "sliding_window_pattern": 3}
    architecture = ARCHITECTURES["gemma3_text"]
    # Moved by whole patterns, the rule says the same as before.
    assert "layer_types" not in merged_config(
        gemma, architecture, layers=_stack(gemma, 0, 1, 2, 0, 1, 2, 3, 4, 5)
    )
    merged = merged_config(gemma, architecture, layers=_stack(gemma, 2, 3, 5, 5))
    full, sliding = "full_attention", "sliding_attention"
    assert merged["layer_types"] == [full, sliding, full, full]
    merged = merged_config(
        {"model_type": "smollm3", "num_hidden_layers": 4, "no_rope_layer_interval": 2},
        ARCHITECTURES["smollm3"],
        layers=_stack({"model_type": "smollm3", "num_hidden_layers": 4,
                       "no_rope_layer_interval": 2}, 0, 0, 1),
    )  # fmt: skip
    assert merged["no_rope_layers"] == [1, 1, 0]
    assert "layer_types" not in merged


def test_steps_become_lists_of_dense_layers() -> None:
    architecture = ARCHITECTURES["qwen3_moe"]
    config = {
        "model_type": "qwen3_moe", "num_hidden_layers": 4, "mlp_only_layers": [3],
        "decoder_sparse_step": 2,
    }  # fmt: skip
    merged = merged_config(config, architecture, layers=_stack(config, 1, 1, 0, 3))
    assert (merged["mlp_only_layers"], merged["decoder_sparse_step"]) == ([2, 3], 1)


def test_dense_layers_that_must_come_first() -> None:
    architecture = ARCHITECTURES["deepseek_v3"]
    config = {"model_type": "deepseek_v3", "num_hidden_layers": 4, "first_k_dense_replace": 2}
    merged = merged_config(config, architecture, layers=_stack(config, 0, 1, 1, 2, 3))
    assert merged["first_k_dense_replace"] == 3
    with pytest.raises(IncompatibleError, match="Layer 2 of the stack has one MLP"):
        merged_config(config, architecture, layers=_stack(config, 0, 2, 1))


def test_sizes_of_each_layer_follow() -> None:
    config = {"model_type": "llama", "num_hidden_layers": 3, "intermediate_size": [8, 16, 24]}
    merged = merged_config(config, ARCHITECTURES["llama"], layers=_stack(config, 2, 0))
    assert merged["intermediate_size"] == [24, 8]


def test_layer_entries_serve_comparison() -> None:
    config = {
        "model_type": "smollm3", "num_hidden_layers": 2, "layer_types": ["f", "s"],
        "no_rope_layers": [1, 0],
    }  # fmt: skip
    assert layer_entries(ARCHITECTURES["smollm3"], config, label="m") == (
        {"layer_types": "f", "no_rope_layers": 1}, {"layer_types": "s", "no_rope_layers": 0},
    )  # fmt: skip


def test_what_does_not_fit_is_refused_before_any_work() -> None:
    config = {**_qwen("f", "s"), "num_hidden_layers": 3}
    with pytest.raises(IncompatibleError, match=r"'m' has 2 entries in 'layer_types' for 3 layers"):
        merged_config(config, QWEN3, label="m")
    a = _qwen("f", "s")
    with pytest.raises(IncompatibleError, match="layer 2 of a model with 2 layers"):
        merged_config(a, QWEN3, layers=_stack(a, 0, 2))
    with pytest.raises(IncompatibleError, match="no layers"):
        merged_config(a, QWEN3, layers=[])
    b = {"model_type": "llama", "num_hidden_layers": 2}
    with pytest.raises(IncompatibleError, match="some have not"):
        merged_config(a, ARCHITECTURES["llama"], layers=[*_stack(a, 0), *_stack(b, 1)])
    with pytest.raises(IncompatibleError, match="must state 'num_hidden_layers'"):
        merged_config({"model_type": "qwen3"}, QWEN3)


def test_older_key_names_are_kept() -> None:
    config = {"model_type": "gpt2", "n_layer": 3}
    merged = merged_config(config, ARCHITECTURES["gpt2"], layers=_stack(config, 0, 2))
    assert merged == {"model_type": "gpt2", "n_layer": 2}


def test_a_model_of_several_parts() -> None:
    config = {
        "model_type": "gemma3", "torch_dtype": "float32",
        "vision_config": {"num_hidden_layers": 9},
        "text_config": {
            "num_hidden_layers": 2, "layer_types": ["a", "b"], "vocab_size": 7,
            "torch_dtype": "float32",
        },
    }  # fmt: skip
    merged = merged_config(
        config, ARCHITECTURES["gemma3"], dtype="float16", vocab_size=9, tied=False,
        layers=_stack(config, 1),
    )  # fmt: skip
    assert merged == {
        "model_type": "gemma3", "torch_dtype": "float16", "tie_word_embeddings": False,
        "vision_config": {"num_hidden_layers": 9},
        "text_config": {
            "num_hidden_layers": 1, "layer_types": ["b"], "vocab_size": 9,
            "torch_dtype": "float16",
        },
    }  # fmt: skip


def test_transformers_reads_a_restacked_config(tmp_path: Path) -> None:
    from transformers import AutoConfig

    root = tiny_checkpoint(tmp_path, model_type="qwen3", layers=3)
    config = json.loads((root / "config.json").read_text())
    merged = merged_config(config, QWEN3, dtype="float16", layers=_stack(config, 0, 1, 1, 2))
    (root / "config.json").write_bytes(config_file(merged)["config.json"])
    loaded = AutoConfig.from_pretrained(root)
    assert (loaded.num_hidden_layers, len(loaded.layer_types)) == (4, 4)
    assert str(loaded.dtype) == "torch.float16"


def test_the_card_names_models_and_no_path_of_the_machine() -> None:
    models = [
        ModelReference.parse("org/base@v2"),
        ModelReference.parse("/home/me/secret/tuned+org/adapter"),
        ModelReference.parse("org/base@v2"),
    ]
    card = model_card(
        title="My merge", models=models, method="dare_ties",
        recipe="merge_method: dare_ties\nbase_model: /home/me/secret/tuned\nnote: '```'\n",
        local_paths=["/home/me/secret/tuned"],
    )["README.md"].decode()  # fmt: skip
    assert card == (
        '---\nbase_model:\n- "org/base"\n- "org/adapter"\nlibrary_name: transformers\n'
        "tags:\n- merge\n- forge\n---\n\n# My merge\n\n"
        "A merge made with forge by the method `dare_ties`, of:\n\n"
        "- `org/base` at `v2`\n- `tuned` with the adapter `org/adapter`\n\n"
        "`forge_manifest.json` records the hashes of all inputs and outputs; "
        "`forge verify` checks them.\n\n"
        "## Recipe\n\n````yaml\nmerge_method: dare_ties\nbase_model: tuned\nnote: '```'\n````\n"
    )

"""The table against the models that transformers itself builds, and names back and forth."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge.architectures.names import architecture_of, layers_present
from forge.architectures.table import ARCHITECTURES
from forge.core.errors import IncompatibleError

_SMALL = {
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "hidden_size": 32, "n_embd": 32,
    "d_model": 32, "intermediate_size": 32, "ffn_dim": 32, "num_attention_heads": 2, "n_head": 2,
    "n_heads": 2, "num_key_value_heads": 2, "vocab_size": 64, "rotary_dim": 8,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 2,
    "num_local_experts": 2, "num_experts_per_tok": 1, "n_routed_experts": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_positions": 16,
    "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "word_embed_proj_dim": 32,
}  # fmt: skip


@pytest.mark.parametrize("model_type", [row.name for row in ARCHITECTURES if not row.is_multipart])
def test_rows_fit_what_transformers_builds(model_type: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    defaults = AutoConfig.for_model(model_type)
    known = defaults.to_dict()
    settings = {key: value for key, value in _SMALL.items() if key in known}
    config = AutoConfig.for_model(model_type, **settings)
    with torch.device("meta"):
        names = list(AutoModelForCausalLM.from_config(config).state_dict())
    row = architecture_of(config.to_dict())
    assert row.num_layers(config.to_dict()) == 2
    assert layers_present(row, names) == (0, 1)
    outside = [name for name in names if row.layer_of(name) is None]
    assert len([name for name in outside if name in row.embeddings]) == 1
    assert set(outside) & set(row.final_norms)
    # gpt_neox stores its head as embed_out, which transformers 5 renames while loading.
    assert set(outside) & set(row.heads)
    assert row.is_tied({}) == bool(known["tie_word_embeddings"])
    for key, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == 2 and "layer" in key:
            assert key in row.per_layer_lists, key


def test_gemma3_of_several_parts() -> None:
    row = ARCHITECTURES["gemma3"]
    assert row.layer_of("language_model.model.layers.3.mlp.up_proj.weight") == 3
    assert row.layer_of("model.language_model.layers.3.mlp.up_proj.weight") == 3
    assert row.layer_of("vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight") is None
    assert row.num_layers({"text_config": {"num_hidden_layers": 5}}) == 5
    assert row.is_tied({"text_config": {"tie_word_embeddings": False}}) is False


@given(
    st.sampled_from(ARCHITECTURES.names()), st.integers(0, 200), st.integers(0, 200),
    st.sampled_from(["mlp.up_proj.weight", "mlp.experts.7.w1.weight", "ln_1.bias"]),
)  # fmt: skip
def test_a_layer_number_can_be_read_and_replaced(
    model_type: str, layer: int, other: int, rest: str
) -> None:
    row = ARCHITECTURES[model_type]
    for prefix in row.layer_prefixes:
        name = f"{prefix}{layer}.{rest}"
        assert row.layer_of(name) == layer
        assert row.with_layer(name, other) == f"{prefix}{other}.{rest}"
        assert row.with_layer(row.with_layer(name, other), layer) == name
        assert row.vocabulary_axis(name) is None


@pytest.mark.parametrize(
    "name",
    ["lm_head.weight", "model.layers.", "model.layers.x.y", "model.layers.3", "model.layers.-1.y",
     "model.layers.².y", "xmodel.layers.1.y", "model.layers.99999999999999999999.y"],
)  # fmt: skip
def test_other_names_are_in_no_layer(name: str) -> None:
    row = ARCHITECTURES["llama"]
    assert row.layer_of(name) is None
    with pytest.raises(ValueError, match="not in a layer of llama"):
        row.with_layer(name, 0)


def test_the_vocabulary_runs_over_rows() -> None:
    row = ARCHITECTURES["phi"]
    assert row.vocabulary_axis("model.embed_tokens.weight") == 0
    assert row.vocabulary_axis("lm_head.bias") == 0
    assert row.vocabulary_axis("model.layers.0.mlp.fc1.weight") is None


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "expected"),
    [
        ("model.layers.3.mlp.up_proj.weight", "gemma3_text", "gemma3",
         "language_model.model.layers.3.mlp.up_proj.weight"),
        ("model.embed_tokens.weight", "llama", "llava", "language_model.model.embed_tokens.weight"),
        ("model.norm.weight", "llama", "llava", "language_model.model.norm.weight"),
        ("lm_head.weight", "llama", "llava", "language_model.lm_head.weight"),
        ("language_model.model.norm.weight", "llava", "llama", "model.norm.weight"),
        ("model.language_model.layers.0.x", "gemma3", "gemma3", "language_model.model.layers.0.x"),
        ("h.1.attn.c_attn.weight", "gpt2", "gpt2", "transformer.h.1.attn.c_attn.weight"),
        ("wpe.weight", "gpt2", "gpt2", "transformer.wpe.weight"),
        ("model.layers.0.x", "qwen2", "qwen2_vl", "model.layers.0.x"),
        ("vision_tower.x", "gemma3", "gemma3_text", "vision_tower.x"),
    ],
)  # fmt: skip
def test_a_tensor_has_a_counterpart(name: str, ours: str, theirs: str, expected: str) -> None:
    found = ARCHITECTURES[ours].counterpart(name, ARCHITECTURES[theirs], {expected, "other.weight"})
    assert found == expected
    if "vision" not in name:
        assert ARCHITECTURES[theirs].counterpart(expected, ARCHITECTURES[ours], {name}) == name


def test_a_counterpart_that_is_not_there_is_named_as_it_would_be() -> None:
    text, seeing = ARCHITECTURES["gemma3_text"], ARCHITECTURES["gemma3"]
    found = text.counterpart("model.layers.9.x", seeing, {"language_model.model.norm.weight"})
    assert found == "language_model.model.layers.9.x"
    # A bias has no counterpart in a weight.
    assert text.counterpart("lm_head.bias", seeing, {"lm_head.weight"}) != "lm_head.weight"


@pytest.mark.parametrize(
    ("family", "config", "expected"),
    [
        ("llama", {}, "llama"),
        ("gemma3", {}, "gemma3_text"),
        ("qwen2_5_vl", {"text_config": {"model_type": "qwen2_5_vl_text"}}, "qwen2"),
        ("llava", {"text_config": {"model_type": "mistral"}}, "mistral"),
        ("llava", {"model_type": "llava"}, "llava"),
    ],
)  # fmt: skip
def test_the_family_of_the_language_model(
    family: str, config: dict[str, object], expected: str
) -> None:
    assert ARCHITECTURES[family].language_family(config) == expected


def test_a_config_may_leave_out_the_default_number_of_layers() -> None:
    row = ARCHITECTURES["llava"]
    assert row.num_layers({"text_config": {"model_type": "llama"}}) == 32
    assert row.num_layers({"text_config": {"num_hidden_layers": 40}}) == 40
    with pytest.raises(IncompatibleError, match="must state 'num_hidden_layers'"):
        row.num_layers({"text_config": {"num_hidden_layers": "40"}})


@pytest.mark.parametrize("key", ["max_position_embeddings", "n_positions", "max_seq_len"])
def test_positions(key: str) -> None:
    assert ARCHITECTURES["gpt2"].num_positions({key: 64}) == 64
    assert ARCHITECTURES["gemma3"].num_positions({"text_config": {key: 32}}) == 32
    assert ARCHITECTURES["bloom"].num_positions({key: True, "seq_length": 9}) is None


def test_an_unknown_family_is_inferred_with_a_notice() -> None:
    names = ["wte.weight", "blocks.0.a.weight", "blocks.11.experts.2.weight", "norm.weight"]
    row = architecture_of({"model_type": "newllm", "n_layer": 12}, tensor_names=names)
    assert row.layer_of("blocks.11.experts.2.weight") == 11
    assert row.embeddings == ("wte.weight",)
    assert "'newllm' is not in forge's table" in (row.notice or "")
    # Layer 5 is not there, and the check says so; without a number in the config there are none.
    assert row.num_layers({}) == 12
    assert architecture_of({"model_type": "newllm"}, tensor_names=names).num_layers({}) == 0


def test_of_several_runs_one_that_the_config_states_is_taken_or_the_longest() -> None:
    names = [
        "shared.weight", *(f"encoder.block.{i}.a" for i in range(3)),
        *(f"decoder.block.{i}.{x}" for i in range(3) for x in "ab"),
        *(f"visual.blocks.{i}.a" for i in (1, 2, 3, 4)), "proj.0.weight",
    ]  # fmt: skip
    row = architecture_of({"model_type": "t6", "num_layers": 3}, tensor_names=names)
    assert row.layer_prefixes == ("decoder.block.",)
    assert row.num_layers({}) == 3
    assert row.num_layers_key({"num_layers": 3}) == "num_layers"
    notice = row.notice or ""
    assert "'decoder.block.<number>.', 3 of them" in notice
    assert "'encoder.block.<number>.', 'proj.<number>.', 'visual.blocks.<number>.'" in notice
    # One more encoder layer, and it is the encoder where the config does not say; whatever the
    # order of the names.
    for more in ([*names, "encoder.block.3.a"], ["encoder.block.3.a", *reversed(names)]):
        row = architecture_of({"model_type": "t6", "num_layers": 3}, tensor_names=more)
        assert row.layer_prefixes == ("decoder.block.",)
        row = architecture_of({"model_type": "t6", "layers": 3}, tensor_names=more)
        assert row.layer_prefixes == ("encoder.block.",)
        with pytest.raises(IncompatibleError, match="cannot be restacked"):
            row.num_layers_key({"layers": 3})


def test_lists_and_the_text_section_of_an_unknown_family() -> None:
    names = [f"model.layers.{i}.a" for i in range(2)]
    inner = {"num_hidden_layers": 2, "layer_types": ["a", "b"], "sizes": [1, 2], "x_layers": [1]}
    config = {"model_type": "t6", "text_config": inner}
    row = architecture_of(config, tensor_names=names)
    assert row.per_layer_lists == ("layer_types",)
    assert row.text_config(config) is inner
    assert not row.is_carried("visual.weight")


def test_an_unknown_family_without_tensors_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="Did you mean 'mistral'"):
        architecture_of({"model_type": "mistrall"})
    with pytest.raises(IncompatibleError, match="no 'model_type'"):
        architecture_of({})


@pytest.mark.parametrize("value", [0, -1, True, "32", None, 2.0])
def test_the_number_of_layers_must_be_a_positive_number(value: object) -> None:
    with pytest.raises(IncompatibleError, match="must state 'num_hidden_layers'"):
        ARCHITECTURES["llama"].num_layers({"num_hidden_layers": value})

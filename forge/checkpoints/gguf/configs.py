"""Derive a Hugging Face ``config.json`` from the metadata of a GGUF.

A GGUF states what llama.cpp computes with. What it leaves out is either the same in every model
of the family, and written here, or follows from which tensors there are: a head that is absent is
tied, a bias that is present is configured. What can be known in neither way is refused, with the
way out: the original ``config.json``, put beside the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from forge.checkpoints.gguf.header import GgufTensor
from forge.checkpoints.gguf.layout import heads_of
from forge.checkpoints.gguf.metadata import Metadata
from forge.checkpoints.gguf.rotary import rotary_scaling

Config = dict[str, object]
Tensors = Mapping[str, GgufTensor]

_MISTRAL_KEYS: Final = (
    "general.name",
    "general.basename",
    "general.finetune",
    "general.base_model",
)
_SLIDING_27B: Final = {"gemma2": 46, "gemma3": 62}
"""Layers of the models of 27B, the only ones whose attention scale is not that of a head."""


def derived_config(metadata: Metadata, tensors: Tensors, *, dtype: str) -> Config:
    """Return the config of a model.

    Args:
        metadata: The model's metadata; its architecture is one of ``FAMILIES``.
        tensors: All tensors of the model by name.
        dtype: Torch name of the type of most of its weights.

    Returns:
        What ``config.json`` would say.

    Raises:
        CheckpointError: Something is missing, or cannot be expressed.
    """
    config = _BUILDERS[metadata.architecture](metadata, tensors)
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise metadata.wrong("has no matrix 'token_embd.weight', the embedding of its vocabulary")
    config["vocab_size"] = embedding.shape[0]
    config.setdefault("tie_word_embeddings", "output.weight" not in tensors)
    for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        # Where there is none, that must be said: classes have defaults of one model each.
        number = metadata.whole(f"tokenizer.ggml.{name}_token_id", optional=True)
        config[f"{key}_token_id"] = number
    config["torch_dtype"] = dtype
    return config


def _decoder(metadata: Metadata, tensors: Tensors, model_type: str, class_name: str) -> Config:
    """Return what all families of Llama's build have in common."""
    heads, groups = heads_of(metadata)
    width = metadata.positive(".embedding_length")
    config: Config = {
        "architectures": [class_name],
        "model_type": model_type,
        "hidden_size": width,
        "intermediate_size": metadata.positive(".feed_forward_length"),
        "num_hidden_layers": metadata.positive(".block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": metadata.positive(".attention.key_length", width // heads),
        "hidden_act": "silu",
        "max_position_embeddings": metadata.positive(".context_length"),
        "rms_norm_eps": metadata.real(".attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.real(".rope.freq_base", 10000.0),
    }
    scaling = rotary_scaling(metadata, tensors, config)
    if scaling is not None:
        config["rope_scaling"] = scaling
    return config


def _llama(metadata: Metadata, tensors: Tensors) -> Config:
    if ".expert_count" in metadata and metadata.whole(".expert_count"):
        config = _decoder(metadata, tensors, "mixtral", "MixtralForCausalLM")
        config["num_local_experts"] = metadata.positive(".expert_count")
        config["num_experts_per_tok"] = metadata.positive(".expert_used_count")
        config["sliding_window"] = None
        return config
    if is_mistral(metadata):
        config = _decoder(metadata, tensors, "mistral", "MistralForCausalLM")
        window = metadata.whole(".attention.sliding_window", optional=True)
        config["sliding_window"] = window or None
        return config
    config = _decoder(metadata, tensors, "llama", "LlamaForCausalLM")
    config["attention_bias"] = _has_all(
        metadata, tensors, "attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"
    )
    config["mlp_bias"] = _has_all(
        metadata, tensors, "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"
    )
    return config


def is_mistral(metadata: Metadata) -> bool:
    """Tell whether a model calls itself a Mistral; GGUF calls Llama and Mistral alike ``llama``."""
    names = (key for key in metadata.keys_under(*_MISTRAL_KEYS) if metadata.is_text(key))
    return any("mistral" in metadata.text(key).lower() for key in names)


def _has_all(metadata: Metadata, tensors: Tensors, *stems: str) -> bool:
    """Tell whether layers have these tensors; all of them or none."""
    present = [stem for stem in stems if f"blk.0.{stem}" in tensors]
    if present and len(present) < len(stems):
        missing = next(stem for stem in stems if stem not in present)
        raise metadata.wrong(
            f"holds 'blk.0.{present[0]}' but no 'blk.0.{missing}', which no config of this family "
            "can say. Put the original config.json beside the file"
        )
    return bool(present)


def _qwen2(metadata: Metadata, tensors: Tensors) -> Config:
    config = _decoder(metadata, tensors, "qwen2", "Qwen2ForCausalLM")
    del config["head_dim"]
    return config | {"use_sliding_window": False}


def _qwen3(metadata: Metadata, tensors: Tensors) -> Config:
    config = _decoder(metadata, tensors, "qwen3", "Qwen3ForCausalLM")
    bias = _has_all(
        metadata, tensors, "attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"
    )
    return config | {"attention_bias": bias, "use_sliding_window": False}


def _experts(metadata: Metadata) -> Config:
    return {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": metadata.positive(".expert_feed_forward_length"),
        "num_experts": metadata.positive(".expert_count"),
        "num_experts_per_tok": metadata.positive(".expert_used_count"),
        "use_sliding_window": False,
    }


def _qwen2moe(metadata: Metadata, tensors: Tensors) -> Config:
    config = _decoder(metadata, tensors, "qwen2_moe", "Qwen2MoeForCausalLM")
    del config["head_dim"]
    shared = metadata.positive(".expert_shared_feed_forward_length")
    # llama.cpp computes both families of experts in one way each.
    extra = {"norm_topk_prob": False, "shared_expert_intermediate_size": shared}
    return config | _experts(metadata) | extra


def _qwen3moe(metadata: Metadata, tensors: Tensors) -> Config:
    config = _decoder(metadata, tensors, "qwen3_moe", "Qwen3MoeForCausalLM")
    return config | _experts(metadata) | {"attention_bias": False, "norm_topk_prob": True}


def _gemma(metadata: Metadata, tensors: Tensors) -> Config:
    config = _decoder(metadata, tensors, "gemma", "GemmaForCausalLM")
    activation = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
    return config | activation | {"tie_word_embeddings": True}


def _later_gemma(metadata: Metadata, tensors: Tensors, model_type: str, class_name: str) -> Config:
    config = _decoder(metadata, tensors, model_type, class_name)
    del config["hidden_act"]
    heads, head_dim = config["num_attention_heads"], config["head_dim"]
    assert isinstance(heads, int)
    if config["num_hidden_layers"] == _SLIDING_27B[metadata.architecture]:
        head_dim = metadata.positive(".embedding_length") // heads
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": head_dim,
        "sliding_window": metadata.positive(".attention.sliding_window"),
        "tie_word_embeddings": True,
    }


def _gemma2(metadata: Metadata, tensors: Tensors) -> Config:
    config = _later_gemma(metadata, tensors, "gemma2", "Gemma2ForCausalLM")
    return config | {
        "attn_logit_softcapping": metadata.real(".attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.real(".final_logit_softcapping", 30.0),
    }


def _gemma3(metadata: Metadata, tensors: Tensors) -> Config:
    config = _later_gemma(metadata, tensors, "gemma3_text", "Gemma3ForCausalLM")
    return config | {
        "rope_local_base_freq": metadata.real(".rope.freq_base_swa", 10000.0),
        "sliding_window_pattern": 6,
        "layer_types": [
            "full_attention" if (layer + 1) % 6 == 0 else "sliding_attention"
            for layer in range(metadata.positive(".block_count"))
        ],
    }


def _olmo2(metadata: Metadata, tensors: Tensors) -> Config:
    config = _decoder(metadata, tensors, "olmo2", "Olmo2ForCausalLM")
    del config["head_dim"]
    return config | {"attention_bias": False}


def _granite(metadata: Metadata, tensors: Tensors) -> Config:
    config = _decoder(metadata, tensors, "granite", "GraniteForCausalLM")
    del config["head_dim"]
    return config | {
        "attention_bias": _has_all(
            metadata, tensors, "attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"
        ),
        "attention_multiplier": metadata.real(".attention.scale", 1.0),
        "embedding_multiplier": metadata.real(".embedding_scale", 1.0),
        "residual_multiplier": metadata.real(".residual_scale", 1.0),
        "logits_scaling": metadata.real(".logit_scale", 1.0),
        "mlp_bias": _has_all(metadata, tensors, "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"),
    }


def _smollm3(metadata: Metadata, tensors: Tensors) -> Config:
    config = _decoder(metadata, tensors, "smollm3", "SmolLM3ForCausalLM")
    del config["head_dim"]
    # llama.cpp leaves every fourth layer without rotary embeddings.
    num_layers = metadata.positive(".block_count")
    return config | {
        "attention_bias": False,
        "mlp_bias": False,
        "no_rope_layer_interval": 4,
        "no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(num_layers)],
        "use_sliding_window": False,
    }


def _phi3(metadata: Metadata, tensors: Tensors) -> Config:
    config = _decoder(metadata, tensors, "phi3", "Phi3ForCausalLM")
    head_dim = config.pop("head_dim")
    assert isinstance(head_dim, int)
    positions = metadata.positive(".context_length")
    window = metadata.whole(".attention.sliding_window", optional=True)
    turned = metadata.positive(".rope.dimension_count", head_dim)
    return config | {
        "original_max_position_embeddings": metadata.positive(
            ".rope.scaling.original_context_length", positions
        ),
        "partial_rotary_factor": turned / head_dim,
        "sliding_window": window or None,
    }


def _bloom(metadata: Metadata, tensors: Tensors) -> Config:
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "apply_residual_connection_post_layernorm": False,
        "hidden_size": metadata.positive(".embedding_length"),
        "layer_norm_epsilon": metadata.real(".attention.layer_norm_epsilon"),
        "n_head": heads_of(metadata)[0],
        "n_layer": metadata.positive(".block_count"),
        "seq_length": metadata.positive(".context_length"),
    }


def _gpt_neox(metadata: Metadata, tensors: Tensors) -> Config:
    heads, _ = heads_of(metadata)
    width = metadata.positive(".embedding_length")
    turned = metadata.positive(".rope.dimension_count", width // heads)
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "attention_bias": _has_all(metadata, tensors, "attn_qkv.bias", "attn_output.bias"),
        "hidden_act": "gelu",
        "hidden_size": width,
        "intermediate_size": metadata.positive(".feed_forward_length"),
        "layer_norm_eps": metadata.real(".attention.layer_norm_epsilon"),
        "max_position_embeddings": metadata.positive(".context_length"),
        "num_attention_heads": heads,
        "num_hidden_layers": metadata.positive(".block_count"),
        "rotary_emb_base": metadata.real(".rope.freq_base", 10000.0),
        "rotary_pct": turned / (width // heads),
        "use_parallel_residual": metadata.flag(".use_parallel_residual", True),
    }


def _gpt2(metadata: Metadata, tensors: Tensors) -> Config:
    positions = metadata.positive(".context_length")
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": metadata.real(".attention.layer_norm_epsilon"),
        "n_ctx": positions,
        "n_embd": metadata.positive(".embedding_length"),
        "n_head": heads_of(metadata)[0],
        "n_inner": metadata.positive(".feed_forward_length"),
        "n_layer": metadata.positive(".block_count"),
        "n_positions": positions,
    }


def _falcon(metadata: Metadata, tensors: Tensors) -> Config:
    heads, groups = heads_of(metadata)
    two_norms = any(".attn_norm_2." in name for name in tensors)
    config: Config = {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "alibi": False,
        "bias": False,
        "ffn_hidden_size": metadata.positive(".feed_forward_length"),
        "hidden_size": metadata.positive(".embedding_length"),
        "layer_norm_epsilon": metadata.real(".attention.layer_norm_epsilon"),
        "multi_query": True,
        "new_decoder_architecture": groups > 1,
        "num_attention_heads": heads,
        "num_hidden_layers": metadata.positive(".block_count"),
        "num_kv_heads": groups,
        "parallel_attn": True,
        "rope_theta": metadata.real(".rope.freq_base", 10000.0),
    }
    if groups > 1:
        config["num_ln_in_parallel_attn"] = 2 if two_norms else 1
    return config


_BUILDERS: Final[Mapping[str, Callable[[Metadata, Tensors], Config]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen2moe": _qwen2moe,
    "qwen3moe": _qwen3moe,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "olmo2": _olmo2,
    "granite": _granite,
    "smollm3": _smollm3,
    "phi3": _phi3,
    "bloom": _bloom,
    "gptneox": _gpt_neox,
    "gpt2": _gpt2,
    "falcon": _falcon,
}

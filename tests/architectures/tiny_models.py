"""Tiny models of many families, built by transformers and saved as it saves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

_COMMON: dict[str, object] = {
    "vocab_size": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 64,
}
_LLAMA: dict[str, object] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
}
_GPT: dict[str, object] = {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64, "n_ctx": 64}
_HEADS: dict[str, object] = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
_GROUPED: dict[str, object] = {"num_key_value_heads": 2}
_EXPERTS: dict[str, object] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}

# What Llama 3.1 to 3.3 say of their rotary embedding.
_LLAMA_3: dict[str, object] = {
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    },
}  # fmt: skip
_LATENT: dict[str, object] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}

# Experts in one tensor a layer: merged like any other, and refused by quantization.
FUSED_EXPERTS: dict[str, tuple[str, dict[str, object]]] = {
    "gpt_oss": (
        "gpt_oss",
        _LLAMA
        | {
            "num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": {
                "rope_type": "default", "rope_theta": 150000.0,
            },
        },
    ),
}  # fmt: skip

# What is tried: a name, the family, and what its config says beside the sizes.
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", _LLAMA),
    "llama grouped": ("llama", _LLAMA | _GROUPED),
    # Four queries to a key as in 8B, eight as in 70B, whose MLP is 3.5 times as wide.
    "llama 3 8b": ("llama", _LLAMA | _LLAMA_3 | {"num_key_value_heads": 1}),
    "llama 3 70b": (
        "llama",
        _LLAMA
        | _LLAMA_3
        | {
            "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 8,
            "intermediate_size": 224,
        },
    ),
    "llama biases": ("llama", _LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", _LLAMA | _GROUPED),
    "qwen2": ("qwen2", _LLAMA),
    "qwen3": ("qwen3", _LLAMA),
    "smollm3": ("smollm3", _LLAMA),
    "granite": ("granite", _LLAMA),
    "gemma": ("gemma", _LLAMA),
    "gemma2": ("gemma2", _LLAMA),
    "gemma3_text": ("gemma3_text", _LLAMA),
    "olmo2": ("olmo2", _LLAMA),
    "mixtral": ("mixtral", _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "qwen2_moe",
        _LLAMA | _EXPERTS | {"shared_expert_intermediate_size": 48, "mlp_only_layers": [1]},
    ),
    "qwen3_moe": ("qwen3_moe", _LLAMA | _EXPERTS),
    "deepseek_v2": ("deepseek_v2", _LATENT),
    "deepseek_v2 lite": ("deepseek_v2", _LATENT | {"q_lora_rank": None}),
    "deepseek_v2 narrow": ("deepseek_v2", _LATENT | {"v_head_dim": 24}),
    "deepseek_v3": ("deepseek_v3", _LATENT | {"n_group": 2}),
    "phi3": ("phi3", _LLAMA),
    "phi": ("phi", _LLAMA),
    "gpt_neox": ("gpt_neox", _HEADS | {"intermediate_size": 96}),
    "bloom": ("bloom", {"hidden_size": 64, "n_head": 4, "n_layer": 2}),
    "bloom post": (
        "bloom",
        {
            "hidden_size": 64, "n_head": 4, "n_layer": 2,
            "apply_residual_connection_post_layernorm": True,
        },
    ),
    "falcon 7b": ("falcon", _HEADS),
    "falcon 40b": (
        "falcon", _HEADS | {"new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon 11b": (
        "falcon",
        _HEADS
        | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon rw": (
        "falcon",
        _HEADS
        | {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
    ),
    "gpt2": ("gpt2", _GPT),
    "gptj": ("gptj", _GPT | {"rotary_dim": 8}),
    "mpt": ("mpt", {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}),
    "opt": (
        "opt", _HEADS | {"ffn_dim": 96, "word_embed_proj_dim": 64},
    ),
    "opt 350m": (
        "opt",
        _HEADS | {"ffn_dim": 96, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    ),
    "starcoder2": ("starcoder2", _LLAMA),
    "stablelm": ("stablelm", _LLAMA),
    "stablelm parallel": (
        "stablelm", _LLAMA | {"use_parallel_residual": True, "qk_layernorm": True},
    ),
    "cohere": ("cohere", _LLAMA | {"use_qk_norm": True}),
}  # fmt: skip


_EYE: dict[str, object] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
_QWEN_EYE: dict[str, object] = {"depth": 2, "num_heads": 2, "patch_size": 4}
_QWEN_TOKENS: dict[str, object] = {
    "image_token_id": 95, "video_token_id": 94, "vision_start_token_id": 93,
    "vision_end_token_id": 92,
}  # fmt: skip
_SECTIONS: dict[str, object] = {
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3],
    },
}  # fmt: skip

# Models of several parts: the family, its language model, its eye, and the rest.
WITH_VISION: dict[
    str, tuple[str, dict[str, object], dict[str, object], dict[str, object]]
] = {
    "gemma3": (
        "gemma3",
        {"model_type": "gemma3_text"} | _LLAMA,
        {"model_type": "siglip_vision_model"} | _EYE,
        {
            "mm_tokens_per_image": 4, "image_token_index": 95, "boi_token_index": 94,
            "eoi_token_index": 93,
        },
    ),
    "qwen2_vl": (
        "qwen2_vl",
        _LLAMA | _SECTIONS,
        _QWEN_EYE | {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
        _QWEN_TOKENS,
    ),
    "qwen2_5_vl": (
        "qwen2_5_vl",
        _LLAMA | _SECTIONS,
        _QWEN_EYE
        | {
            "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48,
            "fullatt_block_indexes": [1],
        },
        _QWEN_TOKENS,
    ),
    "llava": (
        "llava",
        {"model_type": "llama"} | _LLAMA,
        {"model_type": "clip_vision_model", "projection_dim": 32} | _EYE,
        {"image_token_index": 95, "image_seq_length": 16},
    ),
}  # fmt: skip


def tiny_config(case: str, sizes: Mapping[str, object] | None = None) -> PreTrainedConfig:
    """Return the configuration of a model of the tables above.

    Args:
        case: Its name there.
        sizes: What the language model's configuration says otherwise.
    """
    plain = CASES | FUSED_EXPERTS
    if case in plain:
        family, settings = plain[case]
        return CONFIG_MAPPING[family](**_COMMON | settings | dict(sizes or {}))
    family, text, eye, rest = WITH_VISION[case]
    text = _COMMON | text | dict(sizes or {})
    return CONFIG_MAPPING[family](text_config=text, vision_config=dict(eye), **rest)


def tiny_model(
    case: str, *, seed: int = 0, sizes: Mapping[str, object] | None = None
) -> PreTrainedModel:
    """Build a model with random weights, norms and biases included.

    Args:
        case: A name in one of the tables above.
        seed: Of the weights.
        sizes: What the language model's configuration says otherwise.
    """
    torch.manual_seed(seed)
    kind = AutoModelForImageTextToText if case in WITH_VISION else AutoModelForCausalLM
    model = kind.from_config(tiny_config(case, sizes), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                # Norms that are all one and biases that are all zero would hide a wrong fold.
                centre = parameter.mean() if "norm" in name or "ln_" in name else 0.0
                parameter.copy_(centre + 0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.15)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
    return model.eval()


def save_tiny(
    case: str, folder: Path, *, seed: int = 0, sizes: Mapping[str, object] | None = None
) -> PreTrainedModel:
    """Build a model and save it as transformers does; arguments as of ``tiny_model``."""
    model = tiny_model(case, seed=seed, sizes=sizes)
    model.save_pretrained(folder)
    return model

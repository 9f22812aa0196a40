"""Tiny models of many families, built by transformers and saved as it saves them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
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

# What is tried: a name, the family, and what its config says beside the sizes.
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", _LLAMA),
    "llama grouped": ("llama", _LLAMA | _GROUPED),
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


def tiny_model(case: str, *, seed: int = 0) -> PreTrainedModel:
    """Build a model of ``CASES`` with random weights, norms and biases included."""
    family, settings = CASES[case]
    config = CONFIG_MAPPING[family](**_COMMON | settings)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                # Norms that are all one and biases that are all zero would hide a wrong fold.
                centre = parameter.mean() if "norm" in name or "ln_" in name else 0.0
                parameter.copy_(centre + 0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def save_tiny(case: str, folder: Path, *, seed: int = 0) -> PreTrainedModel:
    """Build a model of ``CASES`` and save it as transformers does."""
    model = tiny_model(case, seed=seed)
    model.save_pretrained(folder)
    return model

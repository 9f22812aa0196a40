"""Tiny models of transformers as GGUF files: what the converter says about each family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.architectures.tiny_models import save_tiny
from tests.checkpoints.gguf.writing import Array, gguf_tensors, write_gguf


@dataclass(frozen=True, slots=True)
class TinyGguf:
    """A tiny model and the GGUF made of it.

    Attributes:
        model: The transformers model, float32.
        weights: Its tensors as transformers saves them.
        folder: The folder that holds the GGUF and nothing else.
        file: The GGUF.
    """

    model: Any
    weights: dict[str, Array]
    folder: Path
    file: Path


ARCHITECTURES = {
    "llama": "llama", "llama grouped": "llama", "llama biases": "llama", "mistral": "llama",
    "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe", "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3",
    "olmo2": "olmo2", "granite": "granite", "smollm3": "smollm3", "phi3": "phi3",
    "gpt_neox": "gptneox", "bloom": "bloom", "gpt2": "gpt2", "falcon 7b": "falcon",
    "falcon 40b": "falcon", "falcon 11b": "falcon",
}  # fmt: skip
"""Cases of tiny_models by name, and what GGUF calls their family."""
SIZES = {
    # Every layer of experts, as llama.cpp expects.
    "qwen2_moe": {"mlp_only_layers": [], "norm_topk_prob": False},
    "qwen3_moe": {"norm_topk_prob": True},
    # What GGUF cannot say is what it is in published models.
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window": 32},
}


def tiny_gguf(
    case: str, root: Path, *, kind: Any = "F32", rows: int | None = None, **extra: object
) -> TinyGguf:
    """Save a tiny model in ``root/hf``, and as GGUF in ``root/gguf``.

    Args:
        case: A name in ``ARCHITECTURES``.
        root: A folder; it is made.
        kind: As for ``write_gguf``.
        rows: Tokens of the vocabulary.
        extra: More metadata by key, with ``__`` for a dot.
    """
    sizes = dict(SIZES.get(case, {})) | ({} if rows is None else {"vocab_size": rows})
    model = save_tiny(case, root / "hf", sizes=sizes)
    config = model.config
    weights = load_file(root / "hf" / "model.safetensors")
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    groups = getattr(config, "num_key_value_heads", None) or heads
    if config.model_type == "falcon":
        groups = config.num_kv_heads if config.new_decoder_architecture else 1
    architecture = ARCHITECTURES[case]
    tensors = gguf_tensors(architecture, weights, heads=heads, groups=groups, layers=layers)
    metadata = metadata_of(config, architecture, heads=heads, groups=groups)
    metadata |= {key.replace("__", "."): value for key, value in extra.items()}
    folder = root / "gguf"
    folder.mkdir()
    file = folder / f"{case.replace(' ', '-')}.gguf"
    write_gguf(file, architecture, tensors, metadata, kind=kind)
    return TinyGguf(model, weights, folder, file)


def metadata_of(config: Any, architecture: str, *, heads: int, groups: int) -> dict[str, object]:
    """Return what the converter says about a model, but for its tokenizer."""
    rms = getattr(config, "rms_norm_eps", None)
    epsilon = ".attention.layer_norm_rms_epsilon" if rms else ".attention.layer_norm_epsilon"
    width = config.hidden_size
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    metadata: dict[str, object] = {
        "general.name": f"Tiny {config.model_type}",
        ".block_count": config.num_hidden_layers,
        ".context_length": getattr(config, "max_position_embeddings", None) or width,
        ".embedding_length": width,
        ".feed_forward_length": getattr(config, "intermediate_size", None) or 4 * width,
        ".attention.head_count": heads,
        ".attention.head_count_kv": groups,
        epsilon: float(rms or getattr(config, "layer_norm_eps", None) or config.layer_norm_epsilon),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    if getattr(config, "head_dim", None) and architecture not in ("qwen2", "qwen2moe", "falcon"):
        metadata[".attention.key_length"] = config.head_dim
        metadata[".attention.value_length"] = config.head_dim
    if "rope_theta" in rope and architecture not in ("gemma", "gemma2", "gptneox", "falcon"):
        metadata[".rope.freq_base"] = float(rope["rope_theta"])
    return metadata | _MORE.get(architecture, lambda _: {})(config)


def _experts(config: Any) -> dict[str, object]:
    count = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if count is None:
        return {}
    facts = {".expert_count": count, ".expert_used_count": config.num_experts_per_tok}
    for key, name in (
        (".expert_feed_forward_length", "moe_intermediate_size"),
        (".expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ):
        if getattr(config, name, None):
            facts[key] = getattr(config, name)
    return facts


def _windowed(config: Any) -> dict[str, object]:
    return {".attention.sliding_window": config.sliding_window or 0}


_MORE: dict[str, Callable[[Any], dict[str, object]]] = {
    "llama": _experts,
    "qwen2moe": _experts,
    "qwen3moe": _experts,
    "gemma2": lambda config: _windowed(config) | {
        ".attn_logit_softcapping": float(config.attn_logit_softcapping),
        ".final_logit_softcapping": float(config.final_logit_softcapping),
    },
    "gemma3": _windowed,
    "phi3": _windowed,
    "granite": lambda config: {
        ".attention.scale": float(config.attention_multiplier),
        ".embedding_scale": float(config.embedding_multiplier),
        ".residual_scale": float(config.residual_multiplier),
        ".logit_scale": float(config.logits_scaling),
    },
    "gptneox": lambda config: {
        ".rope.dimension_count": int(
            config.rope_parameters["partial_rotary_factor"]
            * (config.hidden_size // config.num_attention_heads)
        ),
        ".use_parallel_residual": config.use_parallel_residual,
    },
}  # fmt: skip


def as_values(data: memoryview, dtype: str, shape: tuple[int, ...]) -> Array:
    """Return a tensor's values as float32."""
    kinds = {"F32": np.float32, "F16": np.float16, "F64": np.float64}
    if dtype == "BF16":
        bits = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    return np.frombuffer(data, kinds[dtype]).astype(np.float32).reshape(shape)

"""``config.json`` of a mixture: the base's, said so that no loader fills a gap otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from forge.merge.check.stack import Subject
from forge.merge.moe.check import Frame, attention_kinds

_NEVER: Final = ("_name_or_path", "auto_map", "quantization_config", "architectures")
# What transformers takes when a config.json of the dense family leaves a key out.
_DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = {
    "llama": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "sliding_window": None},
    "mistral": {"rms_norm_eps": 1e-6, "max_position_embeddings": 131_072, "sliding_window": 4096},
    "qwen2": {"rms_norm_eps": 1e-6, "max_position_embeddings": 32_768},
    "qwen3": {"rms_norm_eps": 1e-6, "max_position_embeddings": 32_768, "attention_bias": False},
}
_COMMON: Final[Mapping[str, object]] = {
    "hidden_act": "silu", "initializer_range": 0.02, "tie_word_embeddings": False,
}  # fmt: skip
_THETA: Final = 10_000.0


def config_of(
    frame: Frame, base: Subject, *, num_experts: int, per_token: int, dtype: str | None
) -> dict[str, object]:
    """Return the ``config.json`` of a mixture.

    Args:
        frame: What is built.
        base: The model whose attention it has.
        num_experts: Its experts.
        per_token: How many of them a token goes through.
        dtype: Torch name of the weights' type, or ``None`` to leave what the base says.

    Returns:
        The config; local paths are left out.
    """
    family, ours = frame.family, base.checkpoint.config
    kind = str(ours["model_type"])
    left_out = (*_NEVER, *family.dropped)
    config: dict[str, object] = {
        "architectures": [family.model_class],
        **{key: value for key, value in ours.items() if key not in left_out},
        "model_type": family.name,
    }
    for key, value in {**_COMMON, **_DEFAULTS[kind]}.items():
        config.setdefault(key, value)
    if "rope_parameters" not in config:
        config.setdefault("rope_theta", _THETA)
    config |= _heads(base, config)
    if "layer_types" not in family.dropped:
        config["layer_types"] = attention_kinds(base)
    config |= {
        family.num_experts_key: num_experts,
        "num_experts_per_tok": per_token,
        family.size_key: frame.expert_size,
        "output_router_logits": False,
        **family.settings,
    }
    if family.shared_size_key is not None and frame.shared_size is not None:
        config[family.shared_size_key] = frame.shared_size
    if dtype is not None:
        key = "dtype" if "dtype" in config else "torch_dtype"
        config[key] = dtype
    return config


def _heads(base: Subject, config: Mapping[str, object]) -> dict[str, object]:
    """Return how attention is divided, from the shapes that cannot lie."""
    prefix = base.architecture.layer_prefixes[0]
    rows = {
        name: base.layers[0][f"{prefix}0.self_attn.{name}_proj.weight"].shape[0] for name in "qk"
    }
    heads = config.get("num_attention_heads")
    if type(heads) is not int or heads < 1 or rows["q"] % heads:
        return {}
    width = rows["q"] // heads
    return {"head_dim": width, "num_key_value_heads": rows["k"] // width} if width else {}

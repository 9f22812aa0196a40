"""Tell from a config whether a model's decoder is the one that ``llama`` writes out.

Llama, Mistral, Qwen 2 and Qwen 3 differ in biases, norms of heads and rotary frequencies alone.
A config that says anything else of them, or leaves to a default what counts here, is not read: the
model is then built by transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_FAMILIES: Final = ("llama", "mistral", "qwen2", "qwen3")
_MAX_HEAD_SIZE: Final = 256
"""Above it transformers repeats shared keys instead of letting the kernel share them."""


@dataclass(frozen=True, slots=True)
class RotaryScaling:
    """How Llama 3.1 and later stretch slow rotary frequencies.

    Attributes:
        factor: By how much.
        low_frequency: Waves longer than ``context / low_frequency`` are stretched by all of it.
        high_frequency: Waves shorter than ``context / high_frequency`` stay.
        context: Tokens that the model was first trained on.
    """

    factor: float
    low_frequency: float
    high_frequency: float
    context: float


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """Sizes and variants of a decoder.

    Attributes:
        num_blocks: Decoder blocks.
        vocabulary: Rows of the token embedding.
        width: Features of a hidden state.
        inner_width: Features within the MLP.
        num_heads: Heads of queries.
        num_shared_heads: Heads of keys and values.
        head_size: Features of a head.
        epsilon: What norms add to the mean square.
        theta: Base of the rotary frequencies.
        scaling: How they are stretched, or ``None``.
        bias_inputs: Whether queries, keys and values have biases.
        bias_output: Whether the attention's output has one.
        bias_mlp: Whether the MLP's linears have them.
        norm_heads: Whether queries and keys are normed head by head.
    """

    num_blocks: int
    vocabulary: int
    width: int
    inner_width: int
    num_heads: int
    num_shared_heads: int
    head_size: int
    epsilon: float
    theta: float
    scaling: RotaryScaling | None
    bias_inputs: bool
    bias_output: bool
    bias_mlp: bool
    norm_heads: bool


def llama_shape(config: Mapping[str, object], *, num_tokens: int) -> LlamaShape | None:
    """Read the shape of a decoder.

    Args:
        config: ``config.json``.
        num_tokens: Tokens of the longest sequence; a window of attention that holds all of them is
            none.

    Returns:
        The shape, or ``None`` for a model that is another or may be.
    """
    family = config.get("model_type")
    if family not in _FAMILIES or not _is_plain(config, num_tokens):
        return None
    rotary = _rotary(config)
    sizes = [
        _size(config.get(key))
        for key in (
            "num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size",
            "num_attention_heads", "num_key_value_heads",
        )
    ]  # fmt: skip
    epsilon = _number(config.get("rms_norm_eps"))
    if rotary is None or epsilon is None or not all(sizes):
        return None
    num_blocks, vocabulary, width, inner_width, num_heads, num_shared_heads = sizes
    head_size = config.get("head_dim")
    if head_size is None and family != "qwen3":
        head_size = width // num_heads
    head_size = _size(head_size)
    if (
        width % num_heads or num_heads % num_shared_heads or head_size % 2
        or not 0 < head_size <= _MAX_HEAD_SIZE
    ):  # fmt: skip
        return None
    theta, scaling = rotary
    has_biases = family in {"llama", "qwen3"} and config.get("attention_bias") is True
    return LlamaShape(
        num_blocks, vocabulary, width, inner_width, num_heads, num_shared_heads, head_size,
        epsilon, theta, scaling,
        bias_inputs=has_biases or family == "qwen2",
        bias_output=has_biases,
        bias_mlp=family == "llama" and config.get("mlp_bias") is True,
        norm_heads=family == "qwen3",
    )  # fmt: skip


def _is_plain(config: Mapping[str, object], num_tokens: int) -> bool:
    """Tell whether nothing is asked for that ``llama`` does not have."""
    if config.get("hidden_act") != "silu" or config.get("partial_rotary_factor") is not None:
        return False
    kinds = config.get("layer_types")
    if kinds is not None and not (isinstance(kinds, list) and set(kinds) <= {"full_attention"}):
        return False
    family = config["model_type"]
    if family == "mistral":
        window = config.get("sliding_window", 0)
        return window is None or _size(window) > num_tokens
    return not (family in {"qwen2", "qwen3"} and config.get("use_sliding_window"))


def _rotary(config: Mapping[str, object]) -> tuple[float, RotaryScaling | None] | None:
    """Return base and stretching of the rotary frequencies, or ``None`` if they are others."""
    given = [config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)]
    if len(given) > 1 or not all(isinstance(each, Mapping) for each in given):
        return None
    parameters = given[0] if given else {}
    assert isinstance(parameters, Mapping)
    theta = _number(parameters.get("rope_theta", config.get("rope_theta")))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if theta is None or "partial_rotary_factor" in parameters:
        return None
    if kind == "default":
        return theta, None
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    numbers = [_number(parameters.get(key)) for key in keys]
    found = [number for number in numbers if number is not None]
    outside = config.get("original_max_position_embeddings")
    if kind != "llama3" or len(found) != len(keys) or outside is not None:
        return None
    return (theta, RotaryScaling(*found)) if found[2] != found[1] else None


def _size(value: object) -> int:
    """Return a positive number of things, or 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _number(value: object) -> float | None:
    """Return a positive number, or ``None``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return None
    return float(value)

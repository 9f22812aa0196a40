"""Bytes that the keys and values of one token take, by a model's configuration.

    2 · layers · key-value heads · size of a head · bytes of an element

Latent attention (DeepSeek) keeps what keys and values are made from, and the part of the keys that
is rotated, which all heads share:

    layers · (rank of keys and values + size of the rotated part) · bytes of an element

Sliding windows and layers without attention keep something else; for the latter there is no such
formula, and the real cache is measured in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from forge.architectures.table import POSITIONS

_LAYERS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HIDDEN: Final = ("hidden_size", "n_embd", "d_model", "dim")
_HEADS: Final = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KEY_HEADS: Final = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_INNER: Final = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
_POSITIONS: Final = (*POSITIONS, "n_ctx")
_LATENT: Final = ("kv_lora_rank", "qk_rope_head_dim")
_OTHERWISE: Final = ("layers_block_type", "ssm_cfg", "state_size")
"""Keys of models whose cache is not keys and values of every layer."""


def text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return the language model's part of a configuration."""
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else config


def kv_bytes_per_token(config: Mapping[str, object], *, itemsize: int) -> int | None:
    """Return the bytes of one token's keys and values.

    Args:
        config: A model's configuration.
        itemsize: Bytes of an element, 2 for bfloat16.

    Returns:
        The bytes, or ``None`` where the formula does not hold or a number is missing.
    """
    text = text_config(config)
    layers, heads = _number(text, _LAYERS), _number(text, _HEADS)
    size = _number(text, ("head_dim",))
    hidden = _number(text, _HIDDEN)
    if any(text.get(key) for key in _OTHERWISE) or layers is None or heads is None:
        return None
    if any(text.get(key) for key in _LATENT):
        rank, rotated = (_number(text, (key,)) for key in _LATENT)
        return None if rank is None or rotated is None else layers * (rank + rotated) * itemsize
    if size is None:
        if hidden is None:
            return None
        size = hidden // heads
    return 2 * layers * _key_heads(text, heads) * size * itemsize


def activation_bytes(config: Mapping[str, object], *, batch: int, prompt_tokens: int) -> int:
    """Estimate what a prompt needs beside weights and cache, from above.

    Args:
        config: A model's configuration.
        batch: Sequences at once.
        prompt_tokens: Tokens of each.

    Returns:
        Bytes of the widest point of a layer in float32: residual, normed input, queries, keys,
        values and both halves of the gated product, and the logits of the last position.
    """
    text = text_config(config)
    hidden = _number(text, _HIDDEN) or 0
    inner = _number(text, _INNER) or 4 * hidden
    vocabulary = _number(text, ("vocab_size",)) or 0
    return 4 * batch * (prompt_tokens * (6 * hidden + 3 * inner) + 2 * vocabulary)


def longest_context(config: Mapping[str, object]) -> int | None:
    """Return how many positions a model knows, or ``None`` where its configuration sets no end."""
    return _number(text_config(config), _POSITIONS)


def vocabulary_size(config: Mapping[str, object]) -> int | None:
    """Return the size of a model's vocabulary."""
    return _number(text_config(config), ("vocab_size",))


def _key_heads(text: Mapping[str, object], heads: int) -> int:
    if text.get("new_decoder_architecture"):
        # transformers repeats Falcon's keys for every query head before it keeps them.
        return heads
    if text.get("multi_query"):
        return 1
    return _number(text, _KEY_HEADS) or heads


def _number(config: Mapping[str, object], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None

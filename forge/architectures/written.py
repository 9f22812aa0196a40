"""Which tensors of a checkpoint belong into an output, and which every loader makes anew."""

from __future__ import annotations

from typing import Final

from forge.architectures.table import Architecture

_BUFFERS: Final = (
    ".rotary_emb.inv_freq",
    ".rotary_emb.cos_cached",
    ".rotary_emb.sin_cached",
    ".rope.freqs",
    ".masked_bias",
    ".attn.bias",
    ".attention.bias",
    ".position_ids",
)


def is_buffer(name: str) -> bool:
    """Return whether a tensor is one that loaders compute anew, so that it need not be kept.

    Args:
        name: The tensor.
    """
    return f".{name}".endswith(_BUFFERS)


def is_written(name: str, architecture: Architecture, *, tied: bool) -> bool:
    """Return whether a tensor of a model belongs into a result.

    Args:
        name: The tensor.
        architecture: The model's family.
        tied: Whether the result's head shares the embedding's weights.

    Returns:
        False for buffers that every loader computes anew, and for the head of a tied model, which
        every loader ignores; its bias, where a family has one, is not shared with anything.
    """
    is_shared = tied and name in architecture.heads and not name.endswith(".bias")
    return not is_buffer(name) and not is_shared

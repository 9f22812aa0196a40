"""What a config says of each layer, spelt out: also what it leaves to a rule over layer numbers.

Some families say in a list what each layer is (``layer_types``), others by a rule: every sixth
layer of Gemma 3 sees everything, every fourth of SmolLM3 has no rotation, every second of a Qwen
mixture may be sparse. A rule speaks of a layer's number, and a stack gives layers new numbers. So
for stacking, rules are spelt out as the lists that loaders make of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from forge.architectures.table import Architecture

SIZE_LISTS: Final = (
    "intermediate_size", "num_attention_heads", "num_key_value_heads", "ffn_dim",
)  # fmt: skip
"""Sizes that are one number in most families, and a list of one for each layer in some."""
SPARSE_STEP: Final = "decoder_sparse_step"
DENSE_LAYERS: Final = "mlp_only_layers"
DENSE_FIRST: Final = "first_k_dense_replace"
_FULL, _SLIDING = "full_attention", "sliding_attention"
_EVERY_OTHER: Final = ("gemma2", "gpt_oss")
_GEMMA3_PATTERN: Final = 6
_SMOLLM3_INTERVAL: Final = 4
_QWEN_WINDOW_LAYERS: Final = 28


def implied_lists(
    architecture: Architecture, text: Mapping[str, object], num_layers: int
) -> dict[str, list[object]]:
    """Return the per-layer lists that a config leaves out, as its loader fills them in.

    Args:
        architecture: The model's family.
        text: The part of its config that describes the language model.
        num_layers: How many layers to spell out.

    Returns:
        Lists by key; none for a family without a rule.
    """
    family = architecture.tower or architecture.name
    found: dict[str, list[object]] = {}
    if family == "smollm3" and not _is_list(text, "no_rope_layers"):
        interval = _number(text, "no_rope_layer_interval", _SMOLLM3_INTERVAL)
        found["no_rope_layers"] = [int((n + 1) % interval != 0) for n in range(num_layers)]
    if _is_list(text, "layer_types"):
        return found
    if family in _EVERY_OTHER or family in ("gemma3", "gemma3_text"):
        usual = 2 if family in _EVERY_OTHER else _GEMMA3_PATTERN
        pattern = usual if usual == 2 else _number(text, "sliding_window_pattern", usual)
        found["layer_types"] = [_SLIDING if (n + 1) % pattern else _FULL for n in range(num_layers)]
    elif family in ("qwen2", "qwen3", "qwen2_moe", "smollm3"):
        has_window = text.get("use_sliding_window") is True and (
            type(text.get("sliding_window", 4096)) is int
        )
        slides = [has_window and _slides(family, text, found, n) for n in range(num_layers)]
        found["layer_types"] = [_SLIDING if flag else _FULL for flag in slides]
    return found


def is_dense_layer(text: Mapping[str, object], number: int) -> bool:
    """Return whether a layer of a Qwen mixture has one MLP instead of experts.

    Args:
        text: The config.
        number: The layer.
    """
    listed = text.get(DENSE_LAYERS)
    step = _number(text, SPARSE_STEP, 1)
    return (isinstance(listed, list) and number in listed) or (number + 1) % step != 0


def _slides(
    family: str, text: Mapping[str, object], found: Mapping[str, list[object]], number: int
) -> bool:
    first = _number(text, "max_window_layers", _QWEN_WINDOW_LAYERS)
    if family == "qwen2_moe":
        return number < first and (number + 1) % 2 == 1
    if family == "smollm3":
        rotated = text.get("no_rope_layers", found.get("no_rope_layers"))
        return isinstance(rotated, list) and number < len(rotated) and not rotated[number]
    return number >= first


def _is_list(text: Mapping[str, object], key: str) -> bool:
    return isinstance(text.get(key), list)


def _number(text: Mapping[str, object], key: str, usual: int) -> int:
    value = text.get(key, usual)
    return value if type(value) is int and value > 0 else usual

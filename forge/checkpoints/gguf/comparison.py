"""Hold a ``config.json`` that lies beside a GGUF against what the file itself says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

from forge.checkpoints.gguf.families import Family
from forge.checkpoints.gguf.header import GgufTensor
from forge.checkpoints.gguf.metadata import Metadata
from forge.core.errors import CheckpointError

_SIZES: Final = (
    (".embedding_length", ("hidden_size", "n_embd", "n_embed")),
    (".block_count", ("num_hidden_layers", "n_layer")),
    (".attention.head_count", ("num_attention_heads", "n_head")),
    (".attention.head_count_kv", ("num_key_value_heads",)),
    (".attention.key_length", ("head_dim",)),
    (".expert_count", ("num_local_experts", "num_experts")),
)
_NUMBERS: Final = (
    (".rope.freq_base", ("rope_theta", "rotary_emb_base")),
    (".attention.layer_norm_rms_epsilon", ("rms_norm_eps",)),
    (".attention.layer_norm_epsilon", ("layer_norm_epsilon", "layer_norm_eps")),
)


def compare_config(
    config: Mapping[str, object],
    family: Family,
    metadata: Metadata,
    tensors: Mapping[str, GgufTensor],
) -> list[str]:
    """Compare a config with metadata and tensors.

    Args:
        config: The ``config.json``.
        family: The file's family.
        metadata: The file's metadata.
        tensors: The model's tensors by name.

    Returns:
        What differs, though the weights fit both.

    Raises:
        CheckpointError: The config is that of another model.
    """

    def foreign(what: str) -> CheckpointError:
        return CheckpointError(
            f"The config.json beside '{metadata.path}' {what}. It belongs to another model: give "
            "the file a folder of its own, with its own config.json or none."
        )

    kind = config.get("model_type")
    if kind not in family.model_types:
        raise foreign(
            f"is of model_type {str(kind)[:60]!r}, and the file of the architecture '{family.name}'"
        )
    for key, names in _SIZES:
        stated = metadata.whole(key, optional=True)
        for name in names:
            theirs = config.get(name)
            if stated and type(theirs) is int and theirs != stated:
                raise foreign(
                    f"states {name} = {theirs}, and the file {stated} ('{family.name}{key}')"
                )
    rows = tensors["token_embd.weight"].shape[0] if "token_embd.weight" in tensors else 0
    if type(config.get("vocab_size")) is int and config["vocab_size"] != rows:
        raise foreign(f"states vocab_size = {config['vocab_size']}, and the file has {rows} tokens")
    if config.get("tie_word_embeddings") is False and "output.weight" not in tensors:
        raise foreign("states tie_word_embeddings = false, and the file holds no head of its own")
    return list(_differing_numbers(config, metadata))


def _differing_numbers(config: Mapping[str, object], metadata: Metadata) -> Iterator[str]:
    for key, names in _NUMBERS:
        for name in names if key in metadata else ():
            theirs, stated = config.get(name), metadata.real(key)
            if isinstance(theirs, int | float) and not math.isclose(theirs, stated, rel_tol=1e-6):
                yield (
                    f"config.json states {name} = {theirs}, and the GGUF {stated}; config.json "
                    "counts."
                )

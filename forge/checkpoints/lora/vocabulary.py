"""Embedding and head, and what tying them means for an adapter.

PEFT merges into the loaded model, where a tied head is the embedding itself:

* what an adapter adds to either changes both, and what it adds to both is added twice;
* a module that is saved whole replaces its own one alone, so the two are tied no longer, and the
  one that the adapter does not hold is the base's embedding;
* whole embeddings that were saved because their number of rows changed stay tied.

forge does the same. It refuses what PEFT gets wrong itself (``ensure_weight_tying`` with a LoRA on
the embedding: its merge adds the same change twice).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from forge.architectures.names import architecture_of
from forge.architectures.table import Architecture
from forge.checkpoints.source import TensorSource
from forge.core.errors import IncompatibleError

CONV1D_FAMILIES: Final = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Families whose layers store ``[in, out]``."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tensors of a model whose rows are its tokens.

    Attributes:
        architecture: The model's family, or ``None`` when it is not known.
        embedding: Name of the embedding in the files, or ``None``.
        head: Name of the head, whether or not the files hold it, or ``None``.
        tied: Whether the head is the embedding.
    """

    architecture: Architecture | None
    embedding: str | None
    head: str | None
    tied: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Embedding and head, as far as they are known."""
        return tuple(name for name in (self.embedding, self.head) if name is not None)


def vocabulary_of(base: TensorSource, config: Mapping[str, object]) -> Vocabulary:
    """Find a model's embedding and head.

    Args:
        base: Its tensors.
        config: Its ``config.json``.

    Returns:
        What is known of them.
    """
    names = base.names()
    known = set(names)
    try:
        architecture = architecture_of(config, tensor_names=names)
    except IncompatibleError:
        return Vocabulary(None, None, None, tied=False)
    heads = [name for name in architecture.heads if name.endswith(".weight")]
    head = next((name for name in heads if name in known), heads[0] if heads else None)
    embedding = next((name for name in architecture.embeddings if name in known), None)
    return Vocabulary(architecture, embedding, head, architecture.is_tied(config))


def with_rows(
    config: Mapping[str, object], vocabulary: Vocabulary, *, rows: int | None, untied: bool
) -> Mapping[str, object]:
    """Return a model's config with another number of tokens, or with embedding and head untied.

    Args:
        config: ``config.json``.
        vocabulary: What ``vocabulary_of`` returned.
        rows: The new number of tokens; ``None`` leaves it.
        untied: Whether the two are tied no longer.
    """
    if rows is None and not untied:
        return config
    changed = dict(config)
    section = vocabulary.architecture.text_section if vocabulary.architecture else None
    inner = dict(nested) if section and isinstance(nested := config.get(section), Mapping) else None
    if inner is not None:
        assert section is not None
        changed[section] = inner
    for part in (changed, inner):
        if part is None:
            continue
        if rows is not None and ("vocab_size" in part or inner is None or part is inner):
            part["vocab_size"] = rows
        if untied and ("tie_word_embeddings" in part or part is changed):
            part["tie_word_embeddings"] = False
    return changed

"""Which tokens begin, end and pad a model's texts, from the files that say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.companions import GENERATION_FILE
from forge.checkpoints.folder import read_json_object
from forge.core.errors import ForgeError

SPECIAL_IDS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of ``config.json`` and ``generation_config.json``."""


def special_ids(checkpoint: Checkpoint) -> dict[str, object]:
    """Return the ids in force: those for generation, where there are any, override the model's.

    Args:
        checkpoint: The model.

    Returns:
        Ids, or lists of them, by the names of ``SPECIAL_IDS``.
    """
    try:
        generation = read_json_object(checkpoint.root, GENERATION_FILE) or {}
    except ForgeError:
        # What is wrong with the file is said when it is copied.
        generation = {}
    nested = checkpoint.config.get("text_config")
    found: dict[str, object] = {}
    for part in (nested, checkpoint.config, generation):
        if isinstance(part, Mapping):
            found |= {key: part[key] for key in SPECIAL_IDS if part.get(key) is not None}
    return found

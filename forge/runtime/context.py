"""How many tokens a loaded model can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forge.architectures.table import POSITIONS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def longest_context(model: PreTrainedModel) -> int | None:
    """Return the most tokens that a model knows positions for, or ``None`` where it says none.

    Args:
        model: The model.
    """
    config = model.config.get_text_config()
    found = (getattr(config, name, None) for name in POSITIONS)
    return next((value for value in found if type(value) is int and value > 0), None)

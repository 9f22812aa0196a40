"""Text to measure on that no model was trained on: written for forge, half of it medical.

``text/held_out.txt`` mixes ward notes, explanations, exam questions, a trial's abstract, dialogue,
prose, instructions and a little code; some 6,700 tokens in SmolLM's vocabulary. A divergence
compares two models on the same text, so it needs a varied one more than a famous one.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.core.errors import IncompatibleError

WINDOW: Final = 256
"""Tokens that a model sees at once."""


def held_out_text() -> str:
    """Return the text."""
    return (resources.files("forge.evaluate") / "text" / "held_out.txt").read_text("utf-8")


def windows(tokens: Sequence[int], *, limit: int, length: int = WINDOW) -> npt.NDArray[np.int64]:
    """Cut tokens into windows.

    Args:
        tokens: Token ids of a text.
        limit: Most tokens to use; windows are spread over the whole text.
        length: Tokens of a window.

    Returns:
        Token ids, ``[windows, length]``; one shorter window when the text has no more.

    Raises:
        IncompatibleError: The text has fewer than 2 tokens.
    """
    if len(tokens) < 2:
        raise IncompatibleError("The tokenizer makes no tokens of the held-out text.")
    length = min(length, len(tokens))
    available = len(tokens) // length
    count = max(1, min(available, limit // length))
    # The first windows would all be medical; evenly spaced ones are of every kind.
    starts = [index * available // count * length for index in range(count)]
    return np.array([tokens[start : start + length] for start in starts], np.int64)

"""Where a value stands in a recipe, for messages."""

from __future__ import annotations

from dataclasses import dataclass

from forge.core.errors import Problem

KeyPath = tuple[str | int, ...]
"""Where a value stands: ``("models", 1, "parameters", "density")``."""


@dataclass(frozen=True, slots=True)
class Place:
    """A value's place in a recipe.

    Attributes:
        file: The recipe as the user typed it, or ``None`` for a recipe built in memory.
        line: Line counted from 1, or ``None``.
        path: Where the value stands.
    """

    file: str | None = None
    line: int | None = None
    path: KeyPath = ()

    def problem(self, message: str) -> Problem:
        """Return a problem that stands here."""
        return Problem(message, self.file, self.line, dotted(self.path) or None)


def dotted(path: KeyPath) -> str:
    """Write a path as people do: ``models[1].parameters.density``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text

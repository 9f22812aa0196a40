"""What is wrong in a card, as values for text and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "hint"]
Code = Literal[
    "average", "task-set", "bold", "underline", "claim", "duplicate", "impossible", "scale",
    "decimals", "shape",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One thing that is wrong, or may be.

    Attributes:
        level: ``error`` where the card contradicts itself, ``warning`` where a reader is misled or
            cannot tell, ``hint`` for what only looks careless.
        code: What kind of thing.
        line: Where in the file, counted from 1.
        message: What is wrong.
    """

    level: Level
    code: Code
    line: int
    message: str

    def as_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "level": self.level, "code": self.code, "line": self.line, "message": self.message,
        }  # fmt: skip

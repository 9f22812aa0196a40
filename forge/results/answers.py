"""What a model answered, and what follows from it: the choice, its confidence, the option mass.

A multiple-choice answer is one next-token distribution behind the prompt, of which the
log-probabilities of the options' tokens and the likeliest token of all are kept. Both scoring
modes follow from the same answer:

    constrained      the likeliest option
    unconstrained    the likeliest token of the whole vocabulary, if it is an option's; else the
                     answer is missing, and wrong
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Mode = Literal["constrained", "unconstrained"]
MODES: Final[tuple[Mode, ...]] = ("constrained", "unconstrained")


@dataclass(frozen=True, slots=True)
class ChoiceAnswer:
    """A model's answer to a multiple-choice question.

    Attributes:
        log_probs: Natural log-probability of each option's token, in the order of the options;
            ``-inf`` where a model behind an API does not say (it is below all that it lists).
        top: Index of the option that the likeliest token of the vocabulary spells, or ``None``.
        top_text: That token, decoded.
        top_log_prob: Its log-probability, or ``None`` where a text answer carries none.
    """

    log_probs: tuple[float, ...]
    top: int | None
    top_text: str
    top_log_prob: float | None

    def chosen(self, mode: Mode) -> int | None:
        """Return the index of the chosen option; the lowest of equal ones; ``None`` if missing."""
        if mode == "unconstrained":
            return self.top
        best = max(self.log_probs)
        return None if best == -math.inf else self.log_probs.index(best)

    @property
    def option_mass(self) -> float:
        """Probability that the model gives to all options together, in [0, 1]."""
        return min(1.0, math.fsum(math.exp(value) for value in self.log_probs))

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Probabilities of the options, scaled to a sum of 1; zeros when all have none."""
        best = max(self.log_probs)
        if best == -math.inf:
            return tuple(0.0 for _ in self.log_probs)
        weights = [math.exp(value - best) for value in self.log_probs]
        total = math.fsum(weights)
        return tuple(weight / total for weight in weights)

    def as_json(self) -> dict[str, object]:
        """Return the answer as plain JSON values; ``-inf`` becomes ``null``."""
        return {
            "log_probs": [None if value == -math.inf else value for value in self.log_probs],
            "top": self.top,
            "top_text": self.top_text,
            "top_log_prob": self.top_log_prob,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> ChoiceAnswer:
        """Return the answer that ``as_json`` wrote."""
        found = value["log_probs"]
        assert isinstance(found, list)
        top, top_log_prob = value["top"], value["top_log_prob"]
        assert top is None or isinstance(top, int)
        assert top_log_prob is None or isinstance(top_log_prob, int | float)
        return cls(
            tuple(-math.inf if item is None else float(item) for item in found),
            top,
            str(value["top_text"]),
            None if top_log_prob is None else float(top_log_prob),
        )


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """A model's answer in words.

    Attributes:
        text: What it wrote, as far as the first stop sequence.
        num_tokens: How many tokens that were, or ``None`` where an API does not say.
    """

    text: str
    num_tokens: int | None = None

    def as_json(self) -> dict[str, object]:
        """Return the answer as plain JSON values."""
        return {"text": self.text, "num_tokens": self.num_tokens}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> TextAnswer:
        """Return the answer that ``as_json`` wrote."""
        count = value["num_tokens"]
        assert count is None or isinstance(count, int)
        return cls(str(value["text"]), count)


Answer = ChoiceAnswer | TextAnswer


def answer_from_json(value: Mapping[str, object]) -> Answer:
    """Return the answer that either ``as_json`` wrote."""
    return TextAnswer.from_json(value) if "text" in value else ChoiceAnswer.from_json(value)

"""What is measured: the setting of a cell, and how much is measured of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from forge.core.dtypes import BY_TORCH_NAME
from forge.core.errors import EvaluationError

PROBE_VERSION: Final = 1
"""Raised whenever the probes measure something else, so that old figures are not taken for new."""
MOST_TOKENS: Final = 1 << 22
"""Most tokens of one sequence, and of a whole batch: a bound on what a typo may ask for."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model runs while it is measured.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: Type of the arithmetic, or ``None`` for the one that each checkpoint gets.
        threads: Threads of torch.
        batch: Sequences at once.
        prompt_tokens: Tokens of each prompt.
        new_tokens: Decoding steps behind it.
    """

    device: str
    dtype: str | None
    threads: int
    batch: int
    prompt_tokens: int
    new_tokens: int

    @property
    def length(self) -> int:
        """Tokens of a sequence at its end."""
        return self.prompt_tokens + self.new_tokens

    def holds(self, other: Setting) -> bool:
        """Return whether this needs at least the memory that another setting needs."""
        return self.batch >= other.batch and self.length >= other.length

    def as_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.prompt_tokens} + {self.new_tokens} tokens"


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: How often each model has its turn.
        samples: Prompts of a turn, each with all of its decoding steps.
        seed: Of the token ids, which are the same for all models of a session.
        control: Whether a second process of the baseline takes part, as if it were another model.
    """

    rounds: int = 5
    samples: int = 2
    seed: int = 0
    control: bool = True

    def as_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return asdict(self)


def sweep(
    *,
    batches: Sequence[int],
    prompt_tokens: Sequence[int],
    new_tokens: int,
    device: str,
    dtype: str | None,
    threads: int,
) -> tuple[Setting, ...]:
    """Return every setting of a sweep, those that need little memory first.

    Args:
        batches: Batch sizes.
        prompt_tokens: Lengths of prompts.
        new_tokens: Decoding steps.
        device: As in ``Setting``.
        dtype: As in ``Setting``.
        threads: As in ``Setting``.

    Returns:
        The settings; a setting that was listed twice comes once.

    Raises:
        EvaluationError: A number is below 1 or far beyond anything that could be meant, or the type
            is none that models compute in.
    """
    if dtype is not None and not (dtype in BY_TORCH_NAME and BY_TORCH_NAME[dtype].mergeable):
        raise EvaluationError(
            f"--dtype {dtype} is no type that models compute in. Choose from: bfloat16, float16, "
            "float32, float64."
        )
    for name, values in (
        ("--batch", batches), ("--prompt-tokens", prompt_tokens), ("--new-tokens", [new_tokens]),
    ):  # fmt: skip
        if not values:
            raise EvaluationError(f"{name} names no number; write one such as 1, or several: 1,4.")
        for value in values:
            if not 1 <= value <= MOST_TOKENS:
                raise EvaluationError(f"{name} {value} is not from 1 to {MOST_TOKENS:,}.")
    pairs = set(itertools.product(batches, prompt_tokens))
    ordered = sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair))
    return tuple(
        Setting(device, dtype, threads, batch, length, new_tokens) for batch, length in ordered
    )

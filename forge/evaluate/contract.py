"""What suites hand to whatever computes answers, and what comes back.

A prompt is a text in two parts: what stands before every question of a task (instruction and
examples), and the question. That division only says what may be computed once; the text that the
model reads is their concatenation, and so are its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from forge.results.answers import ChoiceAnswer, TextAnswer

TRUNCATING: Final = ", truncating"
"""What a backend's name ends with when it may cut a prompt's beginning."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt.

    Attributes:
        prefix: Instruction and examples, the same for all questions of a task and seed.
        suffix: The question, as far as the place where the answer begins.
    """

    prefix: str
    suffix: str

    @property
    def text(self) -> str:
        """The whole prompt."""
        return self.prefix + self.suffix


@dataclass(frozen=True, slots=True)
class ChoiceRequest:
    """A question that is answered by one token.

    Attributes:
        prompt: The prompt.
        options: What each option's answer begins with behind the prompt, such as ``A``; its first
            token is scored, and two options may not begin with the same one.
    """

    prompt: Prompt
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A question that is answered in words, greedily.

    Attributes:
        prompt: The prompt.
        max_new_tokens: Most tokens to write.
        stop: Texts that end the answer; they are cut off.
    """

    prompt: Prompt
    max_new_tokens: int
    stop: tuple[str, ...] = ()


class Backend(Protocol):
    """Computes answers of one model.

    ``on_done`` hears the position of a request in the sequence and its answer as soon as it is
    known, in any order, so that it can be stored before the next is computed.
    """

    @property
    def name(self) -> str:
        """What computes, such as ``forge`` or ``api-chat``; part of every answer's key."""

    @property
    def dtype(self) -> str | None:
        """Type of the arithmetic, such as ``float32``; ``None`` behind an API."""

    def choose(
        self,
        requests: Sequence[ChoiceRequest],
        on_done: Callable[[int, ChoiceAnswer], None],
    ) -> None:
        """Answer questions by one token each."""

    def write(
        self,
        requests: Sequence[TextRequest],
        on_done: Callable[[int, TextAnswer], None],
    ) -> None:
        """Answer questions in words."""

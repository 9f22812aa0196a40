"""Get answers: those that are stored are read, the others computed and stored as they come.

An answer's key is a digest of all that it depends on: the model's bytes, the text that it reads,
what it may answer, what computes in which type, and the version of this file. So it never matters
which run, suite or file an answer came from, and nothing is computed twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from forge.evaluate.contract import Backend, ChoiceRequest, TextRequest
from forge.evaluate.subjects import Subject
from forge.results.answers import Answer
from forge.results.records import AnswerRecord, digest_of
from forge.results.store import ResultsStore

ANSWER_VERSION: Final = 1
"""Version of how answers are computed; another one recomputes them all."""
_FLUSH_ANSWERS: Final = 64
_FLUSH_S: Final = 2.0

Request = ChoiceRequest | TextRequest


def answer_key(subject: Subject, request: Request) -> str:
    """Return the key of a model's answer to a request."""
    asked: tuple[object, ...]
    if isinstance(request, ChoiceRequest):
        asked = ("choice", list(request.options))
    else:
        asked = ("text", request.max_new_tokens, list(request.stop))
    return digest_of(
        "answer", ANSWER_VERSION, subject.record.fingerprint, subject.backend, subject.dtype,
        request.prompt.text, *asked,
    )  # fmt: skip


class AnswerWriter:
    """Stores answers in small batches, so that an interruption loses none that is finished.

    Used as a context; leaving it stores what is held, whatever the reason.

    Args:
        store: Where to.
        model: Fingerprint of the model.
        clock: Returns seconds.
    """

    def __init__(
        self, store: ResultsStore, model: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._model, self._clock = store, model, clock
        self._held: list[AnswerRecord] = []
        self._stored_at = clock()

    def __enter__(self) -> AnswerWriter:
        return self

    def __exit__(self, *reason: object) -> None:
        self.flush()

    def add(self, key: str, answer: Answer) -> None:
        """Take an answer, and store those that are held if they are many or old."""
        self._held.append(AnswerRecord(key, self._model, answer))
        if len(self._held) >= _FLUSH_ANSWERS or self._clock() - self._stored_at >= _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Store what is held."""
        held, self._held = self._held, []
        if held:
            self._store.add_answers(held)
        self._stored_at = self._clock()


def compute(
    backend: Backend,
    asked: Mapping[str, Request],
    writer: AnswerWriter,
    on_answer: Callable[[str, Answer], None],
) -> None:
    """Compute answers.

    Args:
        backend: What computes.
        asked: Requests by their answers' keys.
        writer: Stores answers.
        on_answer: Hears of each, behind the writer.

    Raises:
        ForgeError: The model or its API fails; what came before is stored.
    """

    def listener(keys: Sequence[str]) -> Callable[[int, Answer], None]:
        def hear(place: int, answer: Answer) -> None:
            writer.add(keys[place], answer)
            on_answer(keys[place], answer)

        return hear

    choices = {k: r for k, r in asked.items() if isinstance(r, ChoiceRequest)}
    texts = {k: r for k, r in asked.items() if isinstance(r, TextRequest)}
    if choices:
        backend.choose(list(choices.values()), listener(list(choices)))
    if texts:
        backend.write(list(texts.values()), listener(list(texts)))

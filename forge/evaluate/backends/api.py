"""Answer with a model behind an OpenAI-compatible API.

    completions  each option is sent behind the prompt and echoed with its log-probability
    chat         one token is asked for, with the likeliest tokens at its place
    text         one letter is read out of a short answer, without probabilities

Only the first gives what a local model gives. A chat lists at most 20 tokens, so an option may be
missing from the list: its log-probability is ``-inf`` then, and the option mass says how much the
list covered. Which token is an option's is told by its exact text: ``A`` and `` A`` are two tokens
to a model on this machine as well.

The strict text rule: blanks, brackets, quotes, asterisks and dots around the answer's beginning do
not count; what is left must begin with exactly one option's text, and no letter or digit may follow
it. ``(B) because`` is B; ``The answer is B`` is missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from forge.core.errors import EvaluationError
from forge.evaluate.backends.http_json import Server, nonsense, number
from forge.evaluate.contract import ChoiceRequest, TextRequest
from forge.results.answers import ChoiceAnswer, TextAnswer

Kind = Literal["completions", "chat", "text"]
KINDS: Final[tuple[Kind, ...]] = ("completions", "chat", "text")
Asked = TypeVar("Asked")
Answered = TypeVar("Answered")
Json = Mapping[str, object]

_TOP: Final = 20
"""Most tokens that the API lists at a place."""
_LETTER_TOKENS: Final = 8
_COMPLETIONS: Final = "/completions"
_CHAT: Final = "/chat/completions"
_AROUND: Final = " \t\r\n\"'`*_([{.:"


@dataclass(frozen=True, slots=True)
class ApiBackend:
    """A model behind an API.

    Attributes:
        server: Where it is.
        model: Its name there.
        kind: How it is asked.
        concurrency: Requests at a time.
    """

    server: Server
    model: str
    kind: Kind
    concurrency: int = 4

    @property
    def name(self) -> str:
        """``api-completions``, ``api-chat`` or ``api-text``."""
        return f"api-{self.kind}"

    @property
    def dtype(self) -> None:
        """An API does not say."""
        return

    def choose(
        self, requests: Sequence[ChoiceRequest], on_done: Callable[[int, ChoiceAnswer], None]
    ) -> None:
        """Answer questions by one token each; see ``Backend``."""
        ask = {"completions": self._echo, "chat": self._list, "text": self._letter}[self.kind]
        self._at_once(requests, ask, on_done)

    def write(
        self, requests: Sequence[TextRequest], on_done: Callable[[int, TextAnswer], None]
    ) -> None:
        """Answer questions in words; see ``Backend``."""
        self._at_once(requests, self._words, on_done)

    def _at_once(
        self,
        requests: Sequence[Asked],
        ask: Callable[[Asked], Answered],
        on_done: Callable[[int, Answered], None],
    ) -> None:
        """Ask several at a time, and tell of each answer as it comes, in the caller's thread."""
        self.server.check()
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="forge-api")
        waiting: dict[Future[Answered], int] = {}
        places = iter(range(len(requests)))
        failed: BaseException | None = None
        try:
            while True:
                # No more than can run; and none behind an error, but what runs is heard to its end.
                while (
                    failed is None
                    and len(waiting) < self.concurrency
                    and (place := next(places, None)) is not None
                ):
                    waiting[pool.submit(ask, requests[place])] = place
                if not waiting:
                    break
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    place = waiting.pop(future)
                    error = future.exception()
                    failed = failed or error
                    if error is None:
                        on_done(place, future.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failed is not None:
            raise failed

    def _echo(self, request: ChoiceRequest) -> ChoiceAnswer:
        prompt = request.prompt.text.rstrip()
        blanks = request.prompt.text[len(prompt) :]
        body = {
            "model": self.model,
            "prompt": [prompt + blanks + option for option in request.options],
            "max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 5, "stream": False,
        }  # fmt: skip
        found = self.server.post(_COMPLETIONS, body)
        log_probs, texts = [], []
        top_text, top_log_prob = "", None
        for choice in self._choices(found, _COMPLETIONS, len(request.options)):
            place, columns = self._option_place(choice, len(prompt))
            value = number(columns["token_logprobs"][place])
            if value is None:
                raise self._nonsense(_COMPLETIONS, "gives no log-probability of an option", choice)
            log_probs.append(value)
            texts.append(str(columns["tokens"][place]))
            listed = columns["top_logprobs"][place]
            if isinstance(listed, dict) and listed:
                known = {str(key): number(each) for key, each in listed.items()}
                best = max(known, key=lambda key: _or_least(known[key]))
                if known[best] is not None and _or_least(known[best]) >= _or_least(top_log_prob):
                    top_text, top_log_prob = best, known[best]
        # An option's token that is likelier than all that are listed is the top one.
        if top_log_prob is None or max(log_probs) > top_log_prob:
            top_log_prob = max(log_probs)
            top_text = texts[log_probs.index(top_log_prob)]
        top = texts.index(top_text) if top_text in texts else None
        return ChoiceAnswer(tuple(log_probs), top, top_text, top_log_prob)

    def _option_place(self, choice: Json, start: int) -> tuple[int, Mapping[str, Sequence[object]]]:
        logprobs = choice.get("logprobs")
        names = ("text_offset", "tokens", "token_logprobs", "top_logprobs")
        columns = {
            name: value
            for name in names
            if isinstance(logprobs, dict) and isinstance(value := logprobs.get(name), list)
        }
        if len(columns) < len(names) or len({len(value) for value in columns.values()}) != 1:
            raise self._nonsense(
                _COMPLETIONS,
                "does not echo the prompt with log-probabilities and offsets, which scoring "
                "options needs. Ask it with --api-kind chat or text",
                choice,
            )
        offsets = columns["text_offset"]
        if start not in offsets:
            raise self._nonsense(
                _COMPLETIONS,
                f"has no token that begins with the option, at character {start} of the prompt",
                offsets[-6:],
            )
        return offsets.index(start), columns

    def _list(self, request: ChoiceRequest) -> ChoiceAnswer:
        body = self._chat_body(request.prompt.text, 1)
        choice = self._chat_choice({**body, "logprobs": True, "top_logprobs": _TOP})
        logprobs = choice.get("logprobs")
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        first = content[0] if isinstance(content, list) and content else None
        listed = first.get("top_logprobs") if isinstance(first, dict) else None
        if not isinstance(listed, list) or not listed:
            raise self._nonsense(
                _CHAT, "lists no log-probabilities. Ask it with --api-kind text", choice
            )
        known: dict[str, float] = {}
        for entry in listed:
            value = number(entry.get("logprob")) if isinstance(entry, dict) else None
            if value is None or not isinstance(entry.get("token"), str):
                raise self._nonsense(_CHAT, "lists something else than tokens", entry)
            known[entry["token"]] = max(value, known.get(entry["token"], -math.inf))
        top_text = max(known, key=lambda token: known[token])
        return ChoiceAnswer(
            tuple(known.get(option, -math.inf) for option in request.options),
            request.options.index(top_text) if top_text in request.options else None,
            top_text,
            known[top_text],
        )

    def _letter(self, request: ChoiceRequest) -> ChoiceAnswer:
        text, _ = self._said(request.prompt.text, _LETTER_TOKENS, ())
        top = read_option(text, request.options)
        # The answer says nothing of probabilities: all of it is with the option that it names.
        log_probs = tuple(0.0 if place == top else -math.inf for place in _places(request))
        return ChoiceAnswer(log_probs, top, text, None)

    def _words(self, request: TextRequest) -> TextAnswer:
        if self.kind != "completions":
            text, count = self._said(request.prompt.text, request.max_new_tokens, request.stop)
        else:
            body: dict[str, object] = {
                "model": self.model, "prompt": request.prompt.text, "temperature": 0.0,
                "max_tokens": request.max_new_tokens, "stream": False,
            }  # fmt: skip
            if request.stop:
                body["stop"] = list(request.stop[:4])
            found = self.server.post(_COMPLETIONS, body)
            (choice,) = self._choices(found, _COMPLETIONS, 1)
            text, count = self._text(choice.get("text"), _COMPLETIONS, choice), _count(found)
        # A server takes at most four stops, and some leave them in.
        cuts = [place for stop in request.stop if (place := text.find(stop)) >= 0]
        return TextAnswer(text[: min(cuts)] if cuts else text, count)

    def _said(self, prompt: str, limit: int, stop: Sequence[str]) -> tuple[str, int | None]:
        body = self._chat_body(prompt, limit)
        if stop:
            body["stop"] = list(stop[:4])
        found = self.server.post(_CHAT, body)
        (choice,) = self._choices(found, _CHAT, 1)
        message = choice.get("message")
        content = message.get("content") if isinstance(message, dict) else None
        return self._text(content, _CHAT, choice), _count(found)

    def _chat_body(self, prompt: str, limit: int) -> dict[str, object]:
        return {
            "model": self.model, "messages": [{"role": "user", "content": prompt}],
            "max_tokens": limit, "temperature": 0.0, "stream": False,
        }  # fmt: skip

    def _chat_choice(self, body: Json) -> Json:
        (choice,) = self._choices(self.server.post(_CHAT, body), _CHAT, 1)
        return choice

    def _choices(self, found: Json, path: str, count: int) -> list[Json]:
        choices = found.get("choices")
        if not isinstance(choices, list) or not all(isinstance(each, dict) for each in choices):
            raise self._nonsense(path, "answers without 'choices'", found)
        if len(choices) != count:
            raise self._nonsense(path, f"gives {len(choices)} choices instead of {count}", found)
        numbers = [choice.get("index", place) for place, choice in enumerate(choices)]
        if not all(type(each) is int for each in numbers) or sorted(numbers) != list(range(count)):
            raise self._nonsense(path, "numbers its choices wrongly", numbers)
        return [choices[numbers.index(place)] for place in range(count)]

    def _text(self, value: object, path: str, choice: Json) -> str:
        if not isinstance(value, str):
            raise self._nonsense(path, "answers without a text", choice)
        return value

    def _nonsense(self, path: str, fault: str, came: object) -> EvaluationError:
        return nonsense(self.server.url, path, fault, came)


def read_option(text: str, options: Sequence[str]) -> int | None:
    """Return the option that an answer names by the strict rule, or ``None``.

    Args:
        text: The answer.
        options: What each option's answer begins with, such as ``A``.
    """
    begin = text.lstrip(_AROUND)
    found = [
        place
        for place, option in enumerate(options)
        if re.match(rf"{re.escape(option.strip())}(?![^\W_])", begin)
    ]
    return found[0] if len(found) == 1 else None


def _places(request: ChoiceRequest) -> range:
    return range(len(request.options))


def _or_least(value: float | None) -> float:
    return -math.inf if value is None else value


def _count(found: Json) -> int | None:
    usage = found.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if type(count) is int else None

"""Answer with a model on this machine: one forward pass for a choice, greedy steps for a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import torch

from forge.core.errors import EvaluationError, NonFiniteError
from forge.evaluate.backends.batches import Row
from forge.evaluate.backends.encoding import Encoder
from forge.evaluate.backends.greedy import write_rows
from forge.evaluate.backends.trunk import Trunk, check_length
from forge.evaluate.contract import TRUNCATING, ChoiceRequest, TextRequest
from forge.results.answers import ChoiceAnswer, TextAnswer

if TYPE_CHECKING:
    from forge.runtime.any_model import LoadedModel

Request = TypeVar("Request", ChoiceRequest, TextRequest)

BATCH_TOKENS: Final = 1024
"""Tokens of a batch on a CPU, where more make nothing faster."""
BATCH_TOKENS_GPU: Final = 16384
_CHUNK_LOGITS: Final = 1 << 23
"""Logits that are held at once: 32 MiB in float32."""


class LocalBackend:
    """A model that forge or transformers runs here.

    Args:
        loaded: The model.
        batch_tokens: Most tokens of a batch, those that all rows share apart; ``None`` for what
            suits the device.
        truncate: Whether prompts that are longer than the model's context lose their beginning,
            as in lm-eval, instead of being refused.
    """

    def __init__(
        self, loaded: LoadedModel, *, batch_tokens: int | None = None, truncate: bool = False
    ) -> None:
        device = loaded.model.device.type
        suited = BATCH_TOKENS if device == "cpu" else BATCH_TOKENS_GPU
        self.trunk = Trunk(loaded.model, budget=batch_tokens or suited)
        self.encoder = Encoder(loaded.tokenizer)
        self._loaded = loaded
        self._truncate = truncate

    @property
    def name(self) -> str:
        """``forge`` or ``transformers``, and whether prompts may be cut."""
        return self._loaded.backend + (TRUNCATING if self._truncate else "")

    @property
    def dtype(self) -> str:
        """Type of the activations."""
        return self._loaded.dtype

    def choose(
        self, requests: Sequence[ChoiceRequest], on_done: Callable[[int, ChoiceAnswer], None]
    ) -> None:
        """Answer questions by one token each.

        Args:
            requests: The questions; those with the same prefix are computed together.
            on_done: Hears each answer, by the question's position.

        Raises:
            IncompatibleError: A prompt is longer than the model's context.
            EvaluationError: Options cannot be told apart by their first token.
            NonFiniteError: The model predicts NaN or infinity.
        """
        for places in _by_prefix(requests).values():
            texts = [requests[place].prompt.text for place in places]
            rows, choices = [], {}
            for place, text, tokens in zip(places, texts, self.encoder.prompts(texts), strict=True):
                options = requests[place].options
                choices[place] = self.encoder.option_tokens(text, tokens, options)
                rows.append(Row(place, self._fitting(tokens, 0, text)))
            for hidden in self.trunk.run(rows):
                found = log_probabilities(self.trunk, hidden.states_PD)
                for row, log_V in zip(hidden.rows, found, strict=True):
                    text = requests[row.index].prompt.text
                    on_done(row.index, self._choice(log_V, choices[row.index], text))

    def _choice(self, log_V: torch.Tensor, tokens: tuple[int, ...], text: str) -> ChoiceAnswer:
        top_log_prob, top_token = (each.item() for each in log_V.max(-1))
        check_finite(top_log_prob, text)
        top = int(top_token)
        return ChoiceAnswer(
            tuple(log_V[list(tokens)].tolist()),
            tokens.index(top) if top in tokens else None,
            self.encoder.decode([top]),
            float(top_log_prob),
        )

    def write(
        self, requests: Sequence[TextRequest], on_done: Callable[[int, TextAnswer], None]
    ) -> None:
        """Answer questions in words, each time with the likeliest token.

        Args:
            requests: The questions; those with the same prefix and limits are computed together.
            on_done: Hears each answer, by the question's position.

        Raises:
            IncompatibleError: A prompt and its answer are longer than the model's context.
            NonFiniteError: The model predicts NaN or infinity.
        """
        groups: dict[tuple[str, int, tuple[str, ...]], list[int]] = {}
        for place, request in enumerate(requests):
            key = (request.prompt.prefix, request.max_new_tokens, request.stop)
            groups.setdefault(key, []).append(place)
        for (_, limit, stop), places in groups.items():
            texts = [requests[place].prompt.text for place in places]
            rows = [
                Row(place, self._fitting(tuple(tokens), limit, text))
                for place, text, tokens in zip(
                    places, texts, self.encoder.encode_all(texts), strict=True
                )
            ]
            for place, answer in write_rows(
                self.trunk, self._loaded.tokenizer, rows, max_new_tokens=limit, stop=stop
            ):
                on_done(place, answer)

    def _fitting(self, tokens: tuple[int, ...], room: int, text: str) -> tuple[int, ...]:
        if not tokens:
            raise EvaluationError("A prompt is empty; the model needs a token to begin with.")
        longest = self.trunk.longest
        if self._truncate and longest is not None and room < longest:
            return tokens[-(longest - room) :]
        check_length(
            self.trunk.model, len(tokens) + room, f"The prompt that ends with {text[-60:]!r}"
        )
        return tokens


def log_probabilities(trunk: Trunk, states_PD: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the log-probabilities of all tokens at each position, float32 ``[V]`` on the CPU.

    Args:
        trunk: Whose head to use.
        states_PD: Last hidden states.
    """
    step = 1
    start = 0
    while start < len(states_PD):
        log_PV = trunk.log_probabilities(states_PD[start : start + step]).cpu()
        yield from log_PV
        start += step
        step = max(1, _CHUNK_LOGITS // log_PV.shape[-1])


def check_finite(top_log_prob: float, text: str) -> None:
    """Refuse a distribution whose largest log-probability is not a number.

    Args:
        top_log_prob: It.
        text: The prompt, for the message.

    Raises:
        NonFiniteError: It is NaN or infinite.
    """
    # It is a number exactly when the logits have a finite maximum and no NaN.
    if not abs(top_log_prob) < float("inf"):
        raise NonFiniteError(
            f"The model predicts NaN or infinity behind the prompt that ends with {text[-60:]!r}. "
            "Verify the checkpoint, or compute in another type with --dtype."
        )


def _by_prefix(requests: Iterable[ChoiceRequest]) -> Mapping[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(request.prompt.prefix, []).append(place)
    return groups

"""Write several answers at once, each time with the likeliest token.

Rows of one batch have prompts of unequal lengths, and yet no token is padded: the rows go in step.
All read their prompts as far as the shortest goes; from then on each row takes one token a step,
its prompt's next one while there is one, and then what it wrote. Rows are sorted by length, so few
steps are spent on waiting, and every family of models computes it as it would one row alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch

from forge.core.errors import NonFiniteError
from forge.evaluate.backends.batches import Row, batches
from forge.evaluate.backends.prefix_cache import PrefixCache
from forge.evaluate.backends.trunk import Trunk
from forge.results.answers import TextAnswer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_ROWS: Final = 8
_MOST_SPREAD: Final = 64
"""Tokens by which the prompts of a batch may differ: what the longest waits for the shortest."""


@dataclass(slots=True)
class _Writing:
    """A row at work: its prompt, and what was written behind it."""

    row: Row
    written: list[int] = field(default_factory=list)
    answer: TextAnswer | None = None

    def token_at(self, place: int) -> int:
        """Return the token at a place of prompt and answer; a finished row repeats its last."""
        tokens = self.row.tokens
        if place < len(tokens):
            return tokens[place]
        written = place - len(tokens)
        return self.written[written] if written < len(self.written) else tokens[-1]


class _Ending:
    """Knows where an answer ends."""

    def __init__(
        self,
        trunk: Trunk,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int,
        stop: Sequence[str],
    ) -> None:
        known = getattr(trunk.model, "generation_config", None)
        ends = getattr(known, "eos_token_id", None)
        ends = tokenizer.eos_token_id if ends is None else ends
        self._ends = set(ends) if isinstance(ends, list) else {ends}
        self._tokenizer, self._limit, self._stop = tokenizer, max_new_tokens, stop

    def answer(self, written: Sequence[int]) -> TextAnswer | None:
        """Return the answer if it ends here, else ``None``."""
        is_end = written[-1] in self._ends
        tokens = written[:-1] if is_end else written
        text = str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))
        cuts = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if cuts:
            return TextAnswer(text[: min(cuts)], len(written))
        is_over = is_end or len(written) >= self._limit
        return TextAnswer(text, len(tokens)) if is_over else None


def write_rows(
    trunk: Trunk,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    max_new_tokens: int,
    stop: Sequence[str],
) -> Iterator[tuple[int, TextAnswer]]:
    """Continue rows greedily.

    Args:
        trunk: The model.
        tokenizer: Its tokenizer.
        rows: Prompts that share their first tokens.
        max_new_tokens: Most tokens to write.
        stop: Texts that end an answer; they are cut off.

    Yields:
        The index of a row and its answer, as soon as it ends.

    Raises:
        NonFiniteError: The model predicts NaN or infinity.
    """
    ending = _Ending(trunk, tokenizer, max_new_tokens, stop)
    prefix, shared = trunk.begin(rows)
    can_keep = trunk.can_keep_past(min(rows, key=lambda row: len(row.tokens)))
    for batch in _even_batches(rows, trunk, shared, max_new_tokens):
        if not can_keep:
            for row in batch:
                yield row.index, _write_in_full(trunk, row, ending)
            continue
        cache = prefix or PrefixCache()
        cache.begin(len(batch[0].tokens) + max_new_tokens)
        yield from _write_batch(trunk, batch, ending, cache, shared)


def _even_batches(
    rows: Sequence[Row], trunk: Trunk, shared: int, max_new_tokens: int
) -> Iterator[list[Row]]:
    longest = max(len(row.tokens) for row in rows) + max_new_tokens
    most = min(_MOST_ROWS, trunk.most_rows(longest))
    for batch in batches(rows, shared=shared, budget=trunk.budget, most=most):
        part = [batch[0]]
        for row in batch[1:]:
            if len(part[0].tokens) - len(row.tokens) > _MOST_SPREAD:
                yield part
                part = []
            part.append(row)
        yield part


@torch.no_grad()
def _write_batch(
    trunk: Trunk, batch: Sequence[Row], ending: _Ending, cache: PrefixCache, shared: int
) -> Iterator[tuple[int, TextAnswer]]:
    all_rows = [_Writing(row) for row in batch]
    start, end = shared, min(len(row.tokens) for row in batch)
    while any(each.answer is None for each in all_rows):
        ids_BT = torch.tensor(
            [[each.token_at(place) for place in range(start, end)] for each in all_rows],
            device=trunk.model.device,
        )
        states_BD = trunk.step(ids_BT, cache)[:, -1]
        ready = [
            number
            for number, each in enumerate(all_rows)
            if each.answer is None and end >= len(each.row.tokens)
        ]
        for number, token in zip(ready, _likeliest(trunk, states_BD[ready]), strict=True):
            each = all_rows[number]
            each.written.append(token)
            each.answer = ending.answer(each.written)
            if each.answer is not None:
                yield each.row.index, each.answer
        start, end = end, end + 1


@torch.no_grad()
def _write_in_full(trunk: Trunk, row: Row, ending: _Ending) -> TextAnswer:
    """Compute everything anew for each token, for a model whose past cannot be kept."""
    written: list[int] = []
    while True:
        (hidden,) = trunk.run([Row(0, (*row.tokens, *written))])
        written += _likeliest(trunk, hidden.states_PD)
        answer = ending.answer(written)
        if answer is not None:
            return answer


def _likeliest(trunk: Trunk, states_PD: torch.Tensor) -> list[int]:
    if not len(states_PD):
        return []
    top_P, tokens_P = trunk.log_probabilities(states_PD).max(-1)
    if not bool(top_P.isfinite().all()):
        raise NonFiniteError(
            "The model predicts NaN or infinity while it writes. Verify the checkpoint, or compute "
            "in another type with --dtype."
        )
    return [int(token) for token in tokens_P]

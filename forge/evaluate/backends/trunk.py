"""Run a model's trunk over rows that begin alike, and hand out only what somebody reads.

A question of 200 tokens behind three examples of 900 costs 200 tokens here: the examples' keys and
values are computed once for all questions of a task. Rows are batched by length and padded on the
right, where a causal model cannot see it, so no mask and no positions need to be given: they are
those of a text that goes on. Of the hidden states only those go on to the head, the dearest layer
of a small model, whose predictions are wanted.

Not every model's past can be kept this way. Recurrent layers keep a state instead of keys; a model
may look at its whole input. Whether it can is asked of its configuration first, and then of the
model itself: one row is computed both ways, and unless both agree, rows are computed in full.

Shape suffixes: B rows, T tokens, P positions of all rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from forge.core.errors import IncompatibleError
from forge.evaluate.backends.batches import Row, batches, shared_length
from forge.evaluate.backends.prefix_cache import PrefixCache
from forge.evaluate.divergence import head_of
from forge.runtime.context import longest_context

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)

LEAST_SHARED: Final = 8
"""Shared tokens below which a pass of their own does not pay."""
_KNOWN_LAYERS: Final = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
_TOLERANCE: Final = {torch.float32: 1e-3, torch.float64: 1e-6}
_COARSE: Final = 5e-2
"""Of 16-bit types: a wrong mask is an error near 1."""
_CACHE_BYTES: Final = 1 << 30
"""Keys and values of a batch on a CPU."""
_CACHE_BYTES_GPU: Final = 4 << 30


@dataclass(frozen=True, slots=True)
class Hidden:
    """What came out for a batch.

    Attributes:
        rows: The rows.
        states_PD: Last hidden states: of each row in turn, those of its tail.
    """

    rows: tuple[Row, ...]
    states_PD: torch.Tensor


class Trunk:
    """A model that is run over rows of tokens.

    Args:
        model: A causal language model, in evaluation mode.
        budget: Most tokens of a batch, shared ones apart.
    """

    def __init__(self, model: PreTrainedModel, *, budget: int) -> None:
        self.model = model
        self.budget = budget
        self._head: Callable[[torch.Tensor], torch.Tensor] = head_of(model)
        self._trunk = model.base_model
        if self._trunk is model:
            raise IncompatibleError(
                f"transformers' {type(model).__name__} does not part its head from its trunk, so "
                "forge cannot evaluate it. Use its successor in a family that does."
            )
        self._keeps_past: bool | None = None if _may_keep_past(model) else False

    @property
    def keeps_past(self) -> bool | None:
        """Whether shared tokens are computed once; ``None`` until a row was tried."""
        return self._keeps_past

    @property
    def longest(self) -> int | None:
        """Return the most tokens that the model knows positions for, or ``None``."""
        return longest_context(self.model)

    @torch.no_grad()
    def log_probabilities(self, states_PD: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities of all tokens, float32 ``[P, V]``, behind hidden states."""
        return self._head(states_PD).float().log_softmax(-1)

    @torch.no_grad()
    def run(self, rows: Sequence[Row]) -> Iterator[Hidden]:
        """Compute the hidden states at the ends of rows.

        Args:
            rows: Rows, none longer than the model's context.

        Yields:
            The states, batch by batch, the longest rows first.
        """
        if not rows:
            return
        cache, shared = self.begin(rows)
        most = self.most_rows(max(len(row.tokens) for row in rows))
        for batch in batches(rows, shared=shared, budget=self.budget, most=most):
            yield Hidden(tuple(batch), self._tails(batch, shared, cache))

    @torch.no_grad()
    def begin(self, rows: Sequence[Row]) -> tuple[PrefixCache | None, int]:
        """Compute what rows share, if that pays and the model can go on from it.

        Args:
            rows: Rows, at least one.

        Returns:
            Keys and values of the shared tokens, and how many those are; ``None`` and 0 where
            rows must be computed in full.
        """
        shared = shared_length(rows) if len(rows) > 1 else 0
        if shared < LEAST_SHARED or not self.can_keep_past(min(rows, key=_length)):
            return None, 0
        cache = PrefixCache()
        self._states([rows[0].tokens[:shared]], cache)
        cache.keep()
        return cache, shared

    def can_keep_past(self, row: Row) -> bool:
        """Return whether the model can go on from tokens that it has seen; tried once.

        Args:
            row: What it is tried on.
        """
        if self._keeps_past is None:
            self._keeps_past = self._agrees(row)
            if not self._keeps_past:
                _log.info("The model cannot go on from shared tokens; rows are computed in full.")
        return self._keeps_past

    def most_rows(self, num_tokens: int) -> int:
        """Return how many rows of so many tokens have room for their keys and values."""
        room = _CACHE_BYTES if self.model.device.type == "cpu" else _CACHE_BYTES_GPU
        return max(1, room // (_bytes_per_token(self.model) * num_tokens))

    @torch.no_grad()
    def _agrees(self, row: Row) -> bool:
        """Compute a row in two parts and in one, and return whether both say the same."""
        shared = len(row.tokens) // 2
        if not shared:
            return False
        cache = PrefixCache()
        self._states([row.tokens[:shared]], cache)
        if not cache.holds(shared):
            return False
        cache.keep()
        cache.begin(len(row.tokens))
        split = self._states([row.tokens[shared:]], cache)[0].float()
        full = self._states([row.tokens], None)[0, shared:].float()
        if not bool(full.isfinite().all()):
            # What is wrong with it is said where its predictions are read.
            return True
        tolerance = _TOLERANCE.get(self.model.dtype, _COARSE)
        return bool((full - split).abs().max() <= tolerance * full.abs().max())

    def _tails(self, batch: Sequence[Row], shared: int, cache: PrefixCache | None) -> torch.Tensor:
        if cache is not None:
            cache.begin(len(batch[0].tokens))
        states_BTD = self._states([row.tokens[shared:] for row in batch], cache)
        parts = []
        for number, row in enumerate(batch):
            end = len(row.tokens) - shared
            parts.append(states_BTD[number, end - row.tail : end])
        return torch.cat(parts)

    def step(self, ids_BT: torch.Tensor, cache: PrefixCache) -> torch.Tensor:
        """Go on from a cache by some tokens.

        Args:
            ids_BT: The tokens.
            cache: Holds what came before; the tokens' keys and values are added.

        Returns:
            Hidden states, ``[B, T, D]``.
        """
        states: torch.Tensor = self._trunk(input_ids=ids_BT, past_key_values=cache, use_cache=True)[
            0
        ]
        return states

    def _states(self, rows: Sequence[Sequence[int]], cache: PrefixCache | None) -> torch.Tensor:
        width = max(len(row) for row in rows)
        # Any token does as padding: nothing that is read can see it.
        ids_BT = torch.tensor([[*row, *([row[-1]] * (width - len(row)))] for row in rows])
        ids_BT = ids_BT.to(self.model.device)
        if cache is not None:
            return self.step(ids_BT, cache)
        states: torch.Tensor = self._trunk(input_ids=ids_BT, use_cache=False)[0]
        return states


def check_length(model: PreTrainedModel, num_tokens: int, what: str) -> None:
    """Refuse more tokens than a model knows positions for.

    Args:
        model: The model.
        num_tokens: How many tokens it would read and write.
        what: What they are, for the message.

    Raises:
        IncompatibleError: They are too many.
    """
    longest = longest_context(model)
    if longest is not None and num_tokens > longest:
        raise IncompatibleError(
            f"{what} has {num_tokens} tokens; the model knows {longest}. Use fewer or shorter "
            "examples, leave the task out, or cut such prompts on the left with --truncate."
        )


def _length(row: Row) -> int:
    return len(row.tokens)


def _bytes_per_token(model: PreTrainedModel) -> int:
    """Return the bytes of one token's keys and values, from the configuration; at least 1."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    size = getattr(config, "head_dim", None) or (getattr(config, "hidden_size", 0) or 0) // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    layers = getattr(config, "num_hidden_layers", None) or 1
    return max(1, 2 * layers * kept * size * model.dtype.itemsize)


def _may_keep_past(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ()
    is_stateful = bool(getattr(model, "_is_stateful", False))
    return not is_stateful and not config.is_encoder_decoder and set(kinds) <= _KNOWN_LAYERS

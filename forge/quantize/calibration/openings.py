"""What a model that writes its own calibration set is given to go on, token by token.

Every row of a batch has a queue of tokens that it must take before it may choose again. All rows
therefore advance together whatever the length of their openings, and no sequence is padded. When
a document ends, the row begins another one.

An opening is one of:

- the BOS token alone, after which the rows' first choices are spread evenly over the model's own
  distribution (row b of B takes the quantile (b + u) / B), so that no two begin alike;
- a prompt of the user's, which gives the domain;
- with a chat template, the frame of a user's turn: the model first makes up what the user says,
  then, behind the frame's other half, answers it.

Legend: B rows, T tokens.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

_SHORTEST_TURN: Final = 4
_SHORTEST_DOCUMENT: Final = 32
_LOOP_SPAN: Final = 32
_LONGEST_PERIOD: Final = 8


@dataclass(frozen=True, slots=True)
class Openings:
    """What documents begin with.

    Attributes:
        prompts: Tokens of the openings to go through; at least one.
        reply: Tokens from behind a user's turn to the answer; empty without a frame.
        ends: Tokens that end a turn or a document.
    """

    prompts: tuple[tuple[int, ...], ...]
    reply: tuple[int, ...]
    ends: frozenset[int]


@dataclass(slots=True)
class Row:
    """One sequence in the making.

    Attributes:
        openings: What documents begin with.
        turn: Which opening comes next.
        tokens: What has been written.
        must: Tokens to take before the next choice.
        awaits_reply: Whether the next end is that of a user's turn.
        num_chosen: Choices since the last opening or turn.
    """

    openings: Openings
    turn: int
    tokens: list[int] = field(default_factory=list)
    must: deque[int] = field(default_factory=deque)
    awaits_reply: bool = False
    num_chosen: int = 0

    @property
    def may_end(self) -> bool:
        """Whether a document or turn is long enough to end.

        A model that has just ended one is tempted to end the next at once, and again.
        """
        return self.num_chosen >= (_SHORTEST_TURN if self.awaits_reply else _SHORTEST_DOCUMENT)

    def open(self) -> None:
        """Begin a document."""
        prompts = self.openings.prompts
        self.must.extend(prompts[self.turn % len(prompts)])
        self.turn += 1
        self.awaits_reply = bool(self.openings.reply)
        self.num_chosen = 0

    def take(self, choice: int) -> int:
        """Add a token.

        Args:
            choice: What the model would say.

        Returns:
            The token that was added: the choice, unless another one is due.
        """
        if self.must:
            token = self.must.popleft()
        else:
            token = choice
            self.num_chosen += 1
            if token in self.openings.ends:
                self._end()
            elif self._is_looping():
                self.open()
        self.tokens.append(token)
        return token

    def _end(self) -> None:
        if not self.awaits_reply:
            self.open()
            return
        self.awaits_reply = False
        self.num_chosen = 0
        # The frame begins with the token that ends a turn, and that has just been said.
        reply = self.openings.reply
        self.must.extend(reply[1:] if reply[0] in self.openings.ends else reply)

    def _is_looping(self) -> bool:
        """Tell whether the last tokens repeat one short pattern, from which few models return."""
        tail = self.tokens[-_LOOP_SPAN:]
        return len(tail) == _LOOP_SPAN and any(
            tail[period:] == tail[:-period] for period in range(1, _LONGEST_PERIOD + 1)
        )


def rows_of(openings: Openings, num_rows: int, num_openings_before: int, seed: int) -> list[Row]:
    """Return rows that go through the openings in an order of the seed.

    Args:
        openings: What documents begin with.
        num_rows: B.
        num_openings_before: Rows that were made before these.
        seed: Chooses the order.

    Returns:
        B rows, each with its first document begun.
    """
    count = len(openings.prompts)
    order = np.random.default_rng([seed, 1]).permutation(count)
    shuffled = Openings(
        tuple(openings.prompts[index] for index in order), openings.reply, openings.ends
    )
    rows = [Row(shuffled, num_openings_before + index) for index in range(num_rows)]
    for row in rows:
        row.open()
    return rows


def first_quantiles(
    num_rows: int, uniforms: npt.NDArray[np.float64], seed: int
) -> npt.NDArray[np.float64]:
    """Spread the rows' first choices evenly over a distribution.

    Args:
        num_rows: Rows of the whole calibration set.
        uniforms: float64 [num_rows] in [0, 1).
        seed: Chooses which row takes which part.

    Returns:
        float64 [num_rows] in [0, 1), one in each of as many equal parts.
    """
    order = np.random.default_rng([seed, 2]).permutation(num_rows)
    spread: npt.NDArray[np.float64] = (order + uniforms) / num_rows
    return spread

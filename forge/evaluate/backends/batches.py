"""Divide token rows into batches: what they share is found once, and little of them is padding.

Rows of a task begin with the same tokens, those of its instruction and examples. Which tokens that
are is read from the rows and not from the texts: a tokenizer may join the end of one text with the
beginning of the next. Each row keeps at least as many tokens as are asked for of its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Tokens = Sequence[int]


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens that a model reads.

    Attributes:
        index: Its position in what was asked for.
        tokens: All of its tokens.
        tail: How many of the last positions' predictions are wanted, at least 1.
    """

    index: int
    tokens: tuple[int, ...]
    tail: int = 1


def shared_length(rows: Sequence[Row]) -> int:
    """Return how many first tokens all rows share, short of the tail of any."""
    # The first and the last in lexicographic order differ wherever any two do.
    low, high = min(row.tokens for row in rows), max(row.tokens for row in rows)
    most = min(len(row.tokens) - row.tail for row in rows)
    shared = 0
    for left, right in zip(low, high, strict=False):
        if shared == most or left != right:
            break
        shared += 1
    return shared


def batches(rows: Sequence[Row], *, shared: int, budget: int, most: int) -> list[list[Row]]:
    """Divide rows into batches of similar lengths, the longest first.

    Args:
        rows: The rows.
        shared: First tokens that are computed once for all.
        budget: Most tokens of a batch, padding included and shared tokens not; a longer row is a
            batch of its own.
        most: Most rows of a batch.

    Returns:
        Batches, so that what does not fit into memory fails at once and not at the end.
    """
    ordered = sorted(rows, key=lambda row: (-len(row.tokens), row.index))
    found: list[list[Row]] = []
    for row in ordered:
        batch = found[-1] if found else None
        if batch and len(batch) < most:
            width = len(batch[0].tokens) - shared
            if width * (len(batch) + 1) <= budget:
                batch.append(row)
                continue
        found.append([row])
    return found

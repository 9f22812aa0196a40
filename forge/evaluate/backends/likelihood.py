"""Score tokens behind others: the log-likelihoods that lm-eval's tasks are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from forge.evaluate.backends.batches import Row, shared_length
from forge.evaluate.backends.local import LocalBackend, check_finite, log_probabilities
from forge.evaluate.backends.trunk import check_length

Scored = tuple[float, bool]


def score_tokens(
    backend: LocalBackend,
    pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    *,
    truncate: bool,
) -> list[Scored]:
    """Return the log-likelihood of tokens behind others, and whether each is the likeliest.

    Args:
        backend: The model.
        pairs: Context and continuation, both at least one token.
        truncate: Whether contexts that are too long lose their beginning.

    Returns:
        For each pair the sum of the continuation's log-probabilities.

    Raises:
        IncompatibleError: A pair is longer than the model's context.
        NonFiniteError: The model predicts NaN or infinity.
    """
    trunk = backend.trunk
    owners: dict[tuple[int, ...], list[int]] = {}
    for place, (context, continuation) in enumerate(pairs):
        read = (*context, *continuation)[:-1]
        if truncate and trunk.longest is not None:
            read = read[-trunk.longest :]
        check_length(trunk.model, len(read), "A prompt of lm-eval with its answer")
        owners.setdefault(read, []).append(place)
    found = [(0.0, False)] * len(pairs)
    rows = [
        Row(number, read, max(len(pairs[place][1]) for place in places))
        for number, (read, places) in enumerate(owners.items())
    ]
    by_row = list(owners.values())
    for group in _cheapest_groups(rows, [pairs[places[0]][0] for places in by_row]):
        for hidden in trunk.run(group):
            logs = log_probabilities(trunk, hidden.states_PD)
            for row in hidden.rows:
                log_TV = torch.stack([next(logs) for _ in range(row.tail)])
                top_T, likeliest_T = log_TV.max(-1)
                for place in by_row[row.index]:
                    tokens_T = torch.tensor(pairs[place][1])
                    part = slice(row.tail - len(tokens_T), row.tail)
                    check_finite(float(top_T[part].sum()), f"of {len(row.tokens)} tokens")
                    value = log_TV[part].gather(-1, tokens_T[:, None]).sum()
                    is_greedy = bool((likeliest_T[part] == tokens_T).all())
                    found[place] = (float(value), is_greedy)
    return found


def _cheapest_groups(rows: Sequence[Row], contexts: Sequence[tuple[int, ...]]) -> list[list[Row]]:
    """Group rows by what they share: all of them, or those with one context, which costs less."""

    def cost(group: Sequence[Row]) -> int:
        shared = shared_length(group) if len(group) > 1 else 0
        return shared + sum(len(row.tokens) - shared for row in group)

    if not rows:
        return []
    by_context: dict[tuple[int, ...], list[Row]] = {}
    for row, context in zip(rows, contexts, strict=True):
        by_context.setdefault(context, []).append(row)
    apart = list(by_context.values())
    return apart if sum(map(cost, apart)) < cost(rows) else [list(rows)]

"""Profiles that were never measured, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from forge.results.records import ProfileRecord

Rounds = Sequence[Sequence[float]]


def noisy_rounds(
    centre: float, *, rounds: int = 6, samples: int = 8, spread: float = 0.01, seed: int = 0
) -> tuple[tuple[float, ...], ...]:
    """Return log-normal samples around a median."""
    generator = np.random.default_rng(seed)
    values = centre * np.exp(spread * generator.standard_normal((rounds, samples)))
    return tuple(tuple(row) for row in values.tolist())


def profile(
    model: str,
    samples: Mapping[str, Rounds],
    *,
    session: str = "s",
    noise: Mapping[str, float] | None = None,
    status: str = "ok",
    batch: int = 1,
    prompt_tokens: int = 16,
) -> ProfileRecord:
    """Return a profile of a model that took these samples."""
    return ProfileRecord(
        key=f"{session}-{model}",
        model=model,
        session=session,
        environment="e",
        setting={
            "device": "cpu", "dtype": None, "threads": 2, "batch": batch,
            "prompt_tokens": prompt_tokens, "new_tokens": 4,
        },
        status=status,
        samples={name: tuple(tuple(each) for each in rounds) for name, rounds in samples.items()},
        memory={},
        noise=noise or {},
        backend="forge plain, float32",
    )  # fmt: skip

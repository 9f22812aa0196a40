"""Sweeps: their order, and what they refuse."""

from __future__ import annotations

import pytest

from forge.core.errors import EvaluationError
from forge.profile.setting import Setting, sweep


def settings(batches: list[int], prompts: list[int], new: int = 4) -> tuple[Setting, ...]:
    return sweep(
        batches=batches, prompt_tokens=prompts, new_tokens=new, device="cpu", dtype=None, threads=1
    )


def test_a_sweep_begins_with_what_needs_least() -> None:
    found = [(each.batch, each.prompt_tokens) for each in settings([4, 1, 4], [512, 128])]
    assert found == [(1, 128), (1, 512), (4, 128), (4, 512)]


def test_a_larger_setting_holds_a_smaller_one() -> None:
    small, tall, wide, large = settings([1, 4], [128, 512])
    assert large.holds(small)
    assert large.holds(wide)
    assert large.holds(large)
    assert not tall.holds(wide)
    assert not small.holds(tall)


@pytest.mark.parametrize(
    ("batches", "prompts", "new", "message"),
    [
        ([0], [1], 1, "--batch 0 is not from 1 to"),
        ([1], [128, -3], 1, "--prompt-tokens -3 is not from 1 to"),
        ([1], [1], 0, "--new-tokens 0 is not from 1 to"),
        ([1], [10**12], 1, "--prompt-tokens 1000000000000 is not from 1 to 4,194,304"),
        ([], [1], 1, "--batch names no number"),
    ],
)
def test_impossible_numbers_are_named(
    batches: list[int], prompts: list[int], new: int, message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        settings(batches, prompts, new)

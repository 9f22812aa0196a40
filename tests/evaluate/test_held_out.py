"""The held-out text, and how it is cut."""

from __future__ import annotations

import pytest

from forge.core.errors import IncompatibleError
from forge.evaluate.held_out import held_out_text, windows


def test_the_text_is_long_and_does_not_repeat_itself() -> None:
    text = held_out_text()
    lines = [line for line in text.splitlines() if len(line) > 40]
    assert len(text.split()) > 5000
    assert len(set(lines)) == len(lines)
    assert text.isascii()


def test_windows_are_spread_over_the_whole_text() -> None:
    tokens = list(range(1000))
    found = windows(tokens, limit=300, length=100)
    assert found.shape == (3, 100)
    assert found[:, 0].tolist() == [0, 300, 600]
    assert (found[:, 1:] - found[:, :-1] == 1).all()


def test_all_windows_are_used_when_they_may() -> None:
    found = windows(list(range(1050)), limit=10**6, length=100)
    assert found.reshape(-1).tolist() == list(range(1000))


@pytest.mark.parametrize(("count", "limit"), [(30, 4096), (300, 2)])
def test_there_is_always_one_window(count: int, limit: int) -> None:
    found = windows(list(range(count)), limit=limit, length=100)
    assert found.shape == (1, min(count, 100))


def test_a_text_without_two_tokens_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="makes no tokens"):
        windows([1], limit=10)

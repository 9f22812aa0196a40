"""How a message names several things: the first few of many, or all of a few."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

_SHOWN: Final = 3


def some(names: Sequence[str]) -> str:
    """Return the first three of some names in quotes, and how many more there are.

    Args:
        names: At least one.
    """
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    rest = len(names) - _SHOWN
    return shown if rest <= 0 else f"{shown} and {rest:,} more"


def listed(things: Iterable[object]) -> str:
    """Return things as a sentence lists them: ``a``, ``a and b``, ``a, b and c``.

    Args:
        things: What is named, by ``str``.
    """
    names = [str(thing) for thing in things]
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"

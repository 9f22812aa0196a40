"""Compare what stands beside the weights: configuration keys and small files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

ABSENT: Final = "(absent)"
"""Stands for the value of a configuration key that one side does not have."""


@dataclass(frozen=True, slots=True)
class ConfigDifference:
    """A key of ``config.json``, dotted, and its value in each checkpoint."""

    key: str
    a: object
    b: object


@dataclass(frozen=True, slots=True)
class FileDifference:
    """A tokenizer or generation file that differs, or that only one checkpoint has."""

    name: str
    state: Literal["differs", "only in A", "only in B"]


def config_differences(
    a: Mapping[str, object], b: Mapping[str, object]
) -> tuple[ConfigDifference, ...]:
    """Compare two configurations key by key.

    Args:
        a: The first ``config.json``.
        b: The second one.

    Returns:
        The keys whose values differ, sorted.
    """
    flat_a, flat_b = _flatten(a), _flatten(b)
    return tuple(
        ConfigDifference(key, flat_a.get(key, ABSENT), flat_b.get(key, ABSENT))
        for key in sorted(flat_a.keys() | flat_b.keys())
        # JSON's 1, 1.0 and true are equal in Python; here they are not the same.
        if repr(flat_a.get(key, ABSENT)) != repr(flat_b.get(key, ABSENT))
    )


def _flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def file_differences(a: Mapping[str, bytes], b: Mapping[str, bytes]) -> tuple[FileDifference, ...]:
    """Compare two sets of files.

    Args:
        a: Content by name in the first checkpoint.
        b: Content by name in the second one.

    Returns:
        The files that differ or that only one has, sorted by name.
    """
    found: list[FileDifference] = []
    for name in sorted(a.keys() | b.keys()):
        if name not in b:
            found.append(FileDifference(name, "only in A"))
        elif name not in a:
            found.append(FileDifference(name, "only in B"))
        elif a[name] != b[name]:
            found.append(FileDifference(name, "differs"))
    return tuple(found)

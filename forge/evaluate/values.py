"""Take values out of the rows of strangers: by name, by path, or by either of two names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

ABSENT: Final = object()
"""What :func:`find_value` returns where a row has no such column; no JSON value is it."""


def find_value(row: Mapping[str, object], column: str) -> object:
    """Return the value of a column.

    Args:
        row: A row.
        column: Its name, a path with dots into records, or several of them separated by ``|``, of
            which the first is taken that the row has.

    Returns:
        The value, or :data:`ABSENT`.
    """
    for name in column.split("|"):
        if name in row:
            return row[name]
        value: object = row
        for part in name.split("."):
            value = value.get(part, ABSENT) if isinstance(value, Mapping) else ABSENT
        if value is not ABSENT:
            return value
    return ABSENT


def as_name(value: object) -> str | None:
    """Return a text or a whole number as a name, and ``None`` for all else."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        return None
    return str(value)

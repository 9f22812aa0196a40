"""A frozen table from a name to a row, with "did you mean" for names it does not hold."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar


class Named(Protocol):
    """Anything with a ``name``."""

    @property
    def name(self) -> str: ...


Row = TypeVar("Row", bound=Named)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known word nearest to ``word``, or an empty string."""
    match = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f" Did you mean '{match[0]}'?" if match else ""


class Catalog(Generic[Row]):
    """Rows by name, in the order in which they were listed.

    Raises:
        ValueError: Two rows carry the same name.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        table: dict[str, Row] = {}
        for row in rows:
            if row.name in table:
                raise ValueError(f"catalog row '{row.name}' is listed twice")
            table[row.name] = row
        self._rows: Mapping[str, Row] = MappingProxyType(table)

    def __getitem__(self, name: str) -> Row:
        return self._rows[name]

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def names(self) -> tuple[str, ...]:
        """Return all names, in listing order."""
        return tuple(self._rows)

    def suggest(self, word: str) -> str:
        """Return `` Did you mean 'x'?`` or an empty string."""
        return did_you_mean(word, self._rows)

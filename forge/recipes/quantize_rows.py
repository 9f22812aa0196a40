"""What the reader of quantization recipes wants to know about methods and formats.

The rows themselves are the catalog's; recipes stand below it and only say what they need.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from forge.core.catalog import Named


class FormatRow(Protocol):
    """A layout on disk."""

    @property
    def name(self) -> str:
        """Name in recipes: the family, a dash, and what tells its layouts apart."""

    @property
    def kind(self) -> str:
        """``codes``, or ``tensorwise`` where the format fixes bits and blocks itself."""

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits of a code that it holds."""

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Sizes of a group that it holds; 0 is a whole row."""

    @property
    def notice(self) -> str | None:
        """What a user should know before choosing it."""


class MethodRow(Protocol):
    """A way to choose codes."""

    @property
    def name(self) -> str:
        """Name in recipes."""

    @property
    def formats(self) -> tuple[str, ...]:
        """What it can be written as, the default first."""

    @property
    def needs_calibration(self) -> bool:
        """Whether it watches the model at work."""

    @property
    def options(self) -> Sequence[Named]:
        """Its own keys."""


@dataclass(frozen=True, slots=True)
class Choices:
    """All methods and formats.

    Attributes:
        methods: Methods by name.
        formats: Formats by name.
    """

    methods: dict[str, MethodRow]
    formats: dict[str, FormatRow]

    @classmethod
    def of(cls, methods: Iterable[MethodRow], formats: Iterable[FormatRow]) -> Choices:
        """Return the choices that catalogs hold."""
        return cls({row.name: row for row in methods}, {row.name: row for row in formats})

    def formats_of(self, method: MethodRow) -> list[FormatRow]:
        """Return what a method can be written as, the default first."""
        return [self.formats[name] for name in method.formats]

    def owners(self, key: str) -> list[str]:
        """Return the names of the methods that have a key of their own of this name."""
        return [
            row.name for row in self.methods.values() if key in (item.name for item in row.options)
        ]

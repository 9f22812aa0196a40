"""Print figures as aligned Markdown tables, and keep those in ``docs/benchmarks.md`` up to date."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.process import BenchmarkError


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some figures, and how far they went."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.1f} ({self.least:.1f}–{self.greatest:.1f})"


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Divide pair by pair, so that noise which lasts longer than a pair cancels."""
    return Spread.of([x / y for x, y in zip(above, below, strict=True)])


def mark(cell: str, reached: bool) -> str:
    """Show in a cell that its floor was missed."""
    return cell if reached else f"{cell} MISSED"


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns line up; all but the first are right-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if not number else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join((first, *others))} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), f"| {' | '.join(rule)} |", *map(line, rows)])


def replace_section(document: Path, name: str, text: str) -> None:
    """Put ``text`` between the marks ``<!-- name -->`` and ``<!-- /name -->`` of a document.

    Raises:
        BenchmarkError: A mark is missing.
    """
    before, begin, rest = document.read_text().partition(f"<!-- {name} -->")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not begin or not end:
        raise BenchmarkError(f"{document} lacks the mark '<!-- {name} -->' or its end")
    document.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")

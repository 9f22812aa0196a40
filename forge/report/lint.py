"""Read anybody's model card and say what is wrong in its tables.

Only the card is read: nothing is computed anew, nothing is fetched. What is an error contradicts
itself on the page (an average that is not the mean beside it); the rest is for its author to judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge.report.card_tables import CardTable, tables_of
from forge.report.card_text import CardText, read_card
from forge.report.lint_averages import average_findings
from forge.report.lint_claims import claim_findings
from forge.report.lint_finding import LintFinding
from forge.report.lint_marks import mark_findings
from forge.report.lint_values import shape_findings, value_findings
from forge.report.lint_view import less_is_better, view_of

_AROUND: Final = 6
"""Lines before and behind a table that may be its caption."""
_MAX_LINE: Final = 20_000
_ORDER: Final = ("error", "warning", "hint")


@dataclass(frozen=True, slots=True)
class LintReport:
    """What is wrong in a card.

    Attributes:
        findings: In the order of their lines, errors first on each.
        num_tables: Tables that were read.
        num_results: Those of them that show scores.
    """

    findings: tuple[LintFinding, ...]
    num_tables: int
    num_results: int

    def count(self, level: str) -> int:
        """Return how many findings have a level."""
        return sum(finding.level == level for finding in self.findings)

    def as_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "num_tables": self.num_tables,
            "num_results": self.num_results,
            "num_errors": self.count("error"),
            "findings": [finding.as_json() for finding in self.findings],
        }


def lint_card(path: Path) -> LintReport:
    """Check a model card.

    Args:
        path: A Markdown file.

    Returns:
        What is wrong in it.

    Raises:
        EvaluationError: It cannot be read, is no UTF-8 text, or is larger than any card.
    """
    return lint_text(read_card(path))


def lint_text(card: CardText) -> LintReport:
    """Check the lines of a card; see ``lint_card``."""
    tables = tables_of(card)
    views = [view_of(table) for table in tables]
    findings: list[LintFinding] = []
    for table, view in zip(tables, views, strict=True):
        if not view.of_kind("task", "measure", "average", "weighted"):
            continue
        others = [other for other in views if other is not view]
        findings += shape_findings(table)
        findings += average_findings(view, others)
        findings += mark_findings(view, less_may_be_better=_speaks_of_less(card, table))
        findings += value_findings(view)
    findings += claim_findings(card, views)
    findings.sort(key=lambda finding: (finding.line, _ORDER.index(finding.level), finding.message))
    return LintReport(
        findings=tuple(findings),
        num_tables=len(tables),
        num_results=sum(view.has_results for view in views),
    )


def _speaks_of_less(card: CardText, table: CardTable) -> bool:
    """Tell whether the lines around a table name a measure of which less is better."""
    first = max(0, table.line - 1 - _AROUND)
    around = [*card.lines[first : table.line - 1],
              *card.lines[table.last_line : table.last_line + _AROUND]]  # fmt: skip
    return any(less_is_better(line[:_MAX_LINE]) for line in around)

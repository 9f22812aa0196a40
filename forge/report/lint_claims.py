"""Claims of superiority that nothing in the card says how sure one can be of.

A claim is backed where its section, or the nearest table of results, shows an interval, a standard
error or a test. It is matched by words, so a claim that is nobody's own is found, too; that is why
it is a warning.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from typing import Final

from forge.report.card_text import CardText
from forge.report.lint_finding import LintFinding
from forge.report.lint_view import View

_CLAIM: Final = re.compile(
    r"\boutperform(?:s|ed|ing)?\b|\bstate[- ]of[- ]the[- ]art\b|\bSOTA\b|\bsurpass(?:es|ed|ing)?\b"
    r"|\bsuperior (?:performance|results|accuracy|to)\b|\bsignificant(?:ly)? (?:better|worse|"
    r"higher|lower|improve\w*|outperform\w*|gains?|increase\w*|reduc\w*|exceed\w*)\b"
    r"|\bbest[- ]performing\b|\bbeats? (?:all|every|the|GPT|Llama|\w+-\d)",
    re.IGNORECASE,
)
_BACKING: Final = re.compile(
    r"±|\\pm\b|\+/-|\bconfidence intervals?\b|\b9\d\s?% (?:CI|interval)|\bstandard (?:errors?|"
    r"deviations?)\b|\bstd(?:err|ev)?\b|\bp\s?[<=≤]\s?0?\.\d|\bmcnemar\b|\bbootstrap|\bt-tests?\b|"
    r"\bpermutation tests?\b|\bwilcoxon\b|\bsignificance tests?\b",
    re.IGNORECASE,
)
_MAX_LINE: Final = 20_000


def claim_findings(card: CardText, views: Sequence[View]) -> list[LintFinding]:
    """Return the claims that are not backed.

    Args:
        card: The card's lines.
        views: Its tables.

    Returns:
        One finding for each line that claims something; none in a card without results.
    """
    results = [view for view in views if view.has_results]
    if not results:
        return []
    in_tables = {
        line for view in views for line in range(view.table.line, view.table.last_line + 1)
    }
    sections = card.sections()
    backed = [
        any(_BACKING.search(card.lines[line - 1][:_MAX_LINE]) for line in section)
        for section in sections
    ]
    starts = [section.start for section in sections]
    findings = []
    for line, text in enumerate(card.lines, start=1):
        match = _CLAIM.search(text[:_MAX_LINE])
        if match is None or line in in_tables or backed[bisect.bisect(starts, line) - 1]:
            continue
        nearest = min(results, key=lambda view: _distance(view, line))
        if not _has_intervals(nearest):
            findings.append(
                LintFinding(
                    "warning", "claim", line,
                    f"'{match[0]}' is claimed, but neither this section nor the table at line "
                    f"{nearest.table.line} has an interval or a test.",
                )
            )  # fmt: skip
    return findings


def _distance(view: View, line: int) -> int:
    return max(view.table.line - line, line - view.table.last_line, 0)


def _has_intervals(view: View) -> bool:
    return any(
        (cell.number is not None and cell.number.has_interval) or _BACKING.search(cell.text)
        for row in (view.table.heads, *view.table.rows)
        for cell in row
    )

"""What the checks of a quantized checkpoint found, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from forge.cli.tables import table
from forge.verify.findings import TITLES

if TYPE_CHECKING:
    from forge.verify.quantized import QuantizedReport

_WORST: Final = 3
_MOST_FAULTS: Final = 40


def quantized_text(report: QuantizedReport, *, width: int | None) -> str:
    """Return the checks as a table, the layers with the largest errors, and every fault.

    Args:
        report: What was found.
        width: Columns of the terminal; ``None`` wraps nothing.
    """
    rows = [
        [f"{number} {TITLES[check.name]}", check.state, check.summary]
        for number, check in enumerate(report.checks, 1)
    ]
    parts = [table(["CHECK", "RESULT", "WHAT WAS FOUND"], rows, width=width)]
    if report.modules:
        worst = [
            [error.module, f"{error.relative:.2%}", f"{error.worst_group:.1%}"]
            for error in report.worst(_WORST)
        ]
        parts.append(
            table(["WORST LAYERS", "ERROR", "WORST GROUP"], worst, right=["ERROR", "WORST GROUP"])
        )
    if report.findings:
        shown = [finding.message for finding in report.findings[:_MOST_FAULTS]]
        more = len(report.findings) - len(shown)
        parts.append("\n".join([*shown, *([f"... and {more:,} more"] if more else [])]))
    return "\n\n".join(parts)

"""Whether a model's confidence can be believed."""

from __future__ import annotations

from forge.report.charts.selection import Group
from forge.report.comparison import Comparison
from forge.report.markup import join
from forge.report.sections.parts import Cell, Column, Section, figures, fold, named, table


def calibration(comparison: Comparison, group: Group) -> Section:
    """Lay out the reliability curves and the bins behind them."""
    caption = (
        "Each point is a bin of answers: below the diagonal a model is surer than it is right. The "
        "bars below count the answers of each bin."
    )
    parts = [figures(group, caption, title="Reliability")]
    if comparison.reliability:
        columns = [
            Column("Model", numeric=False, first="ascending"),
            Column("Confidence", first="ascending"),
            Column("Answers"),
            Column("Mean confidence"),
            Column("Accuracy"),
        ]
        rows = [
            [
                named(comparison, found.model),
                Cell(f"{item.low:.2f} – {item.high:.2f}", item.low),
                Cell(f"{item.num_answers:,}", float(item.num_answers)),
                Cell(f"{item.confidence:.3f}", item.confidence),
                Cell(f"{item.accuracy:.3f}", item.accuracy),
            ]
            for found in comparison.reliability
            for item in found.bins
        ]
        bins = table(
            "reliability-bins", columns, rows, caption="Bins that hold no answer are left out."
        )
        parts.append(fold("Every bin", bins))
    return Section("calibration", "Reliability of confidence", join(parts))

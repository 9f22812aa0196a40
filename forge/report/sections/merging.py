"""What merges measured: conflicts, angles and norms, place by place."""

from __future__ import annotations

from forge.report.charts.selection import Group
from forge.report.comparison import Comparison
from forge.report.comparison.origin import Merge, MergeLayer
from forge.report.markup import Markup, join
from forge.report.sections.parts import ABSENT, Cell, Column, Section, figures, fold, table
from forge.report.words import figures as digits
from forge.report.words import percent


def merges(comparison: Comparison, group: Group) -> Section:
    """Lay out the diagnostics of each merge."""
    caption = (
        "Norms and angles are those of task vectors where the merge has a base model, and of the "
        "weights themselves where it has none."
    )
    parts = [figures(group, caption, title="How models met")]
    if comparison.merges:
        tables = [_table(found, number) for number, found in enumerate(comparison.merges, 1)]
        parts.append(fold("The figures, embedding and head included", *tables))
    return Section("merges", "Merge diagnostics", join(parts))


def _table(found: Merge, number: int) -> Markup:
    columns = [Column("Place", numeric=False, first=None)]
    columns += [Column(name, "norm") for name in found.inputs]
    columns += [Column(f"{found.inputs[a]} – {found.inputs[b]}", "cosine") for a, b in found.pairs]
    columns.append(Column("Conflicts", "% of positions"))
    columns += [Column(name, "% kept") for name in found.inputs]
    columns += [Column("Angle", "degrees"), Column("Note", numeric=False, first=None)]
    rows = [_row(found, layer) for layer in found.layers]
    return table(f"merge-table-{number}", columns, rows, caption=f"{found.model} ({found.method}).")


def _row(found: Merge, layer: MergeLayer) -> list[Cell]:
    count = len(found.inputs)
    return [
        Cell(layer.place),
        *_padded(layer.norms, count, scale=1.0),
        *_padded(layer.cosines, len(found.pairs), scale=1.0),
        ABSENT
        if layer.conflict_share is None
        else Cell(percent(layer.conflict_share), 100 * layer.conflict_share),
        *_padded(layer.kept_shares, count, scale=100.0),
        ABSENT
        if layer.angle_degrees is None
        else Cell(f"{layer.angle_degrees:.1f}", layer.angle_degrees),
        Cell(layer.fallback or ""),
    ]


def _padded(values: tuple[float, ...], count: int, *, scale: float) -> list[Cell]:
    cells = [Cell(digits(scale * value), scale * value) for value in values[:count]]
    return cells + [ABSENT] * (count - len(cells))

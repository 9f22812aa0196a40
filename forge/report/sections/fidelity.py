"""How far a variant is from its source: KL divergence, errors of projections and of layers."""

from __future__ import annotations

from forge.report.charts.selection import Group
from forge.report.comparison import Comparison
from forge.report.comparison.differences import Divergence
from forge.report.markup import Markup, join
from forge.report.sections.parts import (
    ABSENT,
    Cell,
    Column,
    Section,
    figures,
    fold,
    named,
    paragraph,
    table,
)
from forge.report.words import figures as digits
from forge.report.words import percent, size_text


def divergence(comparison: Comparison, kl: Group, layers: Group, *, narrow: Group) -> Section:
    """Lay out KL divergence against size, and where in the model it arises."""
    parts = [
        figures(
            kl,
            "Mean over all positions; the whisker reaches from the median to the 99th percentile.",
            title="KL divergence from the source, against size",
            narrow=narrow,
        ),
    ]
    if comparison.divergences:
        parts.append(_table(comparison))
    parts.append(
        figures(
            layers,
            "A layer that stands out is where to look first, or what to leave in full precision.",
            title="Divergence by layer",
        )
    )
    return Section("divergence", "Divergence from the source", join(parts))


def quantization_errors(comparison: Comparison, group: Group) -> Section:
    """Lay out the heat maps."""
    worst = [
        f"{found.model}: largest at {found.worst}." for found in comparison.quantization_errors
    ]
    parts = [
        figures(
            group,
            "One scale of colours for all; an empty cell was not measured.",
            title="Error by layer and projection",
        ),
        *(paragraph(sentence, role="small mute") for sentence in worst),
    ]
    if comparison.quantization_errors:
        parts.append(
            fold(
                "The figures",
                *(
                    _errors(comparison, number)
                    for number in range(len(comparison.quantization_errors))
                ),
            )
        )
    return Section("errors", "Quantization errors", join(parts))


def _table(comparison: Comparison) -> Markup:
    columns = [
        Column("Variant", numeric=False, first="ascending"),
        Column("Against", numeric=False, first="ascending"),
        Column("Size", "weights", first="ascending"),
        Column("Mean", "nats", first="ascending"),
        Column("Median", first="ascending"),
        Column("p90", first="ascending"),
        Column("p99", first="ascending"),
        Column("Max", first="ascending"),
        Column("Same top token", "%"),
        Column("Perplexity", "ratio", first="ascending"),
        Column("Positions"),
        Column("Text", numeric=False, first="ascending"),
    ]
    rows = [_row(comparison, found) for found in comparison.divergences]
    caption = "Next-token KL divergence of the variant from its source, on the same tokens."
    return table("divergence-table", columns, rows, caption=caption)


def _row(comparison: Comparison, found: Divergence) -> list[Cell]:
    size = found.weight_bytes
    return [
        named(comparison, found.variant),
        Cell(found.reference, role="label-cell"),
        ABSENT if size is None else Cell(size_text(size), float(size)),
        *(
            Cell(digits(value), value)
            for value in (found.mean, found.median, found.p90, found.p99, found.max)
        ),
        Cell(percent(found.same_top_share), 100 * found.same_top_share),
        Cell(f"{found.perplexity_ratio:.3f}", found.perplexity_ratio),
        Cell(f"{found.num_positions:,}", float(found.num_positions)),
        Cell(found.text, role="label-cell"),
    ]


def _errors(comparison: Comparison, number: int) -> Markup:
    found = comparison.quantization_errors[number]
    columns = [Column("Layer", numeric=False, first="ascending")]
    columns += [
        Column(name.rsplit(".", 1)[-1], name.rpartition(".")[0] or None)
        for name in found.projections
    ]
    rows = [
        [
            Cell(str(layer), float(layer)),
            *(ABSENT if value is None else Cell(digits(value), value) for value in values),
        ]
        for layer, values in zip(found.layers, found.values, strict=True)
    ]
    caption = f"{found.model}: {found.measure}."
    return table(f"errors-{number + 1}", columns, rows, caption=caption)

"""Divergences of a report's variants from their sources."""

from __future__ import annotations

from collections.abc import Sequence

from forge.report.comparison.differences import Divergence
from forge.report.lineup import Lineup
from forge.results.records import DivergenceRecord


def shown_divergences(
    records: Sequence[DivergenceRecord], lineup: Lineup
) -> tuple[Divergence, ...]:
    """Choose the last divergence of each variant, reference and text.

    Args:
        records: All, the oldest first.
        lineup: The models of the report.

    Returns:
        Those between models of the report, in their order.
    """
    newest = {(each.variant, each.reference, each.text): each for each in records}
    found = []
    for entry in lineup.entries:
        for (variant, reference, _), record in sorted(newest.items()):
            against = lineup.label_of(reference)
            if variant == entry.record.fingerprint and against is not None:
                found.append(_divergence(record, entry.label, against, entry.record.weight_bytes))
    return tuple(found)


def _divergence(
    record: DivergenceRecord, variant: str, reference: str, weight_bytes: int | None
) -> Divergence:
    figures = record.figures
    return Divergence(
        variant=variant,
        reference=reference,
        text=record.text,
        num_positions=int(figures["num_positions"]),
        mean=figures["mean"],
        median=figures["median"],
        p90=figures["p90"],
        p99=figures["p99"],
        max=figures["max"],
        same_top_share=figures["same_top_share"],
        perplexity_ratio=figures["perplexity_ratio"],
        weight_bytes=weight_bytes,
        layers=tuple((layer.layer, layer.relative_error) for layer in record.layers),
    )

"""What a method of statistics demands of a recipe: a folder of statistics for every model."""

from __future__ import annotations

from collections.abc import Sequence

from forge.recipes.findings import Findings
from forge.recipes.merge_entries import ModelEntry, SliceEntry
from forge.recipes.parameters import MethodRow
from forge.recipes.reference import ModelReference


def check_statistics(
    method: MethodRow | None,
    base: ModelReference | None,
    models: Sequence[ModelEntry],
    slices: Sequence[SliceEntry],
    findings: Findings,
) -> None:
    """Report models without statistics that need them, and statistics that nothing reads.

    Args:
        method: The recipe's method, or ``None`` when it could not be read.
        base: The recipe's base, or ``None``.
        models: Whole models.
        slices: Runs of layers.
        findings: Receives the problems.
    """
    if method is None:
        return
    for entry in models:
        path = (*entry.place.path, "statistics")
        if method.statistics and entry.statistics is None:
            findings.missing(
                path,
                f"{method.name} needs statistics of {entry.model}. Collect them with 'forge "
                f"calibrate {entry.model} --statistics {method.statistics} --out DIR', and write "
                "'statistics: DIR' here.",
            )
        elif entry.statistics is not None and not method.statistics:
            findings.add(
                path, f"{method.name} reads no statistics; regmean and fisher do. Remove the key."
            )
    if method.statistics and models and base not in (None, *(entry.model for entry in models)):
        findings.add(
            ("base_model",),
            f"{method.name} merges the base model like the others, so it needs statistics. List "
            f"{base} among 'models', or remove 'base_model'.",
        )
    used = [method, *(entry.method for entry in slices if entry.method is not None)]
    for row in used if slices else ():
        if row.statistics:
            findings.add(("slices",), f"{row.name} merges whole models: list them under 'models'.")

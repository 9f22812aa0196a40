"""Where it was measured, and how quiet it was there."""

from __future__ import annotations

from typing import Final

from forge.report.comparison import Comparison
from forge.report.markup import Markup, element, join
from forge.report.sections.origin import pairs
from forge.report.sections.parts import ABSENT, Cell, Column, Section, fold, named, paragraph, table
from forge.report.words import figures as digits

_NOISE: Final = {
    "other_cpu_cores": ("Other processes", "cores"),
    "steal_share": ("Taken by the host", "share of time"),
    "load_before": ("Load before", "1 min"),
}


def environment(comparison: Comparison) -> Section:
    """Lay out each environment, and what the machine did meanwhile."""
    parts: list[Markup] = []
    if not comparison.environments:
        parts.append(
            paragraph("Nothing was profiled, so no environment is recorded.", role="absent")
        )
    for found in comparison.environments:
        parts.append(element("h3", None, f"Environment {found.name}"))
        parts.append(pairs(list(found.facts)))
    if comparison.profiles.sweep:
        parts.append(fold("Noise while each profile was taken", _noise(comparison)))
    return Section("environment", "Environment and noise", join(parts))


def _noise(comparison: Comparison) -> Markup:
    sweep = comparison.profiles.sweep
    names = list(dict.fromkeys(name for profile in sweep for name, _ in profile.noise))
    columns = [
        Column("Model", numeric=False, first="ascending"),
        Column("Batch", first="ascending"),
        Column("Prompt", "tokens", first="ascending"),
    ]
    columns += [Column(*_NOISE.get(name, (name, None))) for name in names]
    columns.append(Column("What covers a difference", numeric=False, first=None))
    rows = []
    for profile in sweep:
        values = dict(profile.noise)
        reasons = [
            f"{what}: {ratio.why}"
            for what, ratio in (
                ("prefill", profile.prefill_ratio),
                ("decode", profile.decode_ratio),
            )
            if ratio is not None and ratio.covered and ratio.why
        ]
        rows.append(
            [
                named(comparison, profile.model),
                Cell(str(profile.batch), float(profile.batch)),
                Cell(f"{profile.prompt_tokens:,}", float(profile.prompt_tokens)),
                *(
                    Cell(digits(values[name]), values[name]) if name in values else ABSENT
                    for name in names
                ),
                Cell("; ".join(reasons) or "–"),
            ]
        )
    return table("noise", columns, rows, caption="Means over the rounds of each profile.")

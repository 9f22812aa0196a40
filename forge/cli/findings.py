"""What a check found, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from forge.cli.stack_text import stack_text
from forge.cli.tables import count_text, plural, size_text, table
from forge.cli.tokenizer_text import tokenizers_text

if TYPE_CHECKING:
    from forge.merge.check.preflight import CheckReport
    from forge.merge.check.report import ModelFacts


def report_text(report: CheckReport, *, width: int | None, all_tokenizers: bool = False) -> str:
    """Return a check's findings, models, stack, tokenizers and sizes.

    Args:
        report: The report.
        all_tokenizers: Whether to list of tokenizers what does not differ, too.
        width: Columns of the terminal; ``None`` wraps nothing.

    Returns:
        Several lines.
    """
    parts = [_models(report.models, width)]
    if report.plan is not None:
        parts.append(stack_text(report.plan, width=width))
    parts.append(_sizes(report))
    if report.tokenizers is not None:
        parts.append(tokenizers_text(report.tokenizers, is_whole=all_tokenizers, width=width))
    if report.findings:
        cells = [(item.level, item.code, item.message) for item in report.findings]
        parts.append(table(("LEVEL", "CODE", "FINDING"), cells, width=width))
    verdict = (
        f"{plural(len(report.errors), 'error')}, {plural(len(report.warnings), 'warning')}, "
        f"{plural(len(report.notices), 'notice')}: "
        + ("this recipe cannot be merged as it is." if report.errors else "ready to merge.")
    )
    return "\n\n".join([*filter(None, parts), verdict])


def _models(models: Sequence[ModelFacts], width: int | None) -> str:
    if not models:
        return ""
    heads = ("TYPE", "LAYERS", "TENSORS", "PARAMETERS", "DTYPES", "VOCABULARY", "MODEL")
    cells = [
        (
            facts.architecture or "?",
            "?" if facts.num_layers is None else str(facts.num_layers),
            f"{facts.num_tensors:,}",
            count_text(facts.num_parameters),
            ", ".join(facts.dtypes),
            ("?" if facts.vocab_rows is None else f"{facts.vocab_rows:,}")
            + (", tied" if facts.tied else ""),
            facts.model + (f" at {facts.revision[:12]}" if facts.revision else ""),
        )
        for facts in models
    ]
    return table(heads, cells, right=heads[1:4], width=width)


def _sizes(report: CheckReport) -> str:
    free = ""
    if report.free_disk_bytes is not None:
        free = f" ({size_text(report.free_disk_bytes)} free)"
    return (
        f"reads {size_text(report.input_bytes)}, writes {size_text(report.output_bytes)}{free}, "
        f"needs about {size_text(report.memory_bytes)} of memory"
    )

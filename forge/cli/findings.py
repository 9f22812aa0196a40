"""What a check found, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forge.cli.tables import count_text, plural, size_text, table

if TYPE_CHECKING:
    from forge.merge.check import CheckReport


def report_text(report: CheckReport, *, width: int | None) -> str:
    """Return a check's findings, models and sizes.

    Args:
        report: The report.
        width: Columns of the terminal; ``None`` wraps nothing.

    Returns:
        Several lines.
    """
    record = report.as_json()
    parts = [_models(record.get("models"), width), _sizes(report)]
    if report.findings:
        cells = [(item.level, item.code, item.message) for item in report.findings]
        parts.append(table(("LEVEL", "CODE", "FINDING"), cells, width=width))
    verdict = (
        f"{plural(len(report.errors), 'error')}, {plural(len(report.warnings), 'warning')}, "
        f"{plural(len(report.notices), 'notice')}: "
        + ("this recipe cannot be merged as it is." if report.errors else "ready to merge.")
    )
    return "\n\n".join([*filter(None, parts), verdict])


def _models(models: object, width: int | None) -> str:
    if not isinstance(models, list) or not models:
        return ""
    heads = ("TYPE", "LAYERS", "TENSORS", "PARAMETERS", "DTYPES", "VOCABULARY", "MODEL")
    cells = []
    for model in models:
        dtypes = model.get("dtypes", ())
        cells.append(
            (
                str(model.get("architecture", "?")),
                str(model.get("num_layers", "?")),
                f"{model.get('num_tensors', 0):,}",
                count_text(model.get("num_parameters", 0)),
                ", ".join(dtypes) if isinstance(dtypes, (list, tuple)) else str(dtypes),
                str(model.get("vocab_rows") or "?") + (" tied" if model.get("tied") else ""),
                str(model.get("name", "?")),
            )
        )
    return table(heads, cells, right=("LAYERS", "TENSORS", "PARAMETERS"), width=width)


def _sizes(report: CheckReport) -> str:
    free = ""
    if report.free_disk_bytes is not None:
        free = f" ({size_text(report.free_disk_bytes)} free)"
    return (
        f"reads {size_text(report.input_bytes)}, writes {size_text(report.output_bytes)}{free}, "
        f"needs about {size_text(report.memory_bytes)} of memory"
    )

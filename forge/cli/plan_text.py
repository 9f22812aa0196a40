"""A merge plan as text: what is read, what is computed where, what is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from forge.checkpoints.layout import lay_out
from forge.cli.tables import count_text, plural, size_text, table

if TYPE_CHECKING:
    from forge.merge.plan import MergeJob, MergePlan
    from forge.recipes.merge_recipe import MergeRecipe


def plan_text(recipe: MergeRecipe, plan: MergePlan, out: Path, *, width: int | None) -> str:
    """Return a plan for reading.

    Args:
        recipe: What was planned.
        plan: Its plan.
        out: Where the result would go.
        width: Columns of the terminal; ``None`` wraps nothing.

    Returns:
        Several lines: sizes, a table of runs of layers with their parameters, and the files.
    """
    layout = lay_out(plan.tensors, max_shard_bytes=recipe.max_shard_bytes)
    shards = [
        (shard.file, f"{len(shard.tensors):,}", size_text(shard.file_bytes)) for shard in layout
    ]
    head = "\n".join(
        [
            f"{recipe.merge_method} → {out}",
            f"  {plan.architecture.name}, {plural(len(plan.layers), 'layer')}, "
            f"{plural(len(plan.jobs), 'tensor')}, {count_text(plan.num_parameters)} parameters, "
            f"{plan.dtype or 'dtype of the inputs'}",
            f"  reads {size_text(plan.input_bytes)}, writes {size_text(plan.output_bytes)}"
            + (f", seed {recipe.seed}" if recipe.method.random else ""),
            f"  configuration and tokenizer files of {plan.donor}",
        ]
    )
    names = {model: f"m{number}" for number, model in enumerate(_models(plan.jobs), start=1)}
    legend = "\n".join(f"  {short} = {model}" for model, short in names.items())
    rows = table(
        ("TENSORS", "COUNT", "METHOD", "PARAMETERS"),
        [*_rows(plan.jobs, names)],
        right=("COUNT",),
        width=width,
    )
    files = table(("FILE", "TENSORS", "BYTES"), shards, right=("TENSORS", "BYTES"), width=width)
    return "\n\n".join([head, legend, rows, files, "Nothing was written (dry run)."])


def _models(jobs: Sequence[MergeJob]) -> list[str]:
    return list(dict.fromkeys(str(item.model) for job in jobs for item in job.inputs))


def _rows(jobs: Sequence[MergeJob], names: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    """Compress the jobs: neighbouring layers whose parameters are the same share a row."""
    groups: list[tuple[str, list[MergeJob]]] = []
    for job in jobs:
        place = "outside the layers" if job.layer is None else f"layer {job.layer}"
        if groups and groups[-1][0] == place:
            groups[-1][1].append(job)
        else:
            groups.append((place, [job]))
    rows: list[tuple[str, str, str, str, int | None, int | None]] = []
    for place, members in groups:
        layer = members[0].layer
        by_values: dict[tuple[str, str], int] = {}
        for job in members:
            key = (job.method, _parameters(job, names))
            by_values[key] = by_values.get(key, 0) + 1
        first = True
        for (method, parameters), count in by_values.items():
            rows.append((place if first else "", str(count), method, parameters, layer, layer))
            first = False
    return _joined(rows)


def _joined(
    rows: list[tuple[str, str, str, str, int | None, int | None]],
) -> list[tuple[str, str, str, str]]:
    """Join the blocks of consecutive layers whose rows are equal."""
    blocks: list[list[tuple[str, str, str, str, int | None, int | None]]] = []
    for row in rows:
        if row[0]:
            blocks.append([row])
        else:
            blocks[-1].append(row)
    result: list[tuple[str, str, str, str]] = []
    start = 0
    while start < len(blocks):
        end = start + 1
        content = [row[1:4] for row in blocks[start]]
        is_layer = blocks[start][0][4] is not None
        while (
            is_layer
            and end < len(blocks)
            and blocks[end][0][4] is not None
            and [row[1:4] for row in blocks[end]] == content
        ):
            end += 1
        place = blocks[start][0][0]
        if end - start > 1:
            place = f"layers {blocks[start][0][4]}-{blocks[end - 1][0][4]}"
        for number, (count, method, parameters) in enumerate(content):
            each = f"{int(count):,}" if end - start == 1 else f"{end - start} × {count}"
            result.append((place if number == 0 else "", each, method, parameters))
        start = end
    return result


def _parameters(job: MergeJob, names: Mapping[str, str]) -> str:
    parts = [f"{name}={_value(value)}" for name, value in job.values.items()]
    if job.has_base:
        parts.append(f"base={names[str(job.inputs[0].model)]}")
    for item, parameters in zip(job.inputs[job.has_base :], job.models, strict=True):
        inner = ", ".join(f"{name}={_value(value)}" for name, value in parameters.items())
        parts.append(f"{names[str(item.model)]}({inner})" if inner else names[str(item.model)])
    return " ".join(parts)


def _value(value: float | bool | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else f"{value:.4g}"

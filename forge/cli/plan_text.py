"""A merge plan as text: what is read, what is computed where, what is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forge.checkpoints.layout import lay_out
from forge.cli.stack_text import stack_text
from forge.cli.tables import count_text, duration_text, plural, size_text, table
from forge.merge.plan import CARRIED, COPIES, IDENTICAL

if TYPE_CHECKING:
    from forge.merge.check.report import CheckReport
    from forge.merge.plan import MergeJob, MergePlan
    from forge.recipes.merge_recipe import MergeRecipe

_MOST_NAMES: Final = 3
_BYTES_PER_S: Final = 1e9


@dataclass(frozen=True, slots=True)
class _Row:
    """Tensors of one layer that share method and parameters."""

    count: int
    parameters: str
    names: str


@dataclass(frozen=True, slots=True)
class _Block:
    """A layer, or the tensors before or behind the layers."""

    layer: int | None
    rows: tuple[_Row, ...]


def plan_text(
    recipe: MergeRecipe,
    plan: MergePlan,
    report: CheckReport,
    out: Path,
    *,
    width: int | None,
    title: str | None = None,
) -> str:
    """Return a plan for reading.

    Args:
        recipe: What was planned.
        plan: Its plan.
        report: What the check that made the plan found.
        out: Where the result would go.
        width: Columns of the terminal; ``None`` wraps nothing.
        title: What is done, where it is not the recipe's methods.

    Returns:
        Several lines: sizes, models, a table of runs of layers with their parameters, the files.
    """
    models = dict.fromkeys(str(item.model) for job in plan.jobs for item in job.inputs)
    shorts = {model: f"m{number}" for number, model in enumerate(models, start=1)}
    constants = _constants(plan.jobs)
    moved = plan.input_bytes + plan.output_bytes
    lines = [
        f"{title or ' + '.join(row.name for row in recipe.methods)} → {out}",
        f"  {plan.architecture.name}, {plural(len(plan.layers), 'layer')}, "
        f"{plural(len(plan.jobs), 'tensor')}, {count_text(plan.num_parameters)} parameters, "
        f"{plan.dtype or 'each tensor in the dtype of its inputs'}",
        f"  reads {size_text(plan.input_bytes)}, writes {size_text(plan.output_bytes)}"
        + (f", seed {recipe.seed}" if any(row.random for row in recipe.methods) else ""),
        f"  needs about {size_text(report.memory_bytes)} of memory, and "
        f"{duration_text(moved / _BYTES_PER_S)} where a disk moves 1 GB/s",
        f"  configuration from {plan.donor}",
    ]
    if constants:
        lines.append(f"  everywhere {_joined(constants)}")
    # The one error that leaves a plan is a disk without the space, and a plan may be meant for
    # another machine.
    lines += [
        f"  {item.level.replace('error', 'warning')}: {item.message}" for item in report.findings
    ]
    stages = {name: _stage(stage) for name, stage in recipe.stages}
    lines += ["", *(f"  {short} = {_named(model, stages)}" for model, short in shorts.items())]
    lines += [f"  {name}, {stages[name]}" for name in stages if name not in shorts]
    return "\n\n".join(
        [
            "\n".join(lines),
            *filter(None, [stack_text(plan, width=width)]),
            _jobs(plan.jobs, shorts, constants, width),
            _files(recipe, plan, width),
            "Nothing was written (dry run).",
        ]
    )


def _stage(recipe: MergeRecipe) -> str:
    """Say of what a stage is made."""
    listed = ", ".join(str(model) for model in recipe.references())
    methods = " + ".join(row.name for row in recipe.methods)
    return f"a stage that is computed while it is read: {methods} of {listed}"


def _named(model: str, stages: Mapping[str, str]) -> str:
    return f"{model}, {stages[model]}" if model in stages else model


def _constants(jobs: Sequence[MergeJob]) -> dict[str, float | bool | str]:
    """Return the global parameters that every merged tensor shares."""
    merged = [job.values for job in jobs if job.values]
    if not merged:
        return {}
    return {
        name: value
        for name, value in merged[0].items()
        if all(values.get(name) == value for values in merged)
    }


def _jobs(
    jobs: Sequence[MergeJob],
    shorts: Mapping[str, str],
    constants: Mapping[str, object],
    width: int | None,
) -> str:
    # With slices of several methods, each row says its own.
    named = len({job.method for job in jobs} - COPIES) > 1
    blocks = [
        _block(layer, list(members), shorts, constants, named=named)
        for layer, members in groupby(jobs, key=lambda job: job.layer)
    ]
    cells: list[tuple[str, str, str, str]] = []
    for same in _runs(blocks):
        first, last = same[0].layer, same[-1].layer
        place = "outside" if first is None else f"layer {first}"
        if len(same) > 1:
            place = f"layers {first}-{last}"
        for number, row in enumerate(same[0].rows):
            count = f"{row.count:,}" if len(same) == 1 else f"{len(same)} × {row.count:,}"
            cells.append((place if number == 0 else "", count, row.parameters, row.names))
    heads = ("PLACE", "COUNT", "MERGED WITH", "TENSORS")
    return table(heads, cells, right=("COUNT",), width=width)


def _runs(blocks: Sequence[_Block]) -> list[list[_Block]]:
    """Gather neighbouring layers whose rows are equal."""
    runs: list[list[_Block]] = []
    for block in blocks:
        before = runs[-1][-1] if runs else None
        if before is not None and before.layer is not None and before.rows == block.rows:
            runs[-1].append(block)
        else:
            runs.append([block])
    return runs


def _block(
    layer: int | None,
    jobs: Sequence[MergeJob],
    shorts: Mapping[str, str],
    constants: Mapping[str, object],
    *,
    named: bool,
) -> _Block:
    by_parameters: dict[str, list[str]] = {}
    for job in jobs:
        text = _parameters(job, shorts, constants, named=named)
        by_parameters.setdefault(text, []).append(_short_name(job))
    is_whole = layer is not None and len(by_parameters) == 1
    rows = tuple(
        _Row(len(names), text, "all" if is_whole else _some(names))
        for text, names in by_parameters.items()
    )
    return _Block(layer, rows)


def _short_name(job: MergeJob) -> str:
    if job.layer is None:
        return job.output
    return job.output.partition(f".{job.layer}.")[2].removesuffix(".weight")


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _parameters(
    job: MergeJob, shorts: Mapping[str, str], constants: Mapping[str, object], *, named: bool
) -> str:
    varying = {name: value for name, value in job.values.items() if name not in constants}
    parts = [_joined(varying)] if varying else []
    if job.method == IDENTICAL:
        parts.append("copied, must be identical in")
    elif job.method == CARRIED:
        parts.append("carried over from the first of")
    elif named:
        parts.insert(0, job.method)
    if job.has_base:
        parts.append(shorts[str(job.inputs[0].model)])
    for item, parameters in zip(job.inputs[job.has_base :], job.models, strict=True):
        inner = _joined(parameters)
        short = shorts[str(item.model)]
        parts.append(f"{short}({inner})" if inner else short)
    return " ".join(parts)


def _joined(parameters: Mapping[str, float | bool | str]) -> str:
    return " ".join(f"{name}={_value(value)}" for name, value in parameters.items())


def _value(value: float | bool | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else f"{value:.4g}"


def _files(recipe: MergeRecipe, plan: MergePlan, width: int | None) -> str:
    layout = lay_out(plan.tensors, max_shard_bytes=recipe.max_shard_bytes)
    cells = [
        (shard.file, f"{len(shard.tensors):,}", size_text(shard.file_bytes)) for shard in layout
    ]
    heads = ("FILE", "TENSORS", "BYTES")
    return table(heads, cells, right=heads[1:], width=width)

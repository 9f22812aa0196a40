"""A quantization plan as text: what becomes what, and what it costs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forge.cli.tables import count_text, duration_text, plural, size_text, table

if TYPE_CHECKING:
    from forge.quantize.plan import QuantizePlan
    from forge.recipes.quantize_recipe import QuantizeRecipe
    from forge.recipes.quantize_types import CalibrationRecipe


@dataclass(slots=True)
class _Group:
    """Tensors of one role in all layers that share what becomes of them."""

    num_tensors: int
    before: int
    after: list[int]


def quantize_plan_text(
    recipe: QuantizeRecipe,
    plan: QuantizePlan,
    out: Path,
    *,
    seconds: float,
    threads: int | None,
    width: int | None,
) -> str:
    """Return a plan for reading.

    Args:
        recipe: What was planned.
        plan: Its plan.
        out: Where the result would go.
        seconds: Time expected.
        threads: Worker threads, or ``None`` for all cores.
        width: Columns of the terminal; ``None`` wraps nothing.

    Returns:
        Several lines: sizes, a table of what becomes what, a table of the outputs.
    """
    share = plan.num_quantized / max(1, plan.num_parameters)
    cores = threads or len(os.sched_getaffinity(0))
    lines = [
        f"{recipe.method} → {out}",
        f"  {recipe.model}: {plan.architecture.name}, {count_text(plan.num_parameters)} "
        f"parameters, {share:.0%} of them in {plural(len(plan.linears), 'linear layer')} to "
        "quantize",
        f"  reads {size_text(plan.input_bytes)}, writes {size_text(plan.output_bytes)}",
        f"  needs about {size_text(plan.memory_bytes(threads))} of memory and, by rates measured "
        f"elsewhere, {duration_text(seconds)} on {plural(cores, 'idle core')}",
    ]
    if recipe.calibration is not None:
        lines.append(f"  calibrates on {_calibration(recipe.calibration)}")
    lines += [f"  notice: {notice}" for notice in (*recipe.notices, *plan.notices)]
    return "\n\n".join(
        ["\n".join(lines), _changes(plan), _outputs(plan, out, width),
         "Nothing was written (dry run)."]
    )  # fmt: skip


def _calibration(recipe: CalibrationRecipe) -> str:
    size = f"{recipe.samples} × {recipe.tokens} = {recipe.num_tokens:,} tokens"
    if recipe.source == "tokens":
        return f"the tokens of {recipe.path}"
    if recipe.source != "self":
        return f"{size} of {recipe.path}"
    prompts = recipe.path or (plural(len(recipe.prompts), "prompt") if recipe.prompts else "")
    return f"{size} that the model itself writes" + (f", after {prompts}" if prompts else "")


def _changes(plan: QuantizePlan) -> str:
    groups: dict[tuple[str, str], _Group] = {}
    by_tensor = {linear.tensor: linear for linear in plan.linears}
    sizes = [{row.name: row.nbytes for row in output.tensors} for output in plan.outputs]
    for name, info in plan.sources.items():
        linear = by_tensor.get(name)
        becomes = "codes" if linear is not None else f"stays {plan.dtypes[name]}"
        key = (_role(name, plan.architecture.layer_of(name)), becomes)
        group = groups.setdefault(key, _Group(0, 0, [0] * len(plan.outputs)))
        group.num_tensors += 1
        group.before += info.nbytes
        for index, output in enumerate(plan.outputs):
            parts = (name,) if linear is None else output.names_of(linear)
            group.after[index] += sum(sizes[index][part] for part in parts)
    heads = ["TENSORS", "COUNT", "BECOMES", "BEFORE"]
    numbers = [heads[1], heads[3], *(output.variant.format for output in plan.outputs)]
    cells = [
        (role, f"{group.num_tensors:,}", becomes, size_text(group.before),
         *(size_text(size) for size in group.after))
        for (role, becomes), group in groups.items()
    ]  # fmt: skip
    return table([*heads, *numbers[2:]], cells, right=numbers)


def _role(name: str, layer: int | None) -> str:
    """Return a tensor's name with stars for the numbers of its layer and its expert."""
    parts = name.removesuffix(".weight").split(".")
    if layer is None:
        return ".".join(parts)
    return ".".join("*" if part.isdecimal() else part for part in parts)


def _outputs(plan: QuantizePlan, out: Path, width: int | None) -> str:
    cells = []
    for output in plan.outputs:
        variant = output.variant
        groups = f"groups of {variant.group_size}" if variant.group_size else "rows"
        scheme = f"{variant.bits} bits, {groups}" + (", double" if variant.double_quant else "")
        cells.append(
            (
                variant.format,
                scheme,
                f"{8 * output.output_bytes / max(1, plan.num_parameters):.2f}",
                size_text(output.output_bytes),
                f"{output.output_bytes / max(1, plan.input_bytes):.0%}",
                str(out if output.folder is None else out / output.folder),
            )
        )
    heads = ("FORMAT", "SCHEME", "BITS/WEIGHT", "BYTES", "OF SOURCE", "FOLDER")
    return table(heads, cells, right=heads[2:5], width=width)

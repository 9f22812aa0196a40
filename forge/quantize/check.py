"""Say what a quantization would run into, before any weight is read or downloaded.

Everything here looks at headers, configuration and the recipe alone. All findings are reported
at once; what a finding makes impossible to judge is left out.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from forge.architectures.blocks import Linear, is_kept, quantizable_linears
from forge.architectures.names import architecture_of, layers_present
from forge.architectures.table import FURTHER_LAYERS, Architecture
from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.checkpoints.grid import grid_warning
from forge.checkpoints.partial import PARTIAL_SUFFIX
from forge.checkpoints.replace import MANIFEST_FILE, check_replaceable
from forge.core.catalog import did_you_mean
from forge.core.errors import (
    CheckpointError,
    ForgeError,
    IncompatibleError,
    MissingExtraError,
    OutputError,
    Problem,
    RecipeError,
)
from forge.formats.catalog import format_row, load_format
from forge.formats.contract import Scheme
from forge.quantize.awq.plan import planned_changes
from forge.quantize.calibration.tokenizer import check_tokenizer
from forge.quantize.plan import QuantizePlan, build_plan, output_folders
from forge.recipes.quantize_types import CalibrationRecipe, QuantizeRecipe

_MOST_EXAMPLES: Final = 3


def check_recipe(
    recipe: QuantizeRecipe,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    must_fit: bool = True,
) -> QuantizePlan:
    """Check and plan a quantization without reading or downloading a weight.

    Args:
        recipe: What to make.
        out: Where the result would go.
        overwrite: Whether an output of forge that is there may be replaced.
        must_fit: Whether a disk that is too small is an error; else it is a notice of the plan,
            which may be meant for another machine.

    Returns:
        The plan.

    Raises:
        ForgeError: As ``check_quantize``; or the output's place is taken.
    """
    if recipe.model is None:
        raise RecipeError([Problem("No model is named. Write forge quantize MODEL.", recipe.file)])
    for folder in () if out is None else output_folders(recipe, out):
        if not (folder / MANIFEST_FILE).exists():
            # Of an output of forge, the runner tells whether it is the one that is asked for.
            check_replaceable(folder, overwrite=overwrite)
    checkpoint = open_checkpoint(recipe.model, weights=False)
    try:
        plan = check_quantize(recipe, checkpoint, out=out if must_fit else None)
    finally:
        checkpoint.source.close()
    shortage = None if must_fit or out is None else _shortage(out, plan)
    return plan if shortage is None else replace(plan, notices=(*plan.notices, shortage))


def check_quantize(
    recipe: QuantizeRecipe, checkpoint: Checkpoint, *, out: Path | None = None
) -> QuantizePlan:
    """Check a quantization and plan it.

    Args:
        recipe: What to make.
        checkpoint: The model; its weights may still be on the Hub.
        out: Where the result would go, to judge the space there.

    Returns:
        The plan.

    Raises:
        IncompatibleError: It cannot be done as asked; the message lists every reason.
        MissingExtraError: A package is not installed.
        ForgeError: The checkpoint is damaged, or the disk too small.
    """
    _check_packages(recipe)
    source = checkpoint.source
    infos = {name: source.info(name) for name in source.names()}
    architecture = architecture_of(checkpoint.config, tensor_names=infos)
    _check_layers(checkpoint, architecture)
    shapes = {name: info.shape for name, info in infos.items()}
    linears = quantizable_linears(architecture, shapes)
    chosen = [linear for linear in linears if not is_kept(linear.module, recipe.keep)]
    problems = [*_keep_problems(recipe, linears), *_group_problems(recipe, chosen)]
    problems += _device_problems(recipe)
    if recipe.calibration is not None:
        problems += _calibration_problems(recipe.calibration, checkpoint, architecture)
    if problems:
        raise IncompatibleError("\n".join(problems))
    if recipe.calibration is not None:
        # What could not be folded is known from the headers, too.
        planned_changes(checkpoint, keep=recipe.keep)
    plan = build_plan(recipe, checkpoint)
    warning = grid_warning(checkpoint)
    if warning is not None:
        plan = replace(plan, notices=(*plan.notices, warning))
    shortage = None if out is None else _shortage(out, plan)
    if shortage is not None:
        # Before the calibration; the sink judges a resumed run.
        raise OutputError(shortage)
    return plan


def _check_packages(recipe: QuantizeRecipe) -> None:
    if recipe.calibration is None and recipe.device == "cpu":
        return
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"'{recipe.method}' watches the model at work, which needs {package}: "
                "pip install 'forge[quantize]'."
            )


def _check_layers(checkpoint: Checkpoint, architecture: Architecture) -> None:
    present = layers_present(architecture, checkpoint.source.names())
    stated = architecture.num_layers(checkpoint.config)
    missing = sorted(set(range(stated)) - set(present))
    promised = architecture.text_config(checkpoint.config).get(FURTHER_LAYERS)
    if promised and not missing and len(present) > stated:
        count = len(present) - stated
        raise IncompatibleError(
            f"'{checkpoint.reference}' holds {count} layer{'s' if count > 1 else ''} behind its "
            f"last, to predict further tokens ({FURTHER_LAYERS}), and forge quantizes none. A "
            "merge leaves them out: merge_method passthrough with this model alone."
        )
    if missing or len(present) > stated:
        fault = f"no layer {missing[0]}" if missing else f"{len(present)}"
        raise CheckpointError(
            f"config.json of '{checkpoint.reference}' states {stated} layers, but its files hold "
            f"{fault}. The checkpoint is incomplete, or its config belongs to another model."
        )


def _keep_problems(recipe: QuantizeRecipe, linears: Sequence[Linear]) -> list[str]:
    names = [linear.module for linear in linears]
    parts = sorted({part for name in names for part in name.split(".") if not part.isdecimal()})
    return [
        f"'keep: {word}' matches none of the {len(names)} linear layers."
        f"{did_you_mean(word, parts)} Write parts of names between dots, such as '{parts[0]}'."
        for word in recipe.keep
        if names and not any(is_kept(name, (word,)) for name in names)
    ]


def _group_problems(recipe: QuantizeRecipe, linears: Sequence[Linear]) -> list[str]:
    """Name layers that a format cannot hold in the groups asked for, and the groups that do."""
    problems = []
    for variant in recipe.variants:
        row = format_row(variant.format)
        if row.kind != "codes":
            continue
        wrong = _unfit(variant.format, Scheme(variant.bits, variant.group_size), linears)
        if not wrong:
            continue
        linear, reason = wrong[0]
        fitting = [
            size
            for size in row.group_sizes
            if not _unfit(variant.format, Scheme(variant.bits, size), linears)
        ]
        others = f" (and {len(wrong) - 1} more layers)" if len(wrong) > 1 else ""
        problems.append(f"'{linear.module}'{others}: {reason} {_way_out(fitting, wrong)}")
    return problems


def _unfit(name: str, scheme: Scheme, linears: Sequence[Linear]) -> list[tuple[Linear, str]]:
    """Return the layers that a format does not hold, each with the format's own words."""
    layout = load_format(name)
    verdicts: dict[tuple[int, int], str | None] = {}
    for linear in linears:
        if linear.shape_OI not in verdicts:
            try:
                layout.parts(linear.shape_OI, scheme)
                verdicts[linear.shape_OI] = None
            except IncompatibleError as error:
                verdicts[linear.shape_OI] = str(error)
    judged = [(linear, verdicts[linear.shape_OI]) for linear in linears]
    return [(linear, reason) for linear, reason in judged if reason is not None]


def _way_out(fitting: Sequence[int], wrong: Sequence[tuple[Linear, str]]) -> str:
    if fitting:
        listed = " or ".join(str(size) for size in fitting)
        return f"Groups of {listed} divide every layer: --group-size {fitting[-1]}."
    kinds = list(dict.fromkeys(linear.module.rpartition(".")[2] for linear, _ in wrong))
    return (
        "No group size of this format divides every layer. Leave out what does not fit: "
        f"--keep {','.join(kinds[:_MOST_EXAMPLES])}; or take --method bnb, which needs no groups."
    )


def _device_problems(recipe: QuantizeRecipe) -> list[str]:
    if recipe.device == "cpu":
        return []
    import torch

    number = int(recipe.device.partition(":")[2] or 0)
    count = torch.cuda.device_count()
    if number < count:
        return []
    found = f"has {count} of them" if count else "has none that torch can use"
    return [f"Device '{recipe.device}' is asked for, but this machine {found}. Take --device cpu."]


def _calibration_problems(
    recipe: CalibrationRecipe, checkpoint: Checkpoint, architecture: Architecture
) -> list[str]:
    problems = []
    longest = architecture.num_positions(checkpoint.config)
    if longest is not None and recipe.source != "tokens" and recipe.tokens > longest:
        problems.append(
            f"Sequences of {recipe.tokens} tokens are longer than the {longest} positions of "
            f"'{checkpoint.reference}'. Ask for --calibration-tokens {longest} or fewer."
        )
    if recipe.path is not None and recipe.source != "hub":
        problems += _file_problems(Path(recipe.path), recipe)
    if recipe.source != "tokens":
        try:
            check_tokenizer(checkpoint, chat_template=recipe.chat_template)
        except ForgeError as error:
            problems.append(str(error))
    if recipe.source == "self":
        problems += _memory_problems(checkpoint)
    return problems


def _file_problems(path: Path, recipe: CalibrationRecipe) -> list[str]:
    if not path.is_file():
        fault = "is not a file" if path.exists() else "does not exist"
        return [f"The calibration file '{path}' {fault}."]
    size = path.stat().st_size
    if size == 0:
        return [f"The calibration file '{path}' is empty."]
    # A token takes a byte at least, so fewer bytes than tokens can never do.
    if recipe.source in ("text", "jsonl") and size < recipe.num_tokens:
        possible = size // recipe.tokens
        return [
            f"The calibration file '{path}' has {size:,} bytes, too few for {recipe.samples} "
            f"sequences of {recipe.tokens} tokens ({recipe.num_tokens:,}). Add text, or ask for "
            f"less: --calibration-samples {max(1, possible // 4)} or --calibration-tokens."
        ]
    return []


def _memory_problems(checkpoint: Checkpoint) -> list[str]:
    """A model that writes reads all its weights for every token; from a disk that takes days."""
    needed = sum(checkpoint.source.info(name).nbytes for name in checkpoint.source.names())
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed <= present:
        return []
    return [
        f"'{checkpoint.reference}' has {needed / 1e9:.0f} GB of weights and this machine "
        f"{present / 1e9:.0f} GB of memory, too little to let it write its own calibration set. "
        "Quantizing needs far less: give text, --calibration FILE."
    ]


def _shortage(out: Path, plan: QuantizePlan) -> str | None:
    """Return what to say of a disk that is too small for an output that is not begun."""
    folder = out.absolute()
    if folder.with_name(folder.name + PARTIAL_SUFFIX).exists() or folder.exists():
        return None
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if plan.output_bytes <= free:
        return None
    return (
        f"'{folder}' has {free / 1e9:.2f} GB free; the output needs "
        f"{plan.output_bytes / 1e9:.2f} GB. Free some space or choose another folder."
    )

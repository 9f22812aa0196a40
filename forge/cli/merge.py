"""``forge merge``: run a recipe, or print its plan."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from forge import api
from forge.cli import console
from forge.cli.options import RESUMABLE_KEY, debug_option, json_option
from forge.cli.progress import open_progress
from forge.cli.tables import duration_text, plural, size_text
from forge.core.errors import IncompatibleError

if TYPE_CHECKING:
    from forge.merge.run import MergeResult
    from forge.recipes.merge_recipe import MergeRecipe
    from forge.recipes.moe_types import MoeRecipe

_OUTPUTS: Final = Path("merges")
_MANY_OBJECTS: Final = 200_000
"""How many new objects Python waits for before it searches them for cycles. Importing and planning
make many that stay, and hardly a cycle; by default it would search them a hundred times."""
_UNSAFE: Final = re.compile(r"[^\w.-]+", re.ASCII)


def read_seed(ctx: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Read the value of ``--seed``; for click."""
    # Not click's own range: it would fill the help with a limit of 20 digits.
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 20 and int(text) < 2**64):
        raise click.BadParameter(f"{text!r} is not a whole number from 0 to 2^64 - 1.")
    return int(text)


@click.command("merge")
@click.argument("config")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder to make.  [default: merges/NAME, after the recipe's name or file]",
)
@click.option(
    "--threads", metavar="N", type=click.IntRange(1, 1024), help="Worker threads.  [default: cores]"
)
@click.option(
    "--seed", callback=read_seed, metavar="N", help="Seed of random drops, not the recipe's."
)
@click.option("--max-shard-size", metavar="SIZE", help="Largest file to write, such as 5GB.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output of forge.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@click.option(
    "--engine",
    type=click.Choice(["forge", "mergekit"]),
    default="forge",
    show_default=True,
    help="mergekit runs the recipe through mergekit itself (an extra).",
)
@click.option("--quiet", "-q", is_flag=True, help="No progress and no notices.")
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    config: str,
    out: Path | None,
    threads: int | None,
    seed: int | None,
    max_shard_size: str | None,
    overwrite: bool,
    dry_run: bool,
    engine: api.Engine,
    quiet: bool,
    as_json: bool,
) -> None:
    """Merge checkpoints as a recipe says.

    CONFIG is a path, or a name under merge_configs/. The result appears at once when it is
    complete; a run that was stopped is resumed by the same command.
    """
    gc.set_threshold(_MANY_OBJECTS)
    recipe = api.load_recipe(config, seed=seed, max_shard_size=max_shard_size)
    target = out if out is not None else _OUTPUTS / default_name(recipe)
    if dry_run:
        _show_plan(recipe, target, as_json=as_json)
        return
    ctx.meta[RESUMABLE_KEY] = engine == "forge"
    progress = open_progress(quiet=quiet)
    try:
        result = api.merge(
            recipe, target, threads=threads, overwrite=overwrite, progress=progress, engine=engine
        )
    finally:
        progress.close()
    if as_json:
        console.result_json(merge_record(result))
    else:
        console.result(
            merge_summary(result, f"'forge inspect {result.out}' shows how the models met; ")
        )


def default_name(recipe: MergeRecipe | MoeRecipe) -> str:
    """Return the name of a recipe's output: its ``name``, or that of its file.

    Args:
        recipe: The recipe.

    Returns:
        A plain folder name of ASCII letters, digits, ``_``, ``.`` and ``-``.
    """
    stem = Path(recipe.file).stem if recipe.file else ""
    return _UNSAFE.sub("-", recipe.name or stem).strip("-.") or "merge"


def _show_plan(recipe: MergeRecipe, out: Path, *, as_json: bool) -> None:
    from forge.cli.plan_text import plan_text

    report = api.check(recipe, out=out)
    if report.plan is None:
        raise IncompatibleError("\n".join(finding.message for finding in report.errors))
    if as_json:
        found = report.as_json()
        needs = {key: found[key] for key in ("memory_bytes", "free_disk_bytes", "findings")}
        record = {"out": str(out), "recipe": recipe.resolved(), **needs, **report.plan.summary()}
        console.result_json(record)
    else:
        console.result(plan_text(recipe, report.plan, report, out, width=console.width()))


def merge_record(result: MergeResult) -> dict[str, object]:
    """Return what was made as plain JSON values.

    Args:
        result: The merge.
    """
    manifest = result.manifest
    return {
        "out": str(result.out),
        "seconds": round(result.seconds, 3),
        "num_tensors": result.num_tensors,
        "resumed_tensors": result.resumed_tensors,
        "content_digest": manifest.get("content_digest"),
        "notices": manifest.get("notices"),
        "files": manifest.get("files"),
    }


def merge_summary(result: MergeResult, advice: str = "") -> str:
    """Return what was made for reading.

    Args:
        result: The merge.
        advice: What to do next, before the advice to verify.
    """
    files = result.manifest.get("files")
    sizes = [entry["bytes"] for entry in files.values()] if isinstance(files, dict) else []
    resumed = f", {result.resumed_tensors:,} of them resumed" if result.resumed_tensors else ""
    return "\n".join(
        [
            f"{result.out}",
            f"  {plural(result.num_tensors, 'tensor')}{resumed}, {size_text(sum(sizes))} in "
            f"{plural(len(sizes), 'file')}, {duration_text(result.seconds)}",
            f"  {advice}'forge verify {result.out}' checks every byte.",
        ]
    )

"""``forge moe``: build a mixture of experts, or print its plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from forge import api
from forge.cli import console
from forge.cli.merge import default_name, merge_record, merge_summary, read_seed
from forge.cli.options import RESUMABLE_KEY, debug_option, json_option
from forge.cli.progress import open_progress
from forge.core.errors import IncompatibleError

if TYPE_CHECKING:
    from forge.recipes.moe_types import MoeRecipe

_OUTPUTS: Final = Path("merges")


@click.command("moe")
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
    "--seed", callback=read_seed, metavar="N", help="Seed of random routers, not the recipe's."
)
@click.option("--max-shard-size", metavar="SIZE", help="Largest file to write, such as 5GB.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output of forge.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
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
    quiet: bool,
    as_json: bool,
) -> None:
    """Build a mixture of experts of dense models.

    CONFIG is a recipe as mergekit-moe reads it: a path, or a name under merge_configs/. Attention,
    norms and embeddings are the base's, the experts' MLPs are copied, and routers are made from
    prompts. A run that was stopped is resumed by the same command.
    """
    recipe = api.load_moe_recipe(config, seed=seed, max_shard_size=max_shard_size)
    target = out if out is not None else _OUTPUTS / default_name(recipe)
    if dry_run:
        _show_plan(recipe, target, as_json=as_json)
        return
    ctx.meta[RESUMABLE_KEY] = True
    progress = open_progress(quiet=quiet)
    try:
        result = api.moe(recipe, target, threads=threads, overwrite=overwrite, progress=progress)
    finally:
        progress.close()
    if as_json:
        console.result_json(merge_record(result))
    else:
        console.result(merge_summary(result))


def _show_plan(recipe: MoeRecipe, out: Path, *, as_json: bool) -> None:
    from forge.cli.plan_text import plan_text
    from forge.merge.moe.plan import as_merge

    report = api.check(recipe, out=out)
    plan = report.plan
    if plan is None:
        raise IncompatibleError("\n".join(finding.message for finding in report.errors))
    if as_json:
        found = report.as_json()
        needs = {key: found[key] for key in ("memory_bytes", "free_disk_bytes", "findings")}
        record = {"out": str(out), "recipe": recipe.resolved(), **needs, **plan.summary()}
        console.result_json(record)
        return
    title = (
        f"{plan.architecture.name} of {len(recipe.experts)} experts, {recipe.experts_per_token} "
        f"for each token, gate_mode {recipe.gate_mode}"
    )
    text = plan_text(as_merge(recipe), plan, report, out, width=console.width(), title=title)
    console.result(text)

"""``forge check``: the findings, before any weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from forge import api
from forge.cli import console
from forge.cli.findings import report_text
from forge.cli.options import debug_option, json_option

if TYPE_CHECKING:
    from forge.recipes.merge_recipe import MergeRecipe
    from forge.recipes.moe_types import MoeRecipe


@click.command("check")
@click.argument("config")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where the result would go, to judge the space.",
)
@click.option(
    "--tokenizers",
    "all_tokenizers",
    is_flag=True,
    help="List all of the models' tokenizers, not only what differs.",
)
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context, config: str, out: Path | None, all_tokenizers: bool, as_json: bool
) -> None:
    """Say what a merge would run into, from headers and configs alone.

    CONFIG is a recipe of forge merge or forge moe: a path, or a name under merge_configs/. Models
    on the Hub are not downloaded. Exits with 2 when the merge would fail, with 0 when there are
    only warnings.
    """
    recipe: MergeRecipe | MoeRecipe
    recipe = api.load_moe_recipe(config) if api.is_moe(config) else api.load_recipe(config)
    report = api.check(recipe, out=out)
    if as_json:
        console.result_json({"recipe": recipe.resolved(), **report.as_json()})
    else:
        console.result(report_text(report, width=console.width(), all_tokenizers=all_tokenizers))
    ctx.exit(2 if report.errors else 0)

"""``forge diff``: how two checkpoints differ."""

from __future__ import annotations

import click

from forge import api
from forge.cli import console
from forge.cli.options import debug_option, json_option
from forge.cli.progress import open_progress


@click.command("diff")
@click.argument("a")
@click.argument("b")
@click.option(
    "--top",
    type=click.IntRange(0),
    metavar="N",
    default=10,
    show_default=True,
    help="How many of the most changed tensors to list.",
)
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@json_option
@debug_option
def command(a: str, b: str, top: int, quiet: bool, as_json: bool) -> None:
    """Say how two checkpoints differ, layer by layer.

    A and B are models as recipes name them: a folder, a Hub id, path@revision, model+lora.
    Relative differences are relative to A. Exits with 0 whether they differ or not.
    """
    progress = open_progress(quiet=quiet)
    try:
        difference = api.diff(a, b, progress=progress)
    finally:
        progress.close()
    if as_json:
        console.result_json(difference.as_json())
        return
    from forge.cli.difference_text import difference_text

    console.result(difference_text(difference, top=top, width=console.width()))

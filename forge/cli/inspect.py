"""``forge inspect``: what a checkpoint is, and how its models met."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from forge import api
from forge.cli import console
from forge.cli.options import debug_option, json_option
from forge.core.errors import OutputError

if TYPE_CHECKING:
    from forge.verify.inspection import Inspection


@click.command("inspect")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--layers", is_flag=True, help="List the tensors of every layer, too.")
@click.option(
    "--svg",
    "svg_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Draw the layers into this file.",
)
@json_option
@debug_option
def command(folder: Path, layers: bool, svg_file: Path | None, as_json: bool) -> None:
    """Show what a checkpoint is and how it was merged.

    DIR is a folder with safetensors weights. For an output of forge its manifest is shown:
    recipe, inputs, notices, and what the merge measured, layer by layer. No weights are read.
    """
    inspection = api.inspect(folder)
    if svg_file is not None:
        _draw(inspection, svg_file)
    if as_json:
        console.result_json(inspection.as_json())
        return
    from forge.cli.inspection_text import inspection_text

    console.result(inspection_text(inspection, list_tensors=layers, width=console.width()))


def _draw(inspection: Inspection, file: Path) -> None:
    from forge.cli.statistics_text import legend, panels
    from forge.cli.svg_chart import svg

    drawn = panels(inspection)
    if not drawn:
        raise OutputError(
            f"'{inspection.root}' has no statistics by layer to draw: it was not merged by forge, "
            "or its method measures none."
        )
    layers = [row.place.layer for row in inspection.statistics if row.place.layer >= 0]
    text = svg(inspection.root.resolve().name, drawn, layers=layers, legend=legend(inspection))
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"'{file}' cannot be written: {error.strerror}.") from error

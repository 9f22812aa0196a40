"""``forge verify``: every byte against the manifest, and what a quantized model's tensors mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from forge import api
from forge.cli import console
from forge.cli.options import debug_option, json_option
from forge.cli.progress import open_progress
from forge.cli.tables import plural, size_text
from forge.core.errors import VerificationError

if TYPE_CHECKING:
    from forge.verify.verification import Verification


@click.command("verify")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--against", metavar="SOURCE", help="What a quantized DIR was made from: a folder or a Hub id."
)
@click.option("--quick", is_flag=True, help="Load no model: no generation, no predictions.")
@click.option(
    "--tokens",
    metavar="N",
    type=click.IntRange(2, 1 << 20),
    help="Held-out tokens to compare predictions on.  [default: 4096]",
)
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    folder: Path,
    against: str | None,
    quick: bool,
    tokens: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Check a checkpoint against its manifest, and a quantized one against its source.

    DIR is an output of forge. Hashes of all files and tensors are compared, and missing and
    additional files are named. Hidden files are not looked at. A quantized DIR is unpacked and
    packed again, each layer's error is measured, a fresh process loads it and lets it write, and
    its predictions are compared with those of SOURCE. Exits with 1 when anything is wrong.
    """
    progress = open_progress(quiet=quiet)
    try:
        found = api.verify(folder, against=against, quick=quick, tokens=tokens, progress=progress)
    finally:
        progress.close()
    if as_json:
        console.result_json(found.as_json())
    else:
        _show(folder, found)
    ctx.exit(0 if found.ok else VerificationError.exit_code)


def _show(folder: Path, found: Verification) -> None:
    files = found.files
    if not files.ok:
        console.result("\n".join(item.message for item in files.differences))
        console.error(
            f"{folder} is not what its manifest says: "
            f"{plural(len(files.differences), 'difference')}."
        )
        return
    console.result(
        f"{folder} is what its manifest says: {plural(files.num_files, 'file')}, "
        f"{plural(files.num_tensors, 'tensor')}, {size_text(files.num_bytes)}.\n"
        f"content {files.content_digest}"
    )
    if found.quantized is None:
        return
    from forge.cli.quantized_text import quantized_text

    console.result("\n" + quantized_text(found.quantized, width=console.width()))
    if not found.quantized.ok:
        console.error(f"{folder}: {plural(len(found.quantized.findings), 'fault')}.")

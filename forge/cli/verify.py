"""``forge verify``: every byte against the manifest."""

from __future__ import annotations

from pathlib import Path

import click

from forge import api
from forge.cli import console
from forge.cli.options import debug_option, json_option
from forge.cli.progress import open_progress
from forge.cli.tables import plural, size_text
from forge.core.errors import VerificationError


@click.command("verify")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@json_option
@debug_option
@click.pass_context
def command(ctx: click.Context, folder: Path, quiet: bool, as_json: bool) -> None:
    """Check every byte of a checkpoint against its manifest.

    DIR is an output of forge. Hashes of all files and tensors are compared, and missing and
    additional files are named. Hidden files are not looked at. Exits with 1 when anything
    differs.
    """
    progress = open_progress(quiet=quiet)
    try:
        report = api.verify(folder, progress=progress)
    finally:
        progress.close()
    if as_json:
        console.result_json(report.as_json())
    elif report.ok:
        console.result(
            f"{folder} is what its manifest says: {plural(report.num_files, 'file')}, "
            f"{plural(report.num_tensors, 'tensor')}, {size_text(report.num_bytes)}.\n"
            f"content {report.content_digest}"
        )
    else:
        console.result("\n".join(item.message for item in report.differences))
        console.error(
            f"{folder} is not what its manifest says: "
            f"{plural(len(report.differences), 'difference')}."
        )
    ctx.exit(0 if report.ok else VerificationError.exit_code)

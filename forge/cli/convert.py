"""``forge convert``: another layout for the same codes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from forge.cli import console
from forge.cli.options import RESUMABLE_KEY, debug_option, json_option
from forge.cli.progress import open_progress
from forge.cli.tables import duration_text, plural, size_text

if TYPE_CHECKING:
    from forge.quantize.convert import ConvertResult

_LAYOUTS: Final = "gemm, gemv, gemv_fast, compressed-tensors or gptq"


@click.command("convert")
@click.argument("model", metavar="MODEL")
@click.option("--to", "layout", metavar="LAYOUT", required=True, help=f"{_LAYOUTS}.")
@click.option(
    "--out",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder to make.",
)
@click.option(
    "--threads", metavar="N", type=click.IntRange(1, 1024), help="Worker threads.  [default: cores]"
)
@click.option(
    "--max-shard-size", metavar="SIZE", default="5GB", show_default=True, help="Largest file."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output of forge.")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no notices.")
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    layout: str,
    out: Path,
    threads: int | None,
    max_shard_size: str,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Change the layout of a quantized checkpoint, without loss.

    MODEL is a folder or a Hub id, quantized in one of the layouts above. Codes, scales and zero
    points stay what they are, so that the way back gives the same bytes.
    """
    from forge import api

    ctx.meta[RESUMABLE_KEY] = True
    progress = open_progress(quiet=quiet)
    try:
        result = api.convert(
            model,
            layout,
            out,
            threads=threads,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
            progress=progress,
        )
    finally:
        progress.close()
    if as_json:
        console.result_json(_record(result))
    else:
        console.result(_summary(result))


def _record(result: ConvertResult) -> dict[str, object]:
    manifest = result.manifest
    return {
        "out": str(result.out),
        "seconds": round(result.seconds, 3),
        "num_tensors": result.num_tensors,
        "resumed_tensors": result.resumed_tensors,
        "conversion": manifest.get("conversion"),
        "content_digest": manifest.get("content_digest"),
        "notices": manifest.get("notices"),
        "files": manifest.get("files"),
    }


def _summary(result: ConvertResult) -> str:
    files = result.manifest.get("files")
    sizes = [entry["bytes"] for entry in files.values()] if isinstance(files, dict) else []
    resumed = f", {result.resumed_tensors:,} of them resumed" if result.resumed_tensors else ""
    return "\n".join(
        [
            f"{result.out}",
            f"  {plural(result.num_tensors, 'tensor')}{resumed}, {size_text(sum(sizes))} in "
            f"{plural(len(sizes), 'file')}, {duration_text(result.seconds)}",
            f"  'forge verify {result.out}' checks every byte.",
        ]
    )

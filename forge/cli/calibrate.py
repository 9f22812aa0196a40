"""``forge calibrate``: statistics of a model for the merge methods that weight by them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from forge.cli import console
from forge.cli.options import RESUMABLE_KEY, debug_option, json_option
from forge.cli.progress import open_progress
from forge.cli.tables import count_text, duration_text, plural

if TYPE_CHECKING:
    from forge.quantize.collecting.collect import CollectResult


@click.command("calibrate")
@click.argument("model", metavar="MODEL")
@click.option(
    "--statistics",
    type=click.Choice(["regmean", "fisher"]),
    required=True,
    help="Which: of inputs, block by block, or of gradients, with all of the model in memory.",
)
@click.option(
    "--out",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder to make.",
)
@click.option(
    "--calibration",
    metavar="SOURCE",
    help="self, self:PROMPTS, FILE.txt, FILE.jsonl, hub:NAME, or an earlier run's .npy.",
)
@click.option("--calibration-samples", metavar="N", type=int, help="Sequences to calibrate on.")
@click.option("--calibration-tokens", metavar="N", type=int, help="Tokens of each of them.")
@click.option("--calibration-field", metavar="NAME", help="Field of a record that holds the text.")
@click.option(
    "--chat-template/--no-chat-template", default=None, help="Render text as the model chats."
)
@click.option(
    "--labels",
    type=click.Choice(["sampled", "text"]),
    default="sampled",
    show_default=True,
    help="For fisher: next tokens drawn from the model, or the text's own.",
)
@click.option("--seed", metavar="N", type=int, help="Seed of what is drawn.  [default: 0]")
@click.option("--device", metavar="NAME", default="cpu", show_default=True, help="cpu or cuda.")
@click.option(
    "--threads", metavar="N", type=click.IntRange(1, 1024), help="Worker threads.  [default: cores]"
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output of forge.")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no notices.")
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: str,
    statistics: Literal["regmean", "fisher"],
    out: Path,
    labels: Literal["sampled", "text"],
    device: str,
    threads: int | None,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
    **calibration: object,
) -> None:
    """Collect statistics of a model for the merge methods regmean and fisher.

    MODEL is a folder or a Hub id. A recipe names the result beside the model: 'statistics: DIR'.
    The folder appears at once when it is complete.
    """
    from forge import api

    ctx.meta[RESUMABLE_KEY] = statistics == "regmean"
    progress = open_progress(quiet=quiet)
    try:
        result = api.calibrate(
            model,
            statistics,
            out,
            calibration=calibration,
            labels=labels,
            device=device,
            threads=threads,
            overwrite=overwrite,
            progress=progress,
        )
    finally:
        progress.close()
    if as_json:
        console.result_json(_record(result))
    else:
        console.result(_summary(result))


def _record(result: CollectResult) -> dict[str, object]:
    return {
        "out": str(result.out),
        "seconds": round(result.seconds, 3),
        "num_tensors": result.num_tensors,
        "resumed_tensors": result.resumed_tensors,
        "num_tokens": _num_tokens(result),
        "content_digest": result.manifest.get("content_digest"),
        "files": result.manifest.get("files"),
    }


def _num_tokens(result: CollectResult) -> int:
    said = result.manifest.get("statistics")
    number = said.get("num_tokens") if isinstance(said, dict) else None
    return number if isinstance(number, int) else 0


def _summary(result: CollectResult) -> str:
    return "\n".join(
        [
            f"{result.out}",
            f"  {plural(result.num_tensors, 'tensor')} from {count_text(_num_tokens(result))} "
            f"tokens, {duration_text(result.seconds)}; a recipe names the folder beside its model: "
            f"'statistics: {result.out}'.",
        ]
    )

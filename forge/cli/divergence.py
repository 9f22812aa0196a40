"""``forge divergence``: how far a variant's predictions are from its source's."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from forge import api
from forge.cli import console
from forge.cli.options import debug_option, json_option
from forge.cli.progress import open_progress
from forge.cli.series import bar
from forge.cli.tables import table

if TYPE_CHECKING:
    from forge.results.records import DivergenceRecord, LayerError

_BAR: Final = 24


@click.command("divergence")
@click.argument("variant", metavar="VARIANT")
@click.option("--against", metavar="SOURCE", required=True, help="What VARIANT was made from.")
@click.option(
    "--text", metavar="FILE", type=click.Path(path_type=Path),
    help="UTF-8 text to compare on.  [default: one that ships with forge]",
)  # fmt: skip
@click.option(
    "--tokens", metavar="N", type=click.IntRange(2), default=4096, show_default=True,
    help="Most tokens of it, spread over the whole text.",
)  # fmt: skip
@click.option("--device", metavar="NAME", default="cpu", show_default=True, help="cpu or cuda.")
@click.option(
    "--dtype", metavar="TYPE",
    help="Type of the arithmetic of both.  [default: what SOURCE is measured in]",
)  # fmt: skip
@click.option(
    "--threads", metavar="N", type=click.IntRange(1, 1024), help="Threads.  [default: cores]"
)
@click.option(
    "--results", metavar="FILE", type=click.Path(path_type=Path),
    help="Keep the figures in this results file, and find them there.",
)  # fmt: skip
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@json_option
@debug_option
def command(
    variant: str,
    against: str,
    text: Path | None,
    tokens: int,
    device: str,
    dtype: str | None,
    threads: int | None,
    results: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Say how far a variant's predictions are from its source's.

    Both models read the same tokens. Shown are the divergence of their next-token distributions
    (KL, in nats), how often both find the same token the likeliest, their perplexities, and how
    far each decoder block's output is off, so that a bad block shows.
    """
    progress = open_progress(quiet=quiet or as_json)
    try:
        found = api.divergence(
            variant, against, text=text, tokens=tokens, device=device, dtype=dtype,
            threads=threads, results=results, progress=progress,
        )  # fmt: skip
    finally:
        progress.close()
    if as_json:
        console.result_json(asdict(found))
        return
    console.result(divergence_text(found, width=console.width()))


def divergence_text(found: DivergenceRecord, *, width: int | None) -> str:
    """Lay out a comparison: its figures, and the error of each block.

    Args:
        found: The comparison.
        width: Columns of the terminal; ``None`` wraps nothing.
    """
    figures = found.figures
    rows = [
        ("KL, mean, nats", f"{figures['mean']:.6f}"),
        ("KL, median", f"{figures['median']:.6f}"),
        ("KL, 90th percentile", f"{figures['p90']:.6f}"),
        ("KL, 99th percentile", f"{figures['p99']:.6f}"),
        ("KL, largest", f"{figures['max']:.6f}"),
        ("same top token", f"{figures['same_top_share']:.2%}"),
        ("perplexity of the source", f"{figures['perplexity_reference']:.4f}"),
        ("perplexity of the variant", f"{figures['perplexity_variant']:.4f}"),
        ("ratio of perplexities", f"{figures['perplexity_ratio']:.4f}"),
    ]
    heads = ("FIGURE", "VALUE")
    title = f"{int(figures['num_positions']):,} predictions of {found.text} text, in {found.dtype}"
    parts = [title, "", table(heads, rows, right=("VALUE",), width=width)]
    if found.layers:
        parts += ["", _blocks_text(found.layers, width=width)]
    return "\n".join(parts)


def _blocks_text(layers: tuple[LayerError, ...], *, width: int | None) -> str:
    largest = max((_own(layer) for layer in layers), default=0.0) or 1.0
    rows = [
        (
            str(layer.layer),
            f"{layer.relative_error:.3e}",
            "–" if layer.own_error is None else f"{layer.own_error:.3e}",
            bar(_own(layer) / largest, _BAR),
        )
        for layer in layers
    ]
    heads = ("BLOCK", "DRIFT", "OWN ERROR", "OWN")
    drawn = table(heads, rows, right=heads[:3], width=width, can_drop_last=True)
    worst = max(layers, key=_own)
    lines = [drawn]
    if _own(worst) > 0:
        lines += ["", f"Furthest off on its own: block {worst.layer}, {_own(worst):.2%}."]
    return "\n".join(lines)


def _own(layer: LayerError) -> float:
    return layer.relative_error if layer.own_error is None else layer.own_error

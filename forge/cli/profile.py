"""``forge profile``: memory and speed of models, in turns, each in processes of its own."""

from __future__ import annotations

from pathlib import Path

import click

from forge import api
from forge.cli import console
from forge.cli.options import RESUMABLE_KEY, debug_option, json_option
from forge.cli.profile_progress import open_turn_progress


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Read one whole number, or several with commas between them."""
    words = [word.strip() for word in value.split(",")]
    if not all(word.isdecimal() for word in words):
        raise click.BadParameter(
            f"'{value}' is no number; write one such as 4, or several: 1,4,16."
        )
    return tuple(int(word) for word in words)


@click.command("profile")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "--baseline", metavar="NAME", help="Model that ratios are against.  [default: the first]"
)
@click.option(
    "--batch", "batches", metavar="N,...", callback=_numbers, default="1", show_default=True,
    help="Sequences at once; several are swept.",
)  # fmt: skip
@click.option(
    "--prompt-tokens", metavar="N,...", callback=_numbers, default="128", show_default=True,
    help="Tokens of each prompt; several are swept.",
)  # fmt: skip
@click.option(
    "--new-tokens", metavar="N", type=int, default=32, show_default=True,
    help="Decoding steps behind each prompt.",
)  # fmt: skip
@click.option(
    "--rounds", metavar="N", type=click.IntRange(1, 1000), default=5, show_default=True,
    help="How often each model has its turn.",
)  # fmt: skip
@click.option(
    "--samples", metavar="N", type=click.IntRange(1, 1000), default=2, show_default=True,
    help="Prompts of a turn.",
)  # fmt: skip
@click.option(
    "--control/--no-control", default=True, show_default=True,
    help="Measure the baseline against itself as well.",
)  # fmt: skip
@click.option("--device", metavar="NAME", default="cpu", show_default=True, help="cpu or cuda.")
@click.option(
    "--dtype", metavar="NAME", help="float32, bfloat16 or float16.  [default: each model's own]"
)
@click.option(
    "--threads", metavar="N", type=click.IntRange(1, 1024), help="Threads.  [default: cores]"
)
@click.option(
    "--seed", metavar="N", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
    help="Seed of the token ids.",
)  # fmt: skip
@click.option(
    "--results", metavar="FILE", type=click.Path(path_type=Path),
    default=Path("reports/results.db"), show_default=True, help="Where figures are kept.",
)  # fmt: skip
@click.option("--again", is_flag=True, help="Measure what was measured before, too.")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no notices.")
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    models: tuple[str, ...],
    baseline: str | None,
    batches: tuple[int, ...],
    prompt_tokens: tuple[int, ...],
    new_tokens: int,
    rounds: int,
    samples: int,
    control: bool,
    device: str,
    dtype: str | None,
    threads: int | None,
    seed: int,
    results: Path,
    again: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure load time, memory, prefill and decode of models.

    MODEL is a folder or a Hub id. Models take turns, each in a process of its own, so that ratios
    between them mean something; where the machine was too noisy to tell two models apart, the
    table says ≈. A setting that does not fit into memory is recorded as such, and the others go on.
    Complete settings are kept: the same command goes on where it was stopped.
    """
    from forge.cli.profile_text import profiles_json, profiles_text
    from forge.profile.setting import Effort

    ctx.meta[RESUMABLE_KEY] = True
    progress = open_turn_progress(quiet=quiet)
    try:
        found = api.profile(
            models,
            results=results,
            baseline=baseline,
            batches=batches,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            device=device,
            dtype=dtype,
            threads=threads,
            effort=Effort(rounds, samples, seed, control),
            again=again,
            progress=progress,
        )
    finally:
        progress.close()
    if as_json:
        console.result_json(profiles_json(found))
    else:
        console.result(profiles_text(found, width=console.width()))

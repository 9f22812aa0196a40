"""``forge generate``: let a checkpoint write, here and now."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from forge.cli import console
from forge.cli.options import debug_option, json_option
from forge.cli.tables import duration_text, plural

if TYPE_CHECKING:
    from forge.runtime.generation import Generation


@click.command("generate")
@click.argument("model", metavar="MODEL")
@click.argument("prompt", metavar="PROMPT")
@click.option(
    "--max-new-tokens", metavar="N", type=click.IntRange(1), default=128, show_default=True,
    help="Most tokens to write.",
)  # fmt: skip
@click.option(
    "--temperature", metavar="T", type=click.FloatRange(0.0, 100.0), default=0.0,
    show_default=True, help="0 takes the likeliest token; above it, tokens are drawn.",
)  # fmt: skip
@click.option(
    "--seed", metavar="N", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
    help="Seed of the draws.",
)  # fmt: skip
@click.option(
    "--chat/--no-chat", default=None,
    help="Say PROMPT to the model, through its chat template.  [default: where it has one]",
)  # fmt: skip
@click.option("--device", metavar="NAME", default="cpu", show_default=True, help="cpu or cuda.")
@click.option(
    "--threads", metavar="N", type=click.IntRange(1, 1024), help="Threads.  [default: cores]"
)
@click.option("--quiet", "-q", is_flag=True, help="Nothing but the text.")
@json_option
@debug_option
def command(
    model: str,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    chat: bool | None,
    device: str,
    threads: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Generate text from a checkpoint, and print it as it comes.

    MODEL is the folder of a merge or of a quantized checkpoint, or a Hub id. PROMPT may be '-',
    to be read from stdin. Speeds are printed behind the text, to stderr.
    """
    from forge import runtime

    if prompt == "-":
        prompt = sys.stdin.read()
    loaded = runtime.load(model, device=device, threads=threads)
    from forge.runtime.generation import generate, load_tokenizer

    tokenizer = load_tokenizer(loaded)
    show = (lambda text: None) if as_json else (lambda text: console.result(text, end=""))
    try:
        made = generate(
            loaded, tokenizer, prompt, max_new_tokens=max_new_tokens, temperature=temperature,
            seed=seed, chat=chat, emit=show,
        )  # fmt: skip
    except KeyboardInterrupt:
        # What was written so far stays, and the shell's prompt begins a line of its own.
        if not as_json:
            console.result()
        raise
    if as_json:
        console.result_json(_record(made))
        return
    console.result()
    if not quiet:
        console.say(_speeds(made))


def _speeds(made: Generation) -> str:
    return (
        f"{plural(made.tokens, 'token')}, {made.tokens_per_s:.1f} tokens/s; first token behind "
        f"{plural(made.prompt_tokens, 'token')} after {duration_text(made.prompt_s)}"
    )


def _record(made: Generation) -> dict[str, object]:
    return {
        "text": made.text,
        "tokens": made.tokens,
        "prompt_tokens": made.prompt_tokens,
        "prompt_seconds": round(made.prompt_s, 4),
        "tokens_per_second": round(made.tokens_per_s, 2),
    }

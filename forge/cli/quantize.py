"""``forge quantize``: run a recipe, or the options that make one, or print the plan."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from forge import api
from forge.cli import console
from forge.cli.options import RESUMABLE_KEY, debug_option, json_option
from forge.cli.progress import open_progress
from forge.cli.quantize_progress import WithMemory
from forge.cli.tables import duration_text, plural, size_text
from forge.verify.findings import TITLES

if TYPE_CHECKING:
    from forge.quantize.run import QuantizeResult
    from forge.recipes.quantize_recipe import QuantizeRecipe

_OUTPUTS: Final = Path("quantized")
_UNSAFE: Final = re.compile(r"[^\w.-]+", re.ASCII)


@click.command("quantize")
@click.argument("model", required=False)
@click.option("--method", metavar="NAME", help="awq, bnb or rtn.")
@click.option("--config", metavar="RECIPE", help="A path, or a name under quant_configs/.")
@click.option(
    "--version", metavar="NAMES", help="AWQ layout: gemm, gemv, gemv_fast, or several: gemm,gemv."
)
@click.option("--type", metavar="NAMES", help="bitsandbytes type: nf4, fp4, int8, or several.")
@click.option(
    "--format", metavar="NAMES", help="Any layout: compressed-tensors, gptq, awq-gemm ..."
)
@click.option("--bits", metavar="N", type=int, help="Bits of a code.")
@click.option("--group-size", metavar="N", type=int, help="Inputs that share a scale: 32, 64, 128.")
@click.option(
    "--double-quant/--no-double-quant", default=None, help="Quantize the scales of nf4 and fp4."
)
@click.option("--search", metavar="NAME", help="How awq judges a scale: sketch, gram or module.")
@click.option("--clip/--no-clip", default=None, help="Search for each group's largest value.")
@click.option(
    "--error-feedback/--no-error-feedback",
    default=None,
    help="Let later columns make up for the rounding of earlier ones.",
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
@click.option("--keep", metavar="NAMES", help="Modules to leave in full precision.")
@click.option("--device", metavar="NAME", help="cpu or cuda.  [default: cpu]")
@click.option("--seed", metavar="N", type=int, help="Seed of sketch and calibration.  [default: 0]")
@click.option("--max-shard-size", metavar="SIZE", help="Largest file to write, such as 5GB.")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder to make.  [default: quantized/MODEL-FORMAT]",
)
@click.option(
    "--threads", metavar="N", type=click.IntRange(1, 1024), help="Worker threads.  [default: cores]"
)
@click.option(
    "--verify",
    type=click.Choice(["full", "quick", "off"]),
    default="full",
    show_default=True,
    help="Last step: prove the result right; quick loads no model.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output of forge.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no notices.")
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: str | None,
    config: str | None,
    out: Path | None,
    threads: int | None,
    verify: api.Verify,
    overwrite: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **options: object,
) -> None:
    """Quantize a checkpoint.

    MODEL is a folder or a Hub id; without it, the newest checkpoint that forge wrote here. The
    result appears at once when it is complete; a run that was stopped is resumed by the same
    command. Each option is a key of the recipe, and replaces it.
    """
    recipe = api.load_quantize_recipe(config, options={"model": model, **options})
    if recipe.model is None:
        recipe = _with_newest(recipe, quiet=quiet)
    target = out if out is not None else _OUTPUTS / default_name(recipe)
    if dry_run:
        _show_plan(recipe, target, threads, as_json=as_json)
        return
    ctx.meta[RESUMABLE_KEY] = True
    progress = open_progress(quiet=quiet)
    try:
        result = api.quantize(
            recipe,
            target,
            threads=threads,
            overwrite=overwrite,
            verification=verify,
            progress=WithMemory(progress),
        )
    finally:
        progress.close()
    if as_json:
        console.result_json(_record(result))
    else:
        console.result(_summary(result))


def default_name(recipe: QuantizeRecipe) -> str:
    """Return the name of a recipe's output: the model's, and what is made of it.

    Args:
        recipe: The recipe; it names a model.

    Returns:
        A plain folder name of ASCII letters, digits, ``_``, ``.`` and ``-``.
    """
    assert recipe.model is not None
    path = Path(recipe.model.path)
    name = path.name if path.name not in ("", "..") else path.resolve().name
    first = recipe.variants[0]
    kind = first.format if len(recipe.variants) == 1 else recipe.method
    if first.double_quant and len(recipe.variants) == 1:
        kind += "-dq"
    plain = _UNSAFE.sub("-", name).strip("-.") or "model"
    return f"{plain}-{kind}"


def _with_newest(recipe: QuantizeRecipe, *, quiet: bool) -> QuantizeRecipe:
    folder = api.newest_checkpoint()
    if not quiet:
        console.say(f"Taking {folder}, the newest checkpoint that forge wrote here.")
    return dataclasses.replace(recipe, model=api.reference(str(folder)))


def _show_plan(recipe: QuantizeRecipe, out: Path, threads: int | None, *, as_json: bool) -> None:
    from forge.cli.quantize_text import quantize_plan_text
    from forge.quantize.estimate import expected_seconds

    plan = api.plan_quantize(recipe, out=out)
    seconds = expected_seconds(recipe, plan, threads=threads)
    if as_json:
        record = {"out": str(out), "recipe": recipe.resolved(), "expected_seconds": round(seconds)}
        console.result_json(record | plan.summary())
    else:
        console.result(
            quantize_plan_text(
                recipe, plan, out, seconds=seconds, threads=threads, width=console.width()
            )
        )


def _record(result: QuantizeResult) -> dict[str, object]:
    return {
        "out": str(result.out),
        "seconds": round(result.seconds, 3),
        "num_tensors": result.num_tensors,
        "resumed_tensors": result.resumed_tensors,
        "input_bytes": result.input_bytes,
        "outputs": [
            {
                "out": str(output.out),
                "format": output.format,
                "num_tensors": output.num_tensors,
                "output_bytes": output.output_bytes,
                "content_digest": output.manifest.get("content_digest"),
                "notices": output.manifest.get("notices"),
                "verification": output.manifest.get("verification"),
            }
            for output in result.outputs
        ],
    }


def _summary(result: QuantizeResult) -> str:
    lines = []
    for output in result.outputs:
        share = output.output_bytes / max(1, result.input_bytes)
        resumed = f", {output.resumed_tensors:,} resumed" if output.resumed_tensors else ""
        lines += [
            f"{output.out}",
            f"  {output.format}, {plural(output.num_tensors, 'tensor')}{resumed}, "
            f"{size_text(output.output_bytes)}, {share:.0%} of {size_text(result.input_bytes)}",
            *_verified(output.manifest.get("verification")),
        ]
    first = result.outputs[0].out
    return "\n".join(
        [
            *lines,
            f"  {duration_text(result.seconds)}; 'forge verify {first}' checks it, 'forge generate "
            f'{first} "..."\' runs it.',
        ]
    )


def _verified(record: object) -> list[str]:
    checks = record.get("checks") if isinstance(record, Mapping) else None
    return [
        f"  {check['state']}: {TITLES[check['check']]}, {check['summary']}"
        for check in (checks if isinstance(checks, list) else [])
    ]

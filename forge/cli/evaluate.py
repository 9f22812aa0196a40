"""``forge eval``: answer a suite's questions, and score the answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from forge.cli import console
from forge.cli.options import RESUMABLE_KEY, debug_option, json_option
from forge.cli.progress import open_progress

if TYPE_CHECKING:
    from forge.evaluate.ensemble import Ensemble
    from forge.evaluate.subjects import ApiModel

RESULTS: Final = Path("reports/results.db")


def _words(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(word for part in (value or "").split(",") if (word := part.strip()))


def _numbers(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(ctx, parameter, value))
    except ValueError as error:
        raise click.BadParameter(f"'{value}' is no list of whole numbers such as 1,2,3.") from error


def _named(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for value in values:
        name, separator, rest = (part.strip() for part in value.partition("="))
        if not (name and separator and rest):
            raise click.BadParameter(f"'{value}' is not of the form NAME=...")
        if name in found:
            raise click.BadParameter(f"The name '{name}' is given twice.")
        found[name] = rest
    return found


@click.command("eval")
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option("--suite", metavar="SUITE", help="A suite of forge, or a YAML file.")
@click.option(
    "--data-dir", metavar="DIR", type=click.Path(path_type=Path),
    help="Files that replace the suite's data sets on the Hub.",
)  # fmt: skip
@click.option(
    "--skip-missing", is_flag=True,
    help="Leave out tasks whose file is not in DIR; averages are then over the others.",
)  # fmt: skip
@click.option("--tasks", metavar="A,B", callback=_words, help="Tasks.  [default: all]")
@click.option(
    "--seeds", metavar="1,2,3", callback=_numbers, help="Sets of examples.  [default: all]"
)
@click.option(
    "--quick", metavar="N", type=click.IntRange(1),
    help="N items of each task, drawn by label, the same for all models.",
)  # fmt: skip
@click.option(
    "--chat/--no-chat", default=False, show_default=True,
    help="Put prompts into each model's chat template.",
)  # fmt: skip
@click.option(
    "--mode", type=click.Choice(["constrained", "unconstrained"]), default="constrained",
    show_default=True,
    help="Accuracy to show: of the likeliest option, or of the likeliest token of all.",
)  # fmt: skip
@click.option("--device", metavar="NAME", default="cpu", show_default=True, help="cpu or cuda.")
@click.option(
    "--dtype", metavar="TYPE",
    help="Type of the arithmetic.  [default: float32 on a CPU without bfloat16 tiles, else the "
    "model's]",
)  # fmt: skip
@click.option(
    "--threads", metavar="N", type=click.IntRange(1, 1024), help="Threads.  [default: cores]"
)
@click.option(
    "--batch-tokens", metavar="N", type=click.IntRange(1),
    help="Most tokens of a batch, shared examples apart.  [default: what suits the device]",
)  # fmt: skip
@click.option(
    "--truncate", is_flag=True,
    help="Cut prompts that are longer than a model's context on the left, instead of refusing.",
)  # fmt: skip
@click.option(
    "--label", "labels", metavar="NAME=MODEL", multiple=True, callback=_named,
    help="Name of a model in tables.  [default: its folder's]",
)  # fmt: skip
@click.option(
    "--ensemble", "ensembles", metavar="NAME=A+B", multiple=True, callback=_named,
    help="Models of this run, by their names, that answer together.",
)  # fmt: skip
@click.option("--api", metavar="URL", help="An OpenAI-compatible API: http://127.0.0.1:8000/v1.")
@click.option(
    "--api-model", "api_models", metavar="NAME", multiple=True, help="A model's name there."
)
@click.option(
    "--api-kind", type=click.Choice(["completions", "chat", "text"]), default="completions",
    show_default=True,
    help="Score echoed options, one token's list of likeliest tokens, or a letter in the text.",
)  # fmt: skip
@click.option("--api-key-env", metavar="VAR", help="Environment variable with the API's key.")
@click.option(
    "--lm-eval-tasks", metavar="A,B", callback=_words,
    help="Tasks of lm-eval, run through its own code on forge's models.",
)  # fmt: skip
@click.option(
    "--lm-eval-path", metavar="DIR", type=click.Path(path_type=Path),
    help="A folder with task files in lm-eval's form.",
)  # fmt: skip
@click.option(
    "--results", metavar="FILE", type=click.Path(path_type=Path), default=RESULTS,
    show_default=True, help="Where answers and scores are kept, and found again.",
)  # fmt: skip
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    models: tuple[str, ...],
    suite: str | None,
    data_dir: Path | None,
    skip_missing: bool,
    tasks: tuple[str, ...],
    seeds: tuple[int, ...],
    quick: int | None,
    chat: bool,
    mode: str,
    device: str,
    dtype: str | None,
    threads: int | None,
    batch_tokens: int | None,
    truncate: bool,
    labels: Mapping[str, str],
    ensembles: Mapping[str, str],
    api: str | None,
    api_models: tuple[str, ...],
    api_kind: str,
    api_key_env: str | None,
    lm_eval_tasks: tuple[str, ...],
    lm_eval_path: Path | None,
    results: Path,
    quiet: bool,
    as_json: bool,
) -> None:
    """Let models answer a suite's questions, and score the answers.

    MODEL is the folder of any checkpoint that forge or transformers loads, or a Hub id. Answers
    are kept in the results file and never computed twice: the same command goes on where it was
    stopped, and another suite, seed or model computes only what is new.
    """
    if (suite is None) == (not lm_eval_tasks):
        raise click.UsageError("Name what to run: --suite SUITE or --lm-eval-tasks A,B.", ctx)
    if bool(api) != bool(api_models):
        raise click.UsageError("--api and --api-model belong together.", ctx)
    if not models and not api_models:
        raise click.UsageError("Name a MODEL, or one behind --api.", ctx)
    from forge.api import evaluate
    from forge.cli.evaluate_text import run_json, run_text
    from forge.evaluate.subjects import LocalSettings

    settings = LocalSettings(device, dtype, threads, batch_tokens, truncate, chat)
    ctx.meta[RESUMABLE_KEY] = True
    progress = open_progress(quiet=quiet, counted="answers")
    try:
        if suite is None:
            from forge.evaluate.lm_eval_adapter import evaluate_lm_eval_tasks

            if api_models or ensembles:
                raise click.UsageError("lm-eval's tasks run on models of this machine.", ctx)
            run = evaluate_lm_eval_tasks(
                models, lm_eval_tasks, include_path=lm_eval_path, quick=quick, results=results,
                settings=settings, labels=labels, progress=progress,
            )  # fmt: skip
        else:
            run = evaluate(
                models, suite=suite, data_dir=data_dir, skip_missing=skip_missing,
                tasks=tasks or None, seeds=seeds or None,
                quick=quick, results=results, settings=settings,
                apis=[_api(api or "", name, api_kind, api_key_env, labels) for name in api_models],
                ensembles=_ensembles(ensembles),
                labels={name: model for name, model in labels.items() if model not in api_models},
                progress=progress,
            )  # fmt: skip
    finally:
        progress.close()
    if as_json:
        console.result_json(run_json(run))
        return
    console.result(run_text(run, mode=mode, width=console.width()))
    if not quiet:
        console.say(
            f"{run.computed:,} answers computed, {run.reused:,} found; all are in '{results}'."
        )


def _api(
    url: str, name: str, kind: str, key_variable: str | None, labels: Mapping[str, str]
) -> ApiModel:
    from forge.evaluate.backends.api import KINDS
    from forge.evaluate.subjects import ApiModel

    known = next(each for each in KINDS if each == kind)
    label = next((label for label, model in labels.items() if model == name), None)
    return ApiModel(url, name, known, key_variable, label)


def _ensembles(named: Mapping[str, str]) -> list[Ensemble]:
    from forge.evaluate.ensemble import Ensemble

    return [
        Ensemble(label, tuple(part.strip() for part in members.split("+")))
        for label, members in named.items()
    ]

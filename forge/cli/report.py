"""``forge report``: compare what was measured, and write the page to decide from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from forge import api
from forge.cli import console
from forge.cli.options import debug_option, json_option
from forge.core.errors import ResultsError

if TYPE_CHECKING:
    from forge.report.comparison import Comparison, Verdict
    from forge.report.folder import ReportResult

_INDENT: Final = "    "


def _split(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(word for part in (value or "").split(",") if (word := part.strip()))


@click.command("report")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("reports/report"),
    show_default=True,
    help="Folder to make; a report that is there is replaced.",
)
@click.option(
    "--results",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=Path("reports/results.db"),
    show_default=True,
    help="What 'forge eval', 'profile' and 'divergence' wrote.",
)
@click.option(
    "--models", metavar="LABELS", callback=_split, help="Models to show: a,b. [default: all]"
)
@click.option(
    "--baseline",
    metavar="LABEL",
    help="Compare all with this model. [default: what each was made from]",
)
@click.option(
    "--margin",
    metavar="POINTS",
    type=float,
    default=1.0,
    show_default=True,
    help="Loss of accuracy that does not matter.",
)
@click.option("--suite", metavar="NAME", help="Suite that verdicts rest on.")
@click.option(
    "--mode",
    type=click.Choice(["constrained", "unconstrained"]),
    default="constrained",
    show_default=True,
    help="Scoring that verdicts rest on: the likeliest option, or the likeliest token of all.",
)
@click.option("--title", metavar="TEXT", help="Title of the report.")
@click.option(
    "--formats",
    metavar="NAMES",
    callback=_split,
    help="Of html,md,tex,csv,json,svg,png. [default: all]",
)
@click.option("--open", "opens", is_flag=True, help="Open the page in a browser.")
@json_option
@debug_option
def command(
    out: Path,
    results: Path,
    models: tuple[str, ...],
    baseline: str | None,
    margin: float,
    suite: str | None,
    mode: str,
    title: str | None,
    formats: tuple[str, ...],
    opens: bool,
    as_json: bool,
) -> None:
    """Compare what was measured, and write the page to decide from.

    Prints a verdict for each model and which one to release; DIR gets index.html, report.md,
    report.tex, report.json, tables as CSV, and the charts. The same results file gives the same
    bytes.
    """
    if opens and formats and "html" not in formats:
        raise ResultsError("--open needs the page; add html to --formats.")
    written = api.report(
        out,
        results=results,
        models=models,
        baseline=baseline,
        margin=margin / 100,
        suite=suite,
        mode="unconstrained" if mode == "unconstrained" else "constrained",
        title=title,
        formats=formats or None,
    )
    if as_json:
        console.result_json(_summary(written))
    else:
        console.result(verdict_text(written.comparison))
        console.result(f"\n{out / 'index.html' if 'index.html' in written.files else out}")
    for notice in (*written.comparison.notices, *written.notices):
        console.say(f"notice: {notice}")
    if opens:
        click.launch((out / "index.html").resolve().as_uri())


def verdict_text(comparison: Comparison) -> str:
    """Return the recommendation and the verdicts as lines of text.

    Args:
        comparison: The comparison.
    """
    advice = comparison.recommendation
    lines = [f"{advice.headline}.", *(f"{_INDENT}{reason}" for reason in advice.reasons)]
    for verdict in comparison.verdicts:
        lines += ["", *_lines(verdict)]
    return "\n".join(lines)


def _lines(verdict: Verdict) -> list[str]:
    return [
        f"{verdict.model}: {verdict.headline}.",
        *(f"{_INDENT}{reason}" for reason in verdict.reasons),
        *(f"{_INDENT}! {reason}" for reason in verdict.against),
    ]


def _summary(written: ReportResult) -> dict[str, object]:
    comparison = written.comparison
    return {
        "out": str(written.out),
        "files": list(written.files),
        "recommended": comparison.recommendation.model,
        "headline": comparison.recommendation.headline,
        "reasons": list(comparison.recommendation.reasons),
        "verdicts": [
            {
                "model": verdict.model,
                "verdict": verdict.kind,
                "headline": verdict.headline,
                "reasons": list(verdict.reasons),
                "against": list(verdict.against),
                "dominated_by": list(verdict.dominated_by),
                "recommended": verdict.recommended,
                "items_to_decide": verdict.items_to_decide,
            }
            for verdict in comparison.verdicts
        ],
        "notices": [*comparison.notices, *written.notices],
    }

"""``forge lint``: what is wrong in the tables of a model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from forge import api
from forge.cli import console
from forge.cli.options import debug_option, json_option
from forge.cli.tables import plural, table

if TYPE_CHECKING:
    from forge.report.lint import LintReport


@click.command("lint")
@click.argument("card", metavar="CARD.md", type=click.Path(path_type=Path))
@json_option
@debug_option
@click.pass_context
def command(ctx: click.Context, card: Path, as_json: bool) -> None:
    """Say what is wrong in the tables of a model card.

    CARD.md is anybody's: averages that are not the mean of their row, bold that is not the best,
    underlines that are not the second, averages over different tasks, claims without an interval,
    rows that come twice, values that cannot be. The exit code is 1 where the card contradicts
    itself.
    """
    report = api.lint(card)
    if as_json:
        console.result_json(report.as_json())
    else:
        console.result(_text(card, report, width=console.width()))
    ctx.exit(1 if report.count("error") else 0)


def _text(card: Path, report: LintReport, *, width: int | None) -> str:
    counts = ", ".join(plural(report.count(level), level) for level in ("error", "warning", "hint"))
    verdict = (
        f"{plural(report.num_tables, 'table')}, {report.num_results} with scores: {counts}."
        if report.num_tables
        else f"'{card}' has no tables."
    )
    if not report.findings:
        return verdict
    rows = [
        (str(finding.line), finding.level, finding.code, finding.message)
        for finding in report.findings
    ]
    heads = ("LINE", "LEVEL", "CODE", "FINDING")
    return f"{table(heads, rows, right=('LINE',), width=width)}\n\n{verdict}"

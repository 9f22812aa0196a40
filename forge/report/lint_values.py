"""Values that cannot be, rows that come twice, and cells that do not fit their column."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from forge.report.card_tables import CardTable
from forge.report.lint_finding import LintFinding
from forge.report.lint_view import Column, View

_MAY_BE_NEGATIVE: Final = re.compile(
    r"\b(?:mcc|correlation|corr|kappa|r2|r²|spearman|pearson|delta|diff|difference|change|gain|"
    r"improvement)\b|[Δδ]",
    re.IGNORECASE,
)
_LEAST_EQUAL: Final = 3
"""Scores that two rows of different names share before that is suspicious."""


def value_findings(view: View) -> list[LintFinding]:
    """Return what is wrong with the values of a table."""
    findings: list[LintFinding] = []
    for column in view.of_kind("task", "average", "weighted"):
        findings += _impossible(view, column)
        findings += _mixed_scale(view, column)
    return [*findings, *_duplicates(view), *_decimals(view)]


def shape_findings(table: CardTable) -> list[LintFinding]:
    """Return rows that are longer or shorter than the head."""
    width = len(table.heads)
    return [
        LintFinding(
            "warning" if found > width else "hint", "shape", line,
            f"The row has {found} cells, its head {width}; "
            + ("readers do not see the rest." if found > width else "the last ones are empty."),
        )
        for line, found in table.ragged
        if found > 1
    ]  # fmt: skip


def _impossible(view: View, column: Column) -> list[LintFinding]:
    if _MAY_BE_NEGATIVE.search(column.name):
        return []
    numbers = {row: number for row in view.rows if (number := view.number(row, column))}
    is_share = column.is_share or (
        bool(view.of_kind("average"))
        and sum(0 <= number.value <= 100 for number in numbers.values()) > len(numbers) / 2
    )
    return [
        LintFinding(
            "error", "impossible", view.cell(row, column).line,
            f"{view.label(row)}: {number.text} under '{column.name}' is no share of answers: "
            f"{'more than 100' if number.value > 0 else 'less than 0'}.",
        )
        for row, number in numbers.items()
        if not 0 <= number.value <= 100 and (is_share or number.is_percent)
    ]  # fmt: skip


def _mixed_scale(view: View, column: Column) -> list[LintFinding]:
    """Return shares in a column of percentages, or the reverse, where few are against many."""
    numbers = {row: number for row in view.rows if (number := view.number(row, column))}
    shares = [row for row, number in numbers.items() if 0 < number.value <= 1 and number.decimals]
    percent = [row for row, number in numbers.items() if number.value > 5]
    if not shares or not percent or len(shares) + len(percent) < len(numbers):
        return []
    odd = shares if len(shares) <= len(percent) else percent
    return [
        LintFinding(
            "warning", "scale", view.cell(row, column).line,
            f"{view.label(row)}: {numbers[row].text} under '{column.name}' is on another scale "
            "than the rest of the column.",
        )
        for row in odd
    ]  # fmt: skip


def _duplicates(view: View) -> list[LintFinding]:
    findings = []
    tasks = view.of_kind("task")
    by_name: dict[tuple[str, ...], int] = {}
    by_scores: dict[tuple[str, ...], int] = {}
    for row in view.rows:
        texts = [cell.text.casefold() for cell in view.table.rows[row]]
        settings = view.of_kind("label", "setting")
        name = tuple(texts[column.index] for column in settings)
        scores = tuple(number.text for column in tasks if (number := view.number(row, column)))
        first = by_name.get(name)
        if settings and any(name) and first is not None:
            same = texts == [cell.text.casefold() for cell in view.table.rows[first]]
            findings.append(
                _twice(view, row, first, "the same row" if same else "other values for this row")
            )
        elif len(scores) >= _LEAST_EQUAL and scores in by_scores:
            findings.append(_twice(view, row, by_scores[scores], f"the same {len(scores)} scores"))
        by_name.setdefault(name, row)
        by_scores.setdefault(scores, row)
    return findings


def _twice(view: View, row: int, first: int, what: str) -> LintFinding:
    lines = [view.table.rows[each][0].line for each in (row, first)]
    place = f" at line {lines[1]}" if lines[0] != lines[1] else ""
    return LintFinding(
        "warning", "duplicate", lines[0],
        f"{view.label(row)}: {view.label(first)}{place} has {what}.",
    )  # fmt: skip


def _decimals(view: View) -> list[LintFinding]:
    """Return one hint for a table whose scores have different numbers of decimals."""
    columns: Sequence[Column] = view.of_kind("task", "average", "weighted")
    found: dict[int, tuple[str, int]] = {}
    for row in view.rows:
        for column in columns:
            number = view.number(row, column)
            if number is not None:
                found.setdefault(number.decimals, (number.text, view.cell(row, column).line))
    if len(found) < 2:
        return []
    least, most = min(found), max(found)
    return [
        LintFinding(
            "hint", "decimals", found[least][1],
            f"Scores of this table have {least} to {most} decimals, such as {found[least][0]} and "
            f"{found[most][0]}.",
        )
    ]  # fmt: skip

"""Bold that is not the best, and underlines that are not the second.

Best is the largest of a column, or the smallest where its head says so (perplexity, latency, ↓).
Groups of rows that a table divides may each have their own best; and a group without any mark
that beats the marked ones (an API row for reference) is left out of the comparison by habit, which
the reader is told once. A row that is bold throughout names the card's own model, not the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from forge.report.card_cells import Cell
from forge.report.lint_finding import LintFinding
from forge.report.lint_view import Column, View, view_of

_LEAST_BOLD: Final = 3
"""Numbers that a row bold throughout has at least."""
_LEAST_CROWDED: Final = 2
"""Columns with several bold values that are a habit; one is a mistake."""


def mark_findings(view: View, *, less_may_be_better: bool = False) -> list[LintFinding]:
    """Return what is wrong with the marks of a table.

    Args:
        view: The table. Where nothing says whether its rows or its columns are models, the way
            round in which less is wrong counts.
        less_may_be_better: Whether the text around it speaks of something of which less is
            better; columns whose heads say nothing may then have either end as their best.
    """
    findings = _findings(view, less_may_be_better)
    if not findings or view.is_certain:
        return findings
    turned = _findings(view_of(view.table, turned=True), less_may_be_better)
    return turned if len(turned) < len(findings) else findings


def _findings(view: View, less_may_be_better: bool) -> list[LintFinding]:
    columns = view.of_kind("task", "measure", "average", "weighted")
    throughout = [row for row in view.rows if _is_bold_throughout(view, row, columns)]
    aside = _groups_aside(view, columns, throughout)
    rows = [row for group in view.groups if group not in aside for row in group]
    findings = [_aside_finding(view, group, columns, rows) for group in aside]
    not_best: dict[int, list[str]] = {}
    several = _several_bold(view, columns, rows)
    if several is not None:
        return [*findings, several]
    for column in columns:
        if less_may_be_better and not column.is_known:
            column = _other_way(view, column, rows)
        numbered = [row for row in rows if view.number(row, column) is not None]
        marked = [row for row in numbered if view.cell(row, column).is_bold]
        if len(numbered) < 2 or len(marked) == len(numbered):
            continue
        for row in marked:
            rivals = _rivals(view, column, row, marked, numbered)
            better = _better(view, column, row, rivals)
            if better is None:
                continue
            if row in throughout:
                not_best.setdefault(row, []).append(column.name)
            else:
                findings.append(_bold_finding(view, column, row, better, rivals))
        findings += _tie_findings(view, column, marked, numbered)
        findings += _underline_findings(view, column, numbered)
    for row, names in not_best.items():
        first = f"'{names[0]}'"
        findings.append(
            LintFinding(
                "warning", "bold", view.cell(row, columns[0]).line,
                f"{view.label(row)}: the whole row is bold, also {len(names)} of its cells that "
                f"are not the best of their column, the first under {first}.",
            )
        )  # fmt: skip
    return findings


def _bold_finding(
    view: View, column: Column, row: int, better: int, rivals: Sequence[int]
) -> LintFinding:
    cell, best = view.cell(row, column), view.cell(better, column)
    message = (
        f"{view.label(row)}: bold {cell.text} under '{column.name}' is not the best; "
        f"{view.label(better)} has {best.text}."
    )
    values = {_value(view, column, each) for each in rivals}
    if not column.is_known and len(values) > 2 and _value(view, column, row) == min(values):
        # The last of several under a head that forge does not know: perhaps less is better.
        message += " If less is better there, say so with ↓."
        return LintFinding("warning", "bold", cell.line, message)
    return LintFinding("error", "bold", cell.line, message)


def _several_bold(view: View, columns: Sequence[Column], rows: Sequence[int]) -> LintFinding | None:
    """Return one finding for a table whose bold marks no best of a column, but of pairs, say."""
    marked, crowded, line = 0, 0, 0
    for column in columns:
        bold = [
            row for row in rows
            if view.number(row, column) is not None and view.cell(row, column).is_bold
        ]  # fmt: skip
        groups = sum(any(row in bold for row in group) for group in view.groups)
        marked += bool(bold)
        if len({_value(view, column, row) for row in bold}) > groups:
            crowded += 1
            line = line or view.cell(bold[-1], column).line
    if crowded < _LEAST_CROWDED or 2 * crowded <= marked:
        return None
    return LintFinding(
        "warning", "bold", line,
        f"{crowded} of {marked} columns have several different bold values, so bold does not mark "
        "the best of a column. Say what it marks.",
    )  # fmt: skip


def _other_way(view: View, column: Column, rows: Sequence[int]) -> Column:
    """Return a column with the direction in which its bold values are right, if either is."""
    numbered = [row for row in rows if view.number(row, column) is not None]
    bold = {_value(view, column, row) for row in numbered if view.cell(row, column).is_bold}
    lowest = min((_value(view, column, row) for row in numbered), default=None)
    return replace(column, lower_is_better=bold == {lowest})


def _tie_findings(
    view: View, column: Column, marked: Sequence[int], numbered: Sequence[int]
) -> list[LintFinding]:
    values = {_value(view, column, row) for row in marked}
    ties = [
        row for row in numbered
        if row not in marked and len(values) == 1 and _value(view, column, row) in values
    ]  # fmt: skip
    return [
        LintFinding(
            "hint", "bold", view.cell(row, column).line,
            f"{view.label(row)}: {view.cell(row, column).text} under '{column.name}' equals the "
            "bold value and is not bold.",
        )
        for row in ties
    ]  # fmt: skip


def _underline_findings(view: View, column: Column, numbered: Sequence[int]) -> list[LintFinding]:
    findings = []
    underlined = [
        row for row in numbered
        if view.cell(row, column).is_underlined and not view.cell(row, column).is_bold
    ]  # fmt: skip
    groups = [group for group in view.groups if any(row in underlined for row in group)]
    for row in underlined:
        scopes = [numbered]
        if len(groups) > 1:
            own = next(group for group in view.groups if row in group)
            scopes.append([each for each in numbered if each in own])
        if not any(_is_second(view, column, row, scope) for scope in scopes):
            cell = view.cell(row, column)
            ranked = _ranked(view, column, numbered)
            second = ranked[1] if len(ranked) > 1 else ranked[0]
            holder = next(each for each in numbered if _value(view, column, each) == second)
            findings.append(
                LintFinding(
                    "error", "underline", cell.line,
                    f"{view.label(row)}: underlined {cell.text} under '{column.name}' is not the "
                    f"second; {view.label(holder)} has {view.cell(holder, column).text}.",
                )
            )  # fmt: skip
    return findings


def _is_second(view: View, column: Column, row: int, scope: Sequence[int]) -> bool:
    ranked = _ranked(view, column, scope)
    value = _value(view, column, row)
    if len(ranked) > 1 and value == ranked[1]:
        return True
    # Two that tie for the best may be marked as first and second.
    values = [_value(view, column, each) for each in scope]
    return value == ranked[0] and values.count(value) > 1


def _ranked(view: View, column: Column, rows: Sequence[int]) -> list[float]:
    """Return the different values of rows, the best first."""
    values = {_value(view, column, row) for row in rows}
    return sorted(values, reverse=not column.lower_is_better)


def _rivals(
    view: View, column: Column, row: int, marked: Sequence[int], numbered: Sequence[int]
) -> Sequence[int]:
    """Return the rows that a bold one must beat: all, or its group where others have bold, too."""
    groups = [group for group in view.groups if any(each in marked for each in group)]
    if len(groups) < 2:
        return numbered
    own = next(group for group in groups if row in group)
    return [each for each in numbered if each in own]


def _better(view: View, column: Column, row: int, rivals: Sequence[int]) -> int | None:
    """Return the best of the rows that beat one, or ``None``."""
    ranked = _ranked(view, column, rivals)
    if not ranked or _value(view, column, row) == ranked[0]:
        return None
    best = next(each for each in rivals if _value(view, column, each) == ranked[0])
    return best if _beats(column, ranked[0], _value(view, column, row)) else None


def _groups_aside(
    view: View, columns: Sequence[Column], throughout: Sequence[int]
) -> list[tuple[int, ...]]:
    """Return the groups without a mark that hold values better than the bold ones."""
    if len(view.groups) < 2:
        return []

    def marks(group: tuple[int, ...]) -> bool:
        return any(_is_marked(view.cell(row, column)) for row in group for column in columns)

    marked = [group for group in view.groups if marks(group)]
    return [
        group
        for group in view.groups
        if marked
        and group not in marked
        and any(_beaten(view, column, group, marked, throughout) for column in columns)
    ]


def _beaten(
    view: View,
    column: Column,
    group: tuple[int, ...],
    marked: Sequence[tuple[int, ...]],
    throughout: Sequence[int],
) -> bool:
    bold = [
        _value(view, column, row)
        for each in marked
        for row in each
        if view.number(row, column) and view.cell(row, column).is_bold and row not in throughout
    ]
    own = [_value(view, column, row) for row in group if view.number(row, column)]
    return bool(bold) and any(all(_beats(column, value, other) for other in bold) for value in own)


def _aside_finding(
    view: View, group: tuple[int, ...], columns: Sequence[Column], rows: Sequence[int]
) -> LintFinding:
    better = 0
    for column in columns:
        others = [_value(view, column, row) for row in rows if view.number(row, column)]
        own = [_value(view, column, row) for row in group if view.number(row, column)]
        better += any(all(_beats(column, value, other) for other in others) for value in own)
    names = ", ".join(view.label(row) for row in group[:3])
    return LintFinding(
        "warning", "bold", view.cell(group[0], columns[0]).line,
        f"Bold and underlines leave out {names}, which {'is' if len(group) == 1 else 'are'} "
        f"better than everything that is marked in {better} of {len(columns)} columns. Say so "
        "beside the table.",
    )  # fmt: skip


def _is_bold_throughout(view: View, row: int, columns: Sequence[Column]) -> bool:
    cells = [view.cell(row, column) for column in columns if view.number(row, column) is not None]
    return len(cells) >= _LEAST_BOLD and all(cell.is_bold for cell in cells)


def _is_marked(cell: Cell) -> bool:
    return cell.number is not None and (cell.is_bold or cell.is_underlined)


def _beats(column: Column, one: float, other: float) -> bool:
    return one < other if column.lower_is_better else one > other


def _value(view: View, column: Column, row: int) -> float:
    number = view.number(row, column)
    assert number is not None
    return number.value

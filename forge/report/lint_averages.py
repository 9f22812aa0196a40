"""Averages that are not the mean of their row, and averages over different tasks in one column.

An average agrees with a row if the mean of its cells can be rounded to it: each cell may be off by
half a unit of its last printed digit, and so may the average. Cards average over different sets of
columns (all; those since the last average; averages of averages); the set counts that explains the
most rows, so one odd row is an error and a habit is not. Where the card shows how many questions
each task has, the mean weighted by them counts as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forge.report.card_cells import Number
from forge.report.lint_finding import LintFinding
from forge.report.lint_view import Column, View

_SIZE_ROW: Final = re.compile(
    r"#|n|size|sizes|items|questions|samples|examples|count|number of .{1,30}|#\s?.{1,20}",
    re.IGNORECASE,
)
_SIZE_IN_HEAD: Final = re.compile(r"\((?:n\s?=\s?)?(\d{2,6})(?:\s(?:questions|items|samples))?\)")
_EDGE: Final = 1e-9
_LEAST_ROWS: Final = 3
"""Rows that must be there before columns are left out to explain them; fewer agree by chance."""
_MOST_SETTINGS: Final = 4


@dataclass(frozen=True, slots=True)
class _Mean:
    value: float
    tolerance: float
    num_cells: int

    def agrees(self, average: Number) -> bool:
        """Tell whether the mean can be rounded to a printed average, also one in percent."""
        slack = _half_unit(average.decimals) + _EDGE
        return any(
            abs(self.value * scale - average.value) <= self.tolerance * scale + slack
            for scale in (1.0, 100.0)
        )


def average_findings(view: View, others: Sequence[View]) -> list[LintFinding]:
    """Return what is wrong with the averages of a table.

    Args:
        view: The table.
        others: All other tables of the card, for averages that belong to one of them.
    """
    findings: list[LintFinding] = []
    sizes = _sizes(view)
    rows = [row for row in view.rows if not _SIZE_ROW.fullmatch(view.label(row))]
    for average in view.of_kind("average"):
        findings += _column_findings(view, average, rows, sizes, others)
    for average in view.of_kind("weighted"):
        findings += _bounds_findings(view, average, rows)
    return findings


def _column_findings(
    view: View,
    average: Column,
    rows: Sequence[int],
    sizes: dict[int, float],
    others: Sequence[View],
) -> list[LintFinding]:
    checked = [
        row for row in rows
        if view.number(row, average) and len(_present(view, row, view.of_kind("task"))) > 1
    ]  # fmt: skip
    if not checked:
        return []
    columns = max(
        _candidates(view, average, num_rows=len(checked)),
        key=lambda each: (
            sum(_agrees(view, row, average, each, sizes) for row in checked), len(each),
        ),
    )  # fmt: skip
    wrong = [row for row in checked if not _agrees(view, row, average, columns, sizes)]
    findings = _mixed(view, average, columns, [row for row in checked if row not in wrong])
    if len(wrong) == len(checked) >= _LEAST_ROWS and all(
        _within(view, row, average, columns) for row in wrong
    ):
        line, printed = view.cell(wrong[0], average).line, view.number(wrong[0], average)
        mean = _mean(view, wrong[0], columns)
        assert printed is not None
        assert mean is not None
        message = (
            f"None of the {len(wrong)} averages under '{average.name}' is the mean of the cells "
            f"shown ({view.label(wrong[0])}: {printed.text}, mean of {mean.num_cells} cells "
            f"{_shown(mean.value, printed)}). Say what they are the average of."
        )
        return [*findings, LintFinding("warning", "average", line, message)]
    return findings + [_wrong(view, row, average, columns, sizes, others) for row in wrong]


def _wrong(
    view: View,
    row: int,
    average: Column,
    columns: Sequence[Column],
    sizes: dict[int, float],
    others: Sequence[View],
) -> LintFinding:
    printed, mean = view.number(row, average), _mean(view, row, columns)
    assert printed is not None
    assert mean is not None
    message = (
        f"{view.label(row)}: the average {printed.text} is not the mean of its {mean.num_cells} "
        f"cells, which is {_shown(mean.value, printed)}."
    )
    weighted = _weighted(view, row, columns, sizes)
    if weighted is not None:
        message += f" Weighted by the sizes shown it is {_shown(weighted.value, printed)}."
    for other in others:
        elsewhere = _elsewhere(view.label(row), other, printed, mean.num_cells)
        if elsewhere is not None:
            message += (
                f" It is the mean of the same row's {elsewhere} cells in the table at line "
                f"{other.table.line}: a number of another task set."
            )
            break
    return LintFinding("error", "average", view.cell(row, average).line, message)


def _elsewhere(label: str, other: View, printed: Number, num_cells: int) -> int | None:
    """Return over how many cells of another table's row of that name an average is the mean."""
    for row in other.rows:
        mean = _mean(other, row, other.of_kind("task"))
        same = _key(other.label(row)) == _key(label)
        if same and mean is not None and mean.num_cells != num_cells and mean.agrees(printed):
            return mean.num_cells
    return None


def _mixed(
    view: View, average: Column, columns: Sequence[Column], rows: Sequence[int]
) -> list[LintFinding]:
    """Return rows whose average leaves out tasks that it has in other rows."""
    missing = {
        row: [column for column in columns if view.number(row, column) is None] for row in rows
    }
    if all(missing.values()) or not any(missing.values()):
        return []
    return [
        LintFinding(
            "warning", "task-set", view.cell(row, average).line,
            f"{view.label(row)}: its average is over {len(columns) - len(left)} of {len(columns)} "
            f"tasks (without {_names(left)}), beside averages over all of them. They cannot be "
            "compared.",
        )
        for row, left in missing.items()
        if left
    ]  # fmt: skip


def _bounds_findings(view: View, average: Column, rows: Sequence[int]) -> list[LintFinding]:
    """Return weighted averages that no weights give."""
    findings = []
    for row in rows:
        printed, columns = view.number(row, average), view.of_kind("task")
        if printed and len(_present(view, row, columns)) > 1 and not _within(
            view, row, average, columns
        ):  # fmt: skip
            values = [number.value for number in _present(view, row, columns)]
            findings.append(
                LintFinding(
                    "error", "average", view.cell(row, average).line,
                    f"{view.label(row)}: the weighted average {printed.text} is outside the range "
                    f"of its cells, {min(values):g} to {max(values):g}; no weights give it.",
                )
            )  # fmt: skip
    return findings


def _candidates(view: View, average: Column, *, num_rows: int) -> list[tuple[Column, ...]]:
    """Return the sets of columns that an average may be over, the likeliest first."""
    tasks, averages = view.of_kind("task"), view.of_kind("average")
    before = max((each.index for each in averages if each.index < average.index), default=-1)
    after = min((each.index for each in averages if each.index > average.index), default=1 << 30)
    rest = tuple(each for each in averages if each != average)
    left = tuple(each for each in tasks if each.index < average.index)
    sets = [
        tasks,
        tuple(each for each in left if before < each.index),
        left,
        tuple(each for each in tasks if average.index < each.index < after),
        rest,
        tuple(sorted((*tasks, *rest), key=lambda each: each.index)),
    ]
    if num_rows >= _LEAST_ROWS:
        # A column before the tasks may be a setting whose head says nothing, such as 'τ'.
        sets += [left[start:] for start in range(1, min(len(left) - 1, _MOST_SETTINGS + 1))]
    return [each for each in dict.fromkeys(sets) if len(each) > 1]


def _agrees(
    view: View, row: int, average: Column, columns: Sequence[Column], sizes: dict[int, float]
) -> bool:
    printed = view.number(row, average)
    means = (_mean(view, row, columns), _weighted(view, row, columns, sizes))
    return printed is not None and any(mean is not None and mean.agrees(printed) for mean in means)


def _mean(view: View, row: int, columns: Sequence[Column]) -> _Mean | None:
    numbers = _present(view, row, columns)
    return _weigh([(number, 1.0) for number in numbers]) if numbers else None


def _weighted(
    view: View, row: int, columns: Sequence[Column], sizes: dict[int, float]
) -> _Mean | None:
    if not all(column.index in sizes for column in columns):
        return None
    pairs = [
        (number, sizes[column.index])
        for column in columns
        if (number := view.number(row, column)) is not None
    ]
    return _weigh(pairs) if pairs else None


def _weigh(pairs: Sequence[tuple[Number, float]]) -> _Mean:
    # '74' among '74.72' has lost its zeros; it is no number rounded to whole points.
    decimals = sorted(number.decimals for number, _ in pairs)
    usual = decimals[len(decimals) // 2]
    total = sum(weight for _, weight in pairs)
    return _Mean(
        value=sum(number.value * weight for number, weight in pairs) / total,
        tolerance=sum(
            _half_unit(max(number.decimals, usual)) * weight for number, weight in pairs
        ) / total,
        num_cells=len(pairs),
    )  # fmt: skip


def _present(view: View, row: int, columns: Sequence[Column]) -> list[Number]:
    return [number for column in columns if (number := view.number(row, column)) is not None]


def _within(view: View, row: int, average: Column, columns: Sequence[Column]) -> bool:
    values = [number.value for number in _present(view, row, columns)]
    printed = view.number(row, average)
    if printed is None or not values:
        return True
    slack = _half_unit(printed.decimals) + _EDGE
    return min(values) - slack <= printed.value <= max(values) + slack


def _sizes(view: View) -> dict[int, float]:
    """Return how many questions tasks have, by the number of their column, where the card says."""
    found: dict[int, float] = {}
    for column in view.of_kind("task"):
        match = _SIZE_IN_HEAD.search(column.name)
        if match:
            found[column.index] = float(match[1])
    for row in view.rows:
        if _SIZE_ROW.fullmatch(view.label(row)):
            numbers = {c.index: view.number(row, c) for c in view.of_kind("task")}
            found |= {at: n.value for at, n in numbers.items() if n is not None and n.value > 0}
    return found


def _half_unit(decimals: int) -> float:
    return float(0.5 * 10.0**-decimals)


def _shown(value: float, like: Number) -> str:
    return f"{value:.{max(2, like.decimals)}f}"


def _names(columns: Sequence[Column]) -> str:
    shown = ", ".join(f"'{column.name}'" for column in columns[:3])
    return shown + (f" and {len(columns) - 3} more" if len(columns) > 3 else "")


def _key(label: str) -> str:
    return "".join(character for character in label.casefold() if character.isalnum())

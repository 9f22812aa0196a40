"""Table 2: tasks × models."""

from __future__ import annotations

from typing import Final

from forge.report.comparison import Comparison
from forge.report.comparison.scores import Average, Score, ScoreRow, ScoreTable, Standing
from forge.report.markup import EMPTY, Markup, element, escape, join
from forge.report.sections.parts import (
    ABSENT,
    Cell,
    Column,
    Section,
    bullets,
    fold,
    named,
    paragraph,
    table,
)
from forge.report.words import percent

_TAGS: Final = {"local": (), "api": ("API",), "ensemble": ("ensemble",)}


def score_tables(comparison: Comparison) -> Section:
    """Lay out the primary table, and the others folded below it."""
    if not comparison.tables:
        absent = paragraph("No model was evaluated; `forge eval` does.", role="absent")
        return Section("scores", "Table 2: tasks and models", absent)
    parts: list[Markup] = [paragraph(_lead(comparison), role="lead")]
    for number, found in enumerate(comparison.tables, start=1):
        body = join(
            (
                _table(comparison, found, number),
                _legend(comparison, found),
                fold(
                    "Option mass, missing answers and calibration error",
                    _reading(comparison, found, number),
                ),
            )
        )
        parts.append(body if found.primary or number == 1 else fold(_name(found), body))
    return Section("scores", "Table 2: tasks and models", join(parts))


def _lead(comparison: Comparison) -> str:
    first = comparison.tables[0]
    return (
        f"{_name(first)}; {first.shots} examples before each question, "
        f"{'through chat templates' if first.chat else 'no chat template'}, {first.sample}."
    )


def _name(found: ScoreTable) -> str:
    mode = "" if found.mode is None else f", {found.mode} scoring"
    chat = ", chat templates" if found.chat else ""
    return f"Suite {found.suite}: {found.metric}{mode}{chat}"


def _table(comparison: Comparison, found: ScoreTable, number: int) -> Markup:
    columns = [Column("Model", numeric=False, first="ascending")]
    columns += [Column(task.name, f"{task.num_items:,} items") for task in found.tasks]
    columns += [Column("Macro", "mean of tasks"), Column("Micro", "mean of items")]
    picked = next(
        (
            place
            for place, row in enumerate(found.rows)
            if row.model == comparison.recommendation.model
        ),
        None,
    )
    baselines = [task.majority for task in found.tasks]
    mode = "" if found.mode is None else f", {found.mode} scoring"
    return table(
        f"scores-{number}",
        columns,
        [_row(comparison, row) for row in found.rows],
        caption=f"{found.metric.capitalize()}{mode}, in percent.",
        picked=picked,
        foot=[_majority(found)] if any(share is not None for share in baselines) else [],
    )


def _row(comparison: Comparison, row: ScoreRow) -> list[Cell]:
    return [
        named(comparison, row.model, *_TAGS[row.kind]),
        *(_score(score) for score in row.scores),
        _average(row.macro),
        _average(row.micro),
    ]


def _majority(found: ScoreTable) -> list[Cell]:
    shares = [*(task.majority for task in found.tasks), found.majority_macro, None]
    cells = [ABSENT if share is None else _figure(share, None, None) for share in shares]
    return [Cell("Majority baseline"), *cells]


def _score(score: Score | None) -> Cell:
    if score is None:
        return ABSENT
    marks = ("†" if score.dagger else "") + ("" if score.same_items else "*")
    note = "" if score.same_items else f"{score.num_items} items, {score.num_seeds} seeds"
    return _figure(score.value, score.deviation, score.standing, marks=marks, note=note)


def _average(average: Average | None) -> Cell:
    if average is None:
        return ABSENT
    mark = "†" if average.dagger else ""
    return _figure(average.value, average.deviation, average.standing, marks=mark)


def _figure(
    value: float,
    deviation: float | None,
    standing: Standing | None,
    *,
    marks: str = "",
    note: str = "",
) -> Cell:
    # Spread and marks keep their place where there are none, so that figures stay in line.
    parts = (
        element("span", {"class": standing}, percent(value)),
        element("span", {"class": "spread"}, "" if deviation is None else f"±{percent(deviation)}"),
        element("span", {"class": "marks"}, marks),
        element("small", None, note) if note else EMPTY,
    )
    return Cell(join(parts), 100 * value)


def _legend(comparison: Comparison, found: ScoreTable) -> Markup:
    scores = [score for row in found.rows for score in row.scores if score is not None]
    averages = [average for row in found.rows for average in (row.macro, row.micro) if average]
    lines = [Markup("<b>Bold</b> is the best of its column, <u>underlined</u> the second.")]
    lines += [Markup("± is the standard deviation over the sets of examples.")] * any(
        score.deviation is not None for score in scores
    )
    daggers = [score.dagger for score in scores] + [average.dagger for average in averages]
    if any(daggers):
        sizes = ", ".join(
            f"{family.num_tests} tests in the family “{family.name}” at {family.alpha:g}"
            for family in comparison.settings.families
        )
        sentence = (
            "† differs from its baseline by an exact McNemar test after Holm's correction "
            f"({sizes}); no dagger is no proof of equality."
        )
        lines.append(escape(sentence))
    if any(not score.same_items for score in scores):
        lines.append(Markup("* other items or seeds than most: neither ranked nor averaged."))
    if any(row.kind == "ensemble" for row in found.rows):
        lines.append(Markup("An ensemble adds the option probabilities of its models."))
    return bullets([*lines, *found.notes], role="legend")


def _reading(comparison: Comparison, found: ScoreTable, number: int) -> Markup:
    columns = [Column("Model", numeric=False, first="ascending")]
    columns += [Column(task.name, "mass · missing · error", first=None) for task in found.tasks]
    rows = [
        [named(comparison, row.model, *_TAGS[row.kind]), *(_reading_cell(s) for s in row.scores)]
        for row in found.rows
    ]
    caption = (
        "Option mass: mean probability of all options together. Missing: share of answers from "
        "which no option can be read. Error: expected calibration error."
    )
    return table(f"reading-{number}", columns, rows, caption=caption)


def _reading_cell(score: Score | None) -> Cell:
    if score is None:
        return ABSENT
    shown = (
        "–" if score.option_mass is None else f"{score.option_mass:.2f}",
        "–" if score.missing is None else f"{percent(score.missing)} %",
        "–" if score.calibration_error is None else f"{score.calibration_error:.3f}",
    )
    return Cell(" · ".join(shown))

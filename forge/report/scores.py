"""Table 2: tasks × models, scored in one way.

Best and second are what a reader sees as such: values are compared as they are printed, to a tenth
of a point, and equal ones share the place. Only models that answered the same items with the same
seeds take part, so that no sample outshines the whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from forge.report.boards import AnswerReader, Board
from forge.report.comparison.scores import Average, Score, ScoreRow, ScoreTable, Standing, Task
from forge.report.figures import plural
from forge.report.lineup import Lineup
from forge.results.answers import Mode
from forge.results.records import EvaluationRecord, Json
from forge.statistics.summary import mean_and_deviation

Daggers = Mapping[tuple[str, str | None], bool]
"""Whether a model's difference from its baseline holds, by fingerprint and task; ``None``: all."""
Asked = tuple[tuple[int, frozenset[str]], ...]
"""Digests of the questions of each seed."""

_MISSING_METRIC: Final = "missing_rate"
_NO_COLUMN: Final = (_MISSING_METRIC, "majority_baseline")
_STANDARD_ERROR: Final = "_se"


@dataclass(frozen=True, slots=True)
class _Cell:
    asked: Asked
    values: dict[int, float]
    option_mass: float | None = None
    missing: float | None = None
    calibration_error: float | None = None

    @property
    def num_items(self) -> int:
        return max(len(items) for _, items in self.asked)


Cells = Mapping[tuple[str, str], _Cell]


def choice_table(
    board: Board,
    reader: AnswerReader,
    lineup: Lineup,
    *,
    mode: Mode,
    primary: bool,
    daggers: Daggers,
) -> ScoreTable:
    """Lay out the accuracies of a board.

    Args:
        board: Of multiple-choice questions.
        reader: Reads answers.
        lineup: The models.
        mode: Scoring mode.
        primary: Whether verdicts rest on it.
        daggers: Which differences hold.
    """
    cells = {
        (model, task): _choice_cell(board, reader, model, task, mode)
        for model in sorted(board.models())
        for task in board.tasks
        if board.seeds(model, task)
    }
    table = _table(board, cells, lineup, daggers, metric="accuracy", mode=mode, primary=primary)
    majority = tuple(_majority(board, reader, task, cells) for task in board.tasks)
    return replace(
        table,
        tasks=tuple(
            replace(task, majority=share)
            for task, share in zip(table.tasks, majority, strict=True)
        ),
        majority_macro=float(np.mean(majority)),
    )  # fmt: skip


def text_tables(board: Board, lineup: Lineup) -> tuple[ScoreTable, ...]:
    """Lay out the metrics of a board that is answered in words, a table for each.

    Args:
        board: Of questions that are answered in words.
        lineup: The models.
    """
    names = sorted(
        {
            name
            for evaluation in board.evaluations.values()
            for name, value in evaluation.metrics.items()
            if value is not None and name not in _NO_COLUMN and not name.endswith(_STANDARD_ERROR)
        }
    )
    tables = []
    for name in names:
        cells = {
            (model, task): cell
            for model in sorted(board.models())
            for task in board.tasks
            if (cell := _text_cell(board, model, task, name)) is not None
        }
        measured = replace(board, tasks=tuple(sorted({task for _, task in cells})))
        tables.append(_table(measured, cells, lineup, {}, metric=name, mode=None, primary=False))
    return tuple(tables)


def _choice_cell(board: Board, reader: AnswerReader, model: str, task: str, mode: Mode) -> _Cell:
    seeds = board.seeds(model, task)
    read = {seed: reader.read(board.evaluations[model, task, seed], mode) for seed in seeds}
    every = tuple(read.values())
    errors = [each.calibration_error for each in every if each.calibration_error is not None]
    return _Cell(
        asked=tuple((seed, frozenset(each.items)) for seed, each in read.items()),
        values={seed: each.accuracy for seed, each in read.items()},
        option_mass=float(np.concatenate([each.option_mass_N for each in every]).mean()),
        missing=float(np.concatenate([each.chosen_N < 0 for each in every]).mean()),
        calibration_error=float(np.mean(errors)) if errors and mode == "constrained" else None,
    )


def _text_cell(board: Board, model: str, task: str, metric: str) -> _Cell | None:
    found = {seed: board.evaluations[model, task, seed] for seed in board.seeds(model, task)}
    values = {
        seed: value
        for seed, evaluation in found.items()
        if (value := evaluation.metrics.get(metric)) is not None
    }
    if not values:
        return None
    missing = [
        share for seed in values if (share := found[seed].metrics.get(_MISSING_METRIC)) is not None
    ]
    asked = tuple((seed, frozenset(digest for digest, _ in found[seed].items)) for seed in values)
    return _Cell(asked, values, missing=float(np.mean(missing)) if missing else None)


def _table(
    board: Board,
    cells: Cells,
    lineup: Lineup,
    daggers: Daggers,
    *,
    metric: str,
    mode: Mode | None,
    primary: bool,
) -> ScoreTable:
    usual = {task: _usual(cells, task) for task in board.tasks}
    rows = []
    notes = []
    for entry in lineup.entries:
        model = entry.record.fingerprint
        if model not in board.models():
            continue
        found = {task: cells.get((model, task)) for task in board.tasks}
        scores = [
            None if cell is None
            else _score(cell, usual[task], dagger=daggers.get((model, task), False))
            for task, cell in found.items()
        ]  # fmt: skip
        complete = [
            cell
            for task, cell in found.items()
            if cell is not None and cell.asked == usual[task]
        ]  # fmt: skip
        macro = micro = None
        if len(complete) == len(board.tasks):
            macro = _average(complete, weighted=False, dagger=False)
            micro = _average(complete, weighted=True, dagger=daggers.get((model, None), False))
        notes += _notes(entry.label, found, usual)
        rows.append(ScoreRow(entry.label, entry.record.kind, tuple(scores), macro, micro))
    evaluations = list(board.evaluations.values())
    notes += _dtype_notes(board, lineup)
    return ScoreTable(
        suite=board.key.suite,
        metric=metric,
        mode=mode,
        chat=board.key.chat,
        shots=_range_text({evaluation.shots for evaluation in evaluations}),
        primary=primary,
        tasks=tuple(
            Task(task, max(len(items) for _, items in usual[task]), None,
                 tuple(seed for seed, _ in usual[task]))
            for task in board.tasks
        ),
        rows=_ranked(rows, len(board.tasks)),
        majority_macro=None,
        sample=_sample(evaluations),
        notes=(*notes, *board.notices),
    )  # fmt: skip


def _usual(cells: Cells, task: str) -> Asked:
    """Return the questions and seeds that most models have; of equal ones the larger set."""
    counted = Counter(cell.asked for (_, name), cell in cells.items() if name == task)
    return max(
        counted,
        key=lambda asked: (counted[asked], sum(len(items) for _, items in asked)),
    )


def _score(cell: _Cell, usual: Asked, *, dagger: bool) -> Score:
    value, deviation = mean_and_deviation(list(cell.values.values()))
    return Score(
        value=value,
        deviation=deviation if len(cell.values) > 1 else None,
        num_seeds=len(cell.values),
        num_items=cell.num_items,
        same_items=cell.asked == usual,
        standing=None,
        dagger=dagger,
        option_mass=cell.option_mass,
        missing=cell.missing,
        calibration_error=cell.calibration_error,
    )


def _average(cells: Sequence[_Cell], *, weighted: bool, dagger: bool) -> Average:
    weights = [cell.num_items if weighted else 1 for cell in cells]
    seeds = [seed for seed in cells[0].values if all(seed in cell.values for cell in cells)]
    means = [float(np.mean(list(cell.values.values()))) for cell in cells]
    by_seed = [
        float(np.average([cell.values[seed] for cell in cells], weights=weights)) for seed in seeds
    ]
    return Average(
        value=float(np.average(means, weights=weights)),
        deviation=mean_and_deviation(by_seed)[1] if len(by_seed) > 1 else None,
        standing=None,
        dagger=dagger,
    )


def _ranked(rows: Sequence[ScoreRow], num_tasks: int) -> tuple[ScoreRow, ...]:
    places = [
        _standings(
            score.value if score is not None and score.same_items else None
            for score in (row.scores[column] for row in rows)
        )
        for column in range(num_tasks)
    ]
    macro = _standings(row.macro.value if row.macro else None for row in rows)
    micro = _standings(row.micro.value if row.micro else None for row in rows)
    return tuple(
        replace(
            row,
            scores=tuple(
                None if score is None else replace(score, standing=places[column][number])
                for column, score in enumerate(row.scores)
            ),
            macro=row.macro and replace(row.macro, standing=macro[number]),
            micro=row.micro and replace(row.micro, standing=micro[number]),
        )
        for number, row in enumerate(rows)
    )


def _standings(values: Iterable[float | None]) -> list[Standing | None]:
    """Return who is best and second; nobody where fewer than two take part."""
    printed = [None if value is None else round(100 * value, 1) for value in values]
    order = sorted({value for value in printed if value is not None}, reverse=True)
    if sum(value is not None for value in printed) < 2:
        return [None] * len(printed)
    names: tuple[Standing, Standing] = ("best", "second")
    places = dict(zip(order, names, strict=False))
    return [None if value is None else places.get(value) for value in printed]


def _majority(board: Board, reader: AnswerReader, task: str, cells: Cells) -> float:
    """Return the accuracy of always giving the commonest right option."""
    digests = sorted({digest for _, items in _usual(cells, task) for digest in items})
    golds = Counter(reader.items[digest].gold for digest in digests)
    return max(golds.values()) / len(digests)


def _notes(label: str, found: Mapping[str, _Cell | None], usual: Mapping[str, Asked]) -> list[str]:
    lacking = [task for task, cell in found.items() if cell is None]
    other = [
        f"{task} ({plural(cell.num_items, 'item')}, {plural(len(cell.values), 'seed')})"
        for task, cell in found.items()
        if cell is not None and cell.asked != usual[task]
    ]
    notes = []
    if lacking:
        notes.append(f"{label} has no average: it lacks {', '.join(lacking)}.")
    if other:
        notes.append(
            f"{label} answered other items or seeds than most: {', '.join(other)}. Its figures "
            "there are shown, but neither ranked nor averaged."
        )
    return notes


def _dtype_notes(board: Board, lineup: Lineup) -> list[str]:
    """Say who computed otherwise than the rest."""
    ways: dict[str, list[str]] = {}
    for entry in lineup.entries:
        found = sorted(
            {
                " ".join(filter(None, (evaluation.backend, evaluation.dtype)))
                for (model, _, _), evaluation in board.evaluations.items()
                if model == entry.record.fingerprint
            }
        )
        if found:
            ways.setdefault(", ".join(found), []).append(entry.label)
    if len(ways) < 2:
        return []
    return [
        "Answers were computed in several ways: "
        + "; ".join(f"{way}: {', '.join(labels)}" for way, labels in ways.items())
        + "."
    ]


def _range_text(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}-{high}"


def _sample(evaluations: Sequence[EvaluationRecord]) -> str:
    texts = sorted({_sample_text(evaluation.sample) for evaluation in evaluations})
    return "; ".join(text for text in texts if text)


def _sample_text(sample: Json) -> str:
    quick, drawn = sample.get("quick"), sample.get("drawn")
    if isinstance(quick, int):
        return f"at most {quick} items of a task, {drawn}"
    return "all items" if drawn == "all" else str(drawn or "")

"""What a comparison holds of accuracy: table 2, and how far confidence agrees with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from forge.results.answers import Mode

Standing = Literal["best", "second"]
"""Bold and underlined in table 2."""


@dataclass(frozen=True, slots=True)
class Task:
    """A column of table 2.

    Attributes:
        name: Of the task.
        num_items: Items that most models of the table answered.
        majority: Accuracy of always giving the commonest answer, or ``None`` for text.
        seeds: Sets of examples that were used.
    """

    name: str
    num_items: int
    majority: float | None
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """A cell of table 2.

    Attributes:
        value: Mean over seeds of the table's metric, a share.
        deviation: Population standard deviation over seeds; ``None`` with one seed.
        num_seeds: How many seeds there are.
        num_items: Items of each seed.
        same_items: Whether they are the items and seeds of most models of the table; others are
            shown, and take no part in best, second and averages.
        standing: Best or second of its column, or ``None``.
        dagger: Whether it differs from its baseline after Holm's correction.
        option_mass: Mean probability of all options together, or ``None``.
        missing: Share of answers from which no option can be read, or ``None``.
        calibration_error: Expected calibration error, or ``None``.
    """

    value: float
    deviation: float | None
    num_seeds: int
    num_items: int
    same_items: bool
    standing: Standing | None
    dagger: bool
    option_mass: float | None
    missing: float | None
    calibration_error: float | None


@dataclass(frozen=True, slots=True)
class Average:
    """A mean over all tasks of a table.

    Attributes:
        value: Mean over seeds, a share.
        deviation: Population standard deviation over seeds, or ``None``.
        standing: Best or second of its column, or ``None``.
        dagger: For the micro average, whether the pooled difference from the baseline holds.
    """

    value: float
    deviation: float | None
    standing: Standing | None
    dagger: bool


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A row of table 2.

    Attributes:
        model: Label.
        kind: Of the model.
        scores: One for each task of the table, or ``None``.
        macro: Mean over tasks, each counted once; ``None`` where a task is missing.
        micro: Mean over items, each counted once; likewise.
    """

    model: str
    kind: Literal["local", "api", "ensemble"]
    scores: tuple[Score | None, ...]
    macro: Average | None
    micro: Average | None


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Table 2: tasks × models of one suite, scored in one way.

    Attributes:
        suite: Name.
        metric: ``accuracy``, or the metric of a suite that is answered in words.
        mode: Scoring mode; ``None`` for answers in words.
        chat: Whether prompts went through chat templates.
        shots: Examples before each question, such as ``3``, or a range, such as ``0-3``.
        primary: Whether verdicts rest on this table.
        tasks: Columns.
        rows: In the order of the comparison's models.
        majority_macro: Mean of the tasks' majority baselines, or ``None``.
        sample: How items were drawn, in words.
        notes: What the reader should know, such as who has no average and why.
    """

    suite: str
    metric: str
    mode: Mode | None
    chat: bool
    shots: str
    primary: bool
    tasks: tuple[Task, ...]
    rows: tuple[ScoreRow, ...]
    majority_macro: float | None
    sample: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Answers of similar confidence.

    Attributes:
        low: Least confidence of the bin.
        high: Greatest.
        num_answers: How many.
        confidence: Their mean confidence.
        accuracy: Share of them that is right.
    """

    low: float
    high: float
    num_answers: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """How a model's confidence agrees with its accuracy over the primary table.

    Attributes:
        model: Label.
        calibration_error: Expected calibration error over all answers.
        bins: Those that are not empty, in order of confidence.
    """

    model: str
    calibration_error: float
    bins: tuple[ReliabilityBin, ...]

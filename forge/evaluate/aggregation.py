"""From evaluations to the figures of a table: over seeds, over tasks, over items.

    of a task    mean ± population standard deviation over its seeds (sets of examples)
    macro        unweighted mean over the tasks, ± the deviation of that mean over seeds
    micro        mean over all items, so tasks weigh by their size

What was computed differently is never averaged together: another model, backend, type, chat
template, scoring or sample size is another summary. Names of metrics carry the scoring mode, so the
modes cannot mix. An average is there only if every task has the metric for the same seeds, where a
task without examples that was run once counts for all; it says which tasks it is over, and which
of the suite's are absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from forge.core.errors import EvaluationError
from forge.results.records import EvaluationRecord
from forge.statistics.summary import mean_and_deviation

_NOT_OF_ITEMS: Final = ("_se", "/ece", "/ece_scaled", "macro_f1", "balanced_accuracy")
"""Ends of the names of metrics that are no mean over items, and so have no micro average."""
_NO_AVERAGE: Final = ("_se",)
"""Ends of the names of metrics whose mean over tasks means nothing."""


@dataclass(frozen=True, slots=True)
class MeanAndDeviation:
    """A figure of a table.

    Attributes:
        mean: The mean over seeds.
        deviation: The population standard deviation over seeds; 0 with one.
    """

    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """A task over its seeds.

    Attributes:
        task: Its name.
        kind: ``choice`` or ``text``.
        seeds: The seeds, in order.
        num_items: Items of each evaluation.
        metrics: By name; ``None`` where a seed has no value.
    """

    task: str
    kind: str
    seeds: tuple[int, ...]
    num_items: int
    metrics: Mapping[str, MeanAndDeviation | None]


@dataclass(frozen=True, slots=True)
class SuiteSummary:
    """A model on a suite.

    Attributes:
        model: Fingerprint of the model.
        suite: Name of the suite.
        backend: What computed the answers.
        dtype: Type of the arithmetic, or ``None`` behind an API.
        chat: Whether prompts went through the chat template.
        scoring_version: Version of the scoring.
        quick: Items asked for a task, or ``None`` for all.
        tasks: The tasks, in the order asked for, or by name.
        absent: Tasks that were asked for and have no evaluation. Averages do not cover them.
        macro: Unweighted means over tasks by metric; ``None`` where they have no common seeds or
            one has no value.
        micro: Means over items by metric, of metrics that are means over items.
        averaged: For each metric of ``macro`` and ``micro`` the tasks that have it.
    """

    model: str
    suite: str
    backend: str
    dtype: str | None
    chat: bool
    scoring_version: int
    quick: int | None
    tasks: tuple[TaskSummary, ...]
    absent: tuple[str, ...]
    macro: Mapping[str, MeanAndDeviation | None]
    micro: Mapping[str, MeanAndDeviation | None]
    averaged: Mapping[str, tuple[str, ...]]


Group = tuple[str, str, str, str | None, bool, int, int | None]


def aggregate(
    records: Sequence[EvaluationRecord], *, tasks: Sequence[str] | None = None
) -> tuple[SuiteSummary, ...]:
    """Summarize evaluations, one summary for each model, suite and way of computing.

    Args:
        records: Evaluations.
        tasks: Names of the suite's tasks, to order tables and to know what is absent; tasks that
            are not among them are left out. By default those that are there, by name.

    Returns:
        The summaries, in the order in which their first evaluations come.

    Raises:
        EvaluationError: A task has two evaluations that differ only in their data or their suite.
    """
    groups: dict[Group, list[EvaluationRecord]] = {}
    for record in records:
        if tasks is None or record.task in tasks:
            groups.setdefault(_group(record), []).append(record)
    return tuple(_summary(group, held, tasks) for group, held in groups.items())


def _group(record: EvaluationRecord) -> Group:
    quick = record.sample.get("quick")
    return (
        record.model, record.suite, record.backend, record.dtype, record.chat,
        record.scoring_version, quick if isinstance(quick, int) else None,
    )  # fmt: skip


def _summary(
    group: Group, records: Sequence[EvaluationRecord], tasks: Sequence[str] | None
) -> SuiteSummary:
    held: dict[str, dict[int, EvaluationRecord]] = {}
    for record in records:
        of_task = held.setdefault(record.task, {})
        if record.seed in of_task and of_task[record.seed].key != record.key:
            raise EvaluationError(
                f"Task '{record.task}' of suite '{record.suite}' was evaluated twice with the set "
                f"of examples {record.seed}, on other data or by another suite file. Choose one, "
                "or use a results file of its own."
            )
        of_task[record.seed] = record
    order = [task for task in tasks if task in held] if tasks is not None else sorted(held)
    by_task = {task: dict(sorted(held[task].items())) for task in order}
    names = list(dict.fromkeys(
        name for of_task in by_task.values() for record in of_task.values()
        for name in record.metrics if not name.endswith(_NO_AVERAGE)
    ))  # fmt: skip
    averaged = {
        name: {
            task: of_task
            for task, of_task in by_task.items()
            if any(name in record.metrics for record in of_task.values())
        }
        for name in names
    }
    model, suite, backend, dtype, chat, version, quick = group
    return SuiteSummary(
        model=model,
        suite=suite,
        backend=backend,
        dtype=dtype,
        chat=chat,
        scoring_version=version,
        quick=quick,
        tasks=tuple(_task_summary(task, of_task) for task, of_task in by_task.items()),
        absent=tuple(task for task in tasks or () if task not in held),
        macro={name: _average(name, averaged[name], by_items=False) for name in names},
        micro={
            name: _average(name, averaged[name], by_items=True)
            for name in names
            if not name.endswith(_NOT_OF_ITEMS)
        },
        averaged={name: tuple(of_tasks) for name, of_tasks in averaged.items()},
    )


def _task_summary(task: str, records: Mapping[int, EvaluationRecord]) -> TaskSummary:
    first = next(iter(records.values()))
    names = dict.fromkeys(name for record in records.values() for name in record.metrics)
    metrics = {
        name: _spread([record.metrics.get(name) for record in records.values()]) for name in names
    }
    return TaskSummary(task, first.kind, tuple(records), len(first.items), metrics)


def _average(
    name: str, by_task: Mapping[str, Mapping[int, EvaluationRecord]], *, by_items: bool
) -> MeanAndDeviation | None:
    """Average over tasks for each seed, and then over seeds."""
    constant = [of_task for of_task in by_task.values() if _is_constant(of_task)]
    seeds = {tuple(of_task) for of_task in by_task.values() if of_task not in constant}
    if len(seeds) > 1:
        return None
    means: list[float | None] = []
    for seed in next(iter(seeds), (0,)):
        records = [
            next(iter(of_task.values())) if of_task in constant else of_task[seed]
            for of_task in by_task.values()
        ]
        values = [record.metrics.get(name) for record in records]
        weights = [len(record.items) if by_items else 1 for record in records]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        total = sum(value * weight for value, weight in zip(known, weights, strict=True))
        means.append(total / sum(weights))
    return _spread(means)


def _is_constant(records: Mapping[int, EvaluationRecord]) -> bool:
    """Tell whether a task was run once because without examples all seeds are the same."""
    return len(records) == 1 and next(iter(records.values())).shots == 0


def _spread(values: Sequence[float | None]) -> MeanAndDeviation | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    return MeanAndDeviation(*mean_and_deviation(known))

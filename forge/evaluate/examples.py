"""The examples before a question: published with the suite, drawn from a pool, or held out.

A set of examples is identified by a seed. Where the suite publishes it, those items it is, whatever
data there is. Else it is drawn from the task's pool: the items with the smallest digests of seed,
task and content, so that the order of the pool's files means nothing. No label is drawn a second
time before each was drawn once, because a model that is shown three times yes says yes, and no two
seeds show the same items where the pool has others. Where the pool is not at hand either, a set is
drawn in the same way from the questions themselves.

All items of all sets of the suite are kept out of the evaluation, so that each seed is evaluated on
the same items, and none on an example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from forge.core.errors import EvaluationError
from forge.evaluate.rows import Row, read_rows, refuse
from forge.evaluate.task_data import has_source, read_source
from forge.evaluate.task_items import TaskItem, read_items
from forge.evaluate.task_spec import Columns, TaskSpec
from forge.results.records import digest_of

Origin = Literal["none", "published", "pool", "held out"]
"""Where examples come from."""
_ATTEMPTS: Final = 16
"""Draws for a seed, of which the first is taken that shows other items than seeds before it."""


@dataclass(frozen=True, slots=True)
class ExampleSets:
    """The sets of examples of a task.

    Attributes:
        sets: For each seed of the suite its examples, in the order in which they are shown.
        origin: Where they come from.
    """

    sets: dict[int, tuple[TaskItem, ...]]
    origin: Origin

    @property
    def contents(self) -> frozenset[str]:
        """Digests of what all sets ask."""
        return frozenset(item.content for held in self.sets.values() for item in held)


def example_sets(
    task: TaskSpec, items: Sequence[TaskItem], *, data_dir: Path | None
) -> ExampleSets:
    """Return the sets of examples of a task.

    Args:
        task: The task.
        items: All of its questions.
        data_dir: The folder that replaces the Hub, or ``None``.

    Returns:
        The sets.

    Raises:
        EvaluationError: Published examples are malformed, a pool is too small, or too few
            questions are left.
    """
    if task.shots == 0:
        return ExampleSets(dict.fromkeys(task.seeds, ()), "none")
    if published := _published(task):
        return ExampleSets(published, "published")
    if task.pool is not None and has_source(task.pool, data_dir):
        files = read_source(task, task.pool, task.pool_columns, data_dir=data_dir)
        pool = read_items(task, files, task.pool_columns, lenient=True)
        return ExampleSets(_drawn(task, pool, where="its pool"), "pool")
    sets = _drawn(task, items, where="its own questions, for want of a pool,")
    return ExampleSets(sets, "held out")


def _drawn(
    task: TaskSpec, pool: Sequence[TaskItem], *, where: str
) -> dict[int, tuple[TaskItem, ...]]:
    distinct = {item.content: item for item in pool}
    if len(distinct) < task.shots:
        raise EvaluationError(
            f"Task '{task.name}' needs {task.shots} examples, but {where} has {len(distinct)}."
        )
    sets: dict[int, tuple[TaskItem, ...]] = {}
    for seed in task.seeds:
        before = [_contents(held) for held in sets.values()]
        # The pool of MMLU has five items: without this, two seeds soon show the same three.
        tries = (_draw(task, distinct, (seed, attempt)) for attempt in range(_ATTEMPTS))
        fresh = next((held for held in tries if _contents(held) not in before), None)
        sets[seed] = fresh or _draw(task, distinct, (seed, 0))
    return sets


def _draw(
    task: TaskSpec, distinct: Mapping[str, TaskItem], key: tuple[int, int]
) -> tuple[TaskItem, ...]:
    """Draw one set: in the order of digests, but no label twice before each was there once."""
    left = sorted(distinct, key=lambda content: digest_of("example", *key, task.name, content))
    taken: list[TaskItem] = []
    labels: set[str] = set()
    while len(taken) < task.shots:
        chosen = next((c for c in left if distinct[c].record.label not in labels), None)
        if chosen is None:
            labels.clear()
            continue
        left.remove(chosen)
        taken.append(distinct[chosen])
        labels.add(distinct[chosen].record.label)
    return tuple(taken)


def _contents(held: Sequence[TaskItem]) -> frozenset[str]:
    return frozenset(item.content for item in held)


def _published(task: TaskSpec) -> dict[int, tuple[TaskItem, ...]]:
    """Return the sets that lie beside the suite; empty if there are none of this task."""
    if task.examples is None:
        return {}
    path = task.folder / task.examples
    by_seed: dict[int, list[Row]] = {seed: [] for seed in task.seeds}
    for row in read_rows(path):
        seed = row.values.get("seed")
        if row.values.get("task") == task.examples_of and isinstance(seed, int) and seed in by_seed:
            by_seed[seed].append(row)
    if not any(by_seed.values()):
        return {}
    sets = {seed: _read_set(task, path, rows) for seed, rows in by_seed.items()}
    wrong = [
        f"has {len(held)} examples of task '{task.name}' and seed {seed}, not {task.shots}."
        for seed, held in sets.items()
        if len(held) != task.shots
    ]
    if wrong:
        raise refuse(path, wrong)
    return sets


def _read_set(task: TaskSpec, path: Path, rows: Sequence[Row]) -> tuple[TaskItem, ...]:
    columns = Columns(
        question="question",
        context=None if task.columns.context is None else "context",
        options=() if task.columns.fixed_options else ("options",),
        fixed_options=task.columns.fixed_options,
        answer="answer",
        answer_is="letter",
        reference="reference" if task.kind == "text" else None,
        id="id",
    )
    return tuple(read_items(task, [(str(path), rows)], columns))

"""Make a task ready to be asked: questions, examples and rendered prompts, without any model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from forge.core.errors import EvaluationError
from forge.evaluate.contract import ChoiceRequest, TextRequest
from forge.evaluate.examples import ExampleSets, example_sets
from forge.evaluate.prompts import RENDERING_VERSION, Chat, render
from forge.evaluate.sampling import detectable, labels_of, stratified
from forge.evaluate.task_data import read_source
from forge.evaluate.task_items import TaskItem, read_items
from forge.evaluate.task_spec import TaskSpec
from forge.results.records import ItemRecord, digest_of


@dataclass(frozen=True, slots=True)
class PreparedTask:
    """A task with one set of examples, ready to be asked.

    Attributes:
        task: The task.
        seed: The set of examples.
        items: The questions, ordered by name.
        requests: What to ask of a model, in the same order; all prompts have the same prefix.
        shots: The examples, in the order in which they are shown.
        sample: How many ``items`` ``of`` how many; ``quick`` (what was asked for, or ``None``);
            ``drawn`` in words; ``labels`` with their counts; ``examples`` (where they come from)
            and ``held_out`` (items kept out because they are examples); ``detectable`` in words.
        digest: Digest of all that the requests depend on: what the suite says of the task, the
            data, the seed, the sample and the rendering.
    """

    task: TaskSpec
    seed: int
    items: tuple[ItemRecord, ...]
    requests: tuple[ChoiceRequest | TextRequest, ...]
    shots: tuple[ItemRecord, ...]
    sample: Mapping[str, object]
    digest: str


def prepare_task(
    task: TaskSpec,
    *,
    seed: int,
    data_dir: Path | None,
    quick: int | None,
    chat: Chat | None = None,
) -> PreparedTask:
    """Make a task ready.

    Args:
        task: The task.
        seed: The set of examples; one of ``task.seeds``.
        data_dir: Folder with the files that replace the Hub, or ``None`` to fetch.
        quick: How many items to take, at least 1; ``None`` for all. The sample is the same for all
            sets of examples.
        chat: Renders messages with a model's chat template, up to where its answer begins;
            ``None`` for plain text.

    Returns:
        The task, ready. The same arguments and data give the same value, whatever the order of
        rows in the data's files.

    Raises:
        EvaluationError: The suite has no such seed; a file is missing or malformed; too few items
            are left; or the chat template leaves questions out.
    """
    if seed not in task.seeds:
        raise EvaluationError(
            f"The suite '{task.suite}' has no set of examples {seed}: it has "
            f"{', '.join(map(str, task.seeds))}."
        )
    if quick is not None and quick < 1:
        raise EvaluationError(f"A sample of {quick} items measures nothing; take at least 1.")
    files = read_source(task, task.data, task.columns, data_dir=data_dir)
    everything = read_items(task, files, task.columns)
    examples = example_sets(task, everything, data_dir=data_dir)
    left = [item for item in everything if item.content not in examples.contents]
    if not left:
        raise EvaluationError(
            f"Task '{task.name}' has {len(everything)} items, and all of them are examples."
        )
    by_id = {item.record.item_id: item for item in left}
    records = stratified([item.record for item in left], quick or len(left), seed=task.sample_seed)
    shots = examples.sets[seed]
    requests = render(task, [by_id[record.item_id] for record in records], shots, chat=chat)
    sample = _sample(task, records, everything, left, examples, quick)
    return PreparedTask(
        task, seed, records, requests, tuple(shot.record for shot in shots), sample,
        digest_of(
            "prepared", RENDERING_VERSION, task.digest, seed,
            [record.digest for record in records], [shot.record.digest for shot in shots],
            requests[0].prompt.prefix, [request.prompt.suffix for request in requests],
        ),
    )  # fmt: skip


def _sample(
    task: TaskSpec,
    records: tuple[ItemRecord, ...],
    everything: list[TaskItem],
    left: list[TaskItem],
    examples: ExampleSets,
    quick: int | None,
) -> dict[str, object]:
    drawn = f"stratified by label, seed {task.sample_seed}" if len(records) < len(left) else "all"
    return {
        "items": len(records),
        "of": len(everything),
        "quick": quick,
        "drawn": drawn,
        "labels": labels_of(records),
        "examples": examples.origin,
        "held_out": len(everything) - len(left),
        "detectable": detectable(len(records)),
    }

"""Print what an evaluation found: tasks down, models across."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from forge.cli.tables import table

if TYPE_CHECKING:
    from forge.evaluate.aggregation import MeanAndDeviation, SuiteSummary
    from forge.evaluate.run import EvaluationRun

_PERCENT: Final = 100.0
_DIAGNOSTICS: Final = (
    ("missing", "{mode}/missing_rate"),
    ("option mass", "option_mass"),
    ("majority", "majority_baseline"),
    ("ECE", "constrained/ece"),
)
_OF_TEXT: Final = (("ROUGE-L", "rougeL"), ("decisions", "decision_accuracy"),
                   ("no decision", "missing_rate"), ("majority", "majority_baseline"))  # fmt: skip


def run_text(run: EvaluationRun, *, mode: str, width: int | None) -> str:
    """Return the tables of a run.

    Args:
        run: The run.
        mode: ``constrained`` or ``unconstrained``.
        width: Columns of the terminal, or ``None``.
    """
    labels = {model.fingerprint: model.label for model in run.models}
    parts = []
    for kind, build in (("choice", _choice_table), ("text", _words_table)):
        held = [
            summary for summary in run.summaries
            if any(task.kind == kind for task in summary.tasks)
        ]  # fmt: skip
        if held:
            parts.append(build(held, labels, mode, width))
    return "\n\n".join([*parts, *_notes(run)])


def _choice_table(
    summaries: Sequence[SuiteSummary], labels: Mapping[str, str], mode: str, width: int | None
) -> str:
    accuracy = f"{mode}/accuracy"
    heads = ["task", "items", *(labels[each.model] for each in summaries)]
    rows = []
    for task, count in _tasks(summaries, "choice").items():
        rows.append([task, f"{count:,}", *(_of(each, task, accuracy) for each in summaries)])
    rows.append(["macro average", "", *(_cell(each.macro.get(accuracy)) for each in summaries)])
    rows.append(["micro average", "", *(_cell(each.micro.get(accuracy)) for each in summaries)])
    for title, name in _DIAGNOSTICS:
        metric = name.format(mode=mode)
        rows.append([title, "", *(_cell(each.macro.get(metric)) for each in summaries)])
    title = (
        f"Accuracy in %, {mode} (the likeliest "
        f"{'option' if mode == 'constrained' else 'token of all'}), mean ± standard deviation "
        "over sets of examples"
    )
    return f"{title}\n\n{table(heads, rows, right=heads[1:], width=width)}"


def _words_table(
    summaries: Sequence[SuiteSummary], labels: Mapping[str, str], mode: str, width: int | None
) -> str:
    heads = ["task", "items", *(labels[each.model] for each in summaries)]
    rows = []
    for task, count in _tasks(summaries, "text").items():
        for title, name in _OF_TEXT:
            cells = [_of(each, task, name) for each in summaries]
            if any(cells):
                rows.append([f"{task}: {title}", f"{count:,}", *cells])
    return f"Answers in words, in %\n\n{table(heads, rows, right=heads[1:], width=width)}"


def _tasks(summaries: Sequence[SuiteSummary], kind: str) -> dict[str, int]:
    """Return the items of each task of a kind, in the order in which tasks come."""
    return {
        task.task: task.num_items
        for summary in summaries
        for task in summary.tasks
        if task.kind == kind
    }


def _of(summary: SuiteSummary, task: str, metric: str) -> str:
    held = next((each for each in summary.tasks if each.task == task), None)
    return "" if held is None else _cell(held.metrics.get(metric))


def _cell(value: MeanAndDeviation | None) -> str:
    if value is None:
        return ""
    text = f"{_PERCENT * value.mean:.1f}"
    return f"{text} ± {_PERCENT * value.deviation:.1f}" if value.deviation else text


def _notes(run: EvaluationRun) -> list[str]:
    first = run.summaries[0] if run.summaries else None
    if first is None or first.quick is None:
        return []
    said = dict.fromkeys(
        str(record.sample["detectable"])
        for record in run.evaluations
        if "detectable" in record.sample
    )
    return ["\n".join(["A quick run:", *(f"  {text}" for text in said)])]


def run_json(run: EvaluationRun) -> dict[str, object]:
    """Return a run as plain JSON values, without the single items."""
    return {
        "models": [
            {"fingerprint": each.fingerprint, "label": each.label, "kind": each.kind,
             "location": each.location, "members": list(each.members)}
            for each in run.models
        ],
        "summaries": [_plain(asdict(each)) for each in run.summaries],
        "evaluations": [
            {key: value for key, value in asdict(each).items() if key != "items"}
            for each in run.evaluations
        ],
        "computed": run.computed,
        "reused": run.reused,
    }  # fmt: skip


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Averages over seeds, tasks and items, and what is never averaged together."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from forge.core.errors import EvaluationError
from forge.evaluate.scoring import MeanAndDeviation, aggregate
from forge.results.records import EvaluationRecord

ACCURACY = "constrained/accuracy"


def _record(
    task: str, seed: int, accuracy: float | None, *, count: int = 10, **changes: object
) -> EvaluationRecord:
    record = EvaluationRecord(
        key=f"{task}-{seed}-{accuracy}-{count}-{sorted(changes.items())}",
        model="m", suite="medical", task=task, kind="choice", seed=seed, shots=3, backend="forge",
        dtype="float32", chat=False, scoring_version=1,
        sample={"items": count, "of": 1000, "quick": None},
        metrics={
            ACCURACY: accuracy, "unconstrained/accuracy": 0.1, "constrained/ece": 0.2,
            "constrained/accuracy_se": 0.05,
        },
        items=tuple((f"{task}{n}", "a") for n in range(count)), suite_digest="d",
    )  # fmt: skip
    return replace(record, **changes)  # type: ignore[arg-type]


TABLE = {"a": ([0.5, 0.6, 0.7], 10), "b": ([0.2, 0.2, 0.5], 90)}
RECORDS = [
    _record(task, seed, value, count=count)
    for task, (values, count) in TABLE.items()
    for seed, value in enumerate(values, start=1)
]


def test_a_task_has_its_mean_and_population_deviation_over_seeds() -> None:
    (summary,) = aggregate(RECORDS)
    assert [(task.task, task.seeds, task.num_items) for task in summary.tasks] == [
        ("a", (1, 2, 3), 10), ("b", (1, 2, 3), 90),
    ]  # fmt: skip
    for task in summary.tasks:
        found = task.metrics[ACCURACY]
        assert found is not None
        values = TABLE[task.task][0]
        assert found.mean == pytest.approx(statistics.fmean(values))
        assert found.deviation == pytest.approx(statistics.pstdev(values))


def test_macro_weighs_tasks_alike_and_micro_items() -> None:
    (summary,) = aggregate(RECORDS)
    macros = [(x + y) / 2 for x, y in zip(TABLE["a"][0], TABLE["b"][0], strict=True)]
    micros = [0.1 * x + 0.9 * y for x, y in zip(TABLE["a"][0], TABLE["b"][0], strict=True)]
    for averages, values in ((summary.macro, macros), (summary.micro, micros)):
        found = averages[ACCURACY]
        assert found is not None
        assert found.mean == pytest.approx(statistics.fmean(values))
        assert found.deviation == pytest.approx(statistics.pstdev(values))
    assert summary.macro["unconstrained/accuracy"] == MeanAndDeviation(
        pytest.approx(0.1), pytest.approx(0)
    )
    assert summary.averaged[ACCURACY] == ("a", "b")
    assert "constrained/ece" in summary.macro
    assert "constrained/ece" not in summary.micro
    assert "constrained/accuracy_se" not in summary.macro


def test_a_task_without_a_value_leaves_no_average_behind() -> None:
    (summary,) = aggregate([*RECORDS[:3], *(_record("b", seed, None) for seed in (1, 2, 3))])
    assert summary.macro[ACCURACY] is None
    assert summary.micro[ACCURACY] is None
    assert summary.tasks[1].metrics[ACCURACY] is None
    assert summary.tasks[0].metrics[ACCURACY] is not None


def test_a_task_with_fewer_seeds_leaves_no_average_behind() -> None:
    (summary,) = aggregate(RECORDS[:-1])
    assert summary.macro[ACCURACY] is None
    assert summary.tasks[1].seeds == (1, 2)


def test_a_task_without_examples_counts_for_all_seeds() -> None:
    zero = _record("z", 1, 0.4, shots=0)
    (summary,) = aggregate([*RECORDS[:3], zero])
    found = summary.macro[ACCURACY]
    assert found is not None
    values = [(value + 0.4) / 2 for value in TABLE["a"][0]]
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.deviation == pytest.approx(statistics.pstdev(values))
    (alone,) = aggregate([zero, _record("y", 2, 0.6, shots=0)])
    assert alone.macro[ACCURACY] == MeanAndDeviation(pytest.approx(0.5), 0)


def test_absent_tasks_are_named_and_the_order_is_the_suites() -> None:
    (summary,) = aggregate(RECORDS, tasks=("c", "b", "a"))
    assert [task.task for task in summary.tasks] == ["b", "a"]
    assert summary.absent == ("c",)
    assert aggregate(RECORDS, tasks=("c",)) == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "n"}, {"suite": "demo"}, {"backend": "api-chat"}, {"dtype": "bfloat16"},
        {"chat": True}, {"scoring_version": 2}, {"sample": {"quick": 10}},
    ],
)  # fmt: skip
def test_what_was_computed_differently_is_another_summary(changes: dict[str, object]) -> None:
    other = [_record("a", seed, 0.9, **changes) for seed in (1, 2, 3)]
    first, second = aggregate([*RECORDS, *other])
    assert first == aggregate(RECORDS)[0]
    assert second.macro[ACCURACY] == MeanAndDeviation(pytest.approx(0.9), pytest.approx(0))


def test_two_evaluations_of_one_task_are_not_averaged() -> None:
    assert aggregate([*RECORDS, RECORDS[0]]) == aggregate(RECORDS)
    with pytest.raises(EvaluationError, match="evaluated twice with the set of examples 1"):
        aggregate([*RECORDS, _record("a", 1, 0.9, count=11)])


def test_metrics_of_answers_in_words_are_averaged_over_their_tasks() -> None:
    words = replace(_record("w", 1, 0.5), kind="text", metrics={"rougeL": 0.25})
    (summary,) = aggregate([_record("a", 1, 0.5), words])
    assert summary.macro["rougeL"] == MeanAndDeviation(0.25, 0)
    assert summary.averaged["rougeL"] == ("w",)
    assert summary.averaged[ACCURACY] == ("a",)

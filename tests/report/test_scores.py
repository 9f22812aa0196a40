"""Table 2: averages, deviations, best and second, and who takes part."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from forge.report.compare import compare
from forge.report.comparison import Comparison
from forge.report.comparison.scores import ScoreRow, ScoreTable
from forge.results.store import ResultsStore, open_results
from tests.report import results_factory as world
from tests.report.results_factory import (
    Asked,
    add_asked,
    add_choices,
    add_model,
    answers_of,
    choice,
)


def row_of(table: ScoreTable, label: str) -> ScoreRow:
    return next(row for row in table.rows if row.model == label)


def store_at(tmp_path: Path) -> ResultsStore:
    return open_results(tmp_path / "results.db")


def test_means_deviations_and_averages_over_seeds(tmp_path: Path) -> None:
    rights = {("t", 0): 10, ("t", 1): 14, ("u", 0): 40, ("u", 1): 30}
    with store_at(tmp_path) as store:
        model, other = add_model(store, "a"), add_model(store, "b")
        for (task, seed), right in rights.items():
            size = 20 if task == "t" else 80
            asked = Asked(frozenset(range(right)), size)
            add_choices(store, model, task, answers_of(asked), seed=seed)
            add_choices(store, other, task, answers_of(asked), seed=seed)
    row = row_of(compare(tmp_path / "results.db").tables[0], "a")
    t, u = row.scores
    assert t is not None
    assert u is not None
    assert (t.value, u.value) == pytest.approx((0.6, 0.4375))
    assert (t.deviation, u.deviation) == pytest.approx((0.1, 0.0625))
    assert row.macro is not None
    assert row.micro is not None
    assert row.macro.value == pytest.approx((0.6 + 0.4375) / 2)
    assert row.macro.deviation == pytest.approx(
        statistics.pstdev([(0.5 + 0.5) / 2, (0.7 + 0.375) / 2])
    )
    assert row.micro.value == pytest.approx((10 + 14 + 40 + 30) / 200)
    assert row.micro.deviation == pytest.approx(statistics.pstdev([50 / 100, 44 / 100]))


def test_best_and_second_are_those_of_the_printed_values(tmp_path: Path) -> None:
    rights = {"a": 60, "b": 81, "c": 81, "d": 70, "e": 70}
    with store_at(tmp_path) as store:
        for label, right in rights.items():
            model = add_model(store, label)
            add_asked(store, model, Asked(frozenset(range(right)), 100), tasks=["t"])
    table = compare(tmp_path / "results.db").tables[0]
    standings = {row.model: row.scores[0].standing for row in table.rows if row.scores[0]}
    assert standings == {"a": None, "b": "best", "c": "best", "d": "second", "e": "second"}
    assert row_of(table, "b").macro is not None


def test_a_sample_is_shown_but_neither_ranked_nor_averaged(comparison: Comparison) -> None:
    table = comparison.tables[0]
    few = row_of(table, world.FEW)
    assert [score and (score.value, score.same_items, score.standing) for score in few.scores] == [
        (1.0, False, None), (1.0, False, None),
    ]  # fmt: skip
    assert few.macro is None
    assert any(note.startswith("source_7b-int8 answered other items") for note in table.notes)
    assert "judge has no average: it lacks heart & lung 50%." in table.notes


def test_an_api_and_an_ensemble_have_rows(comparison: Comparison) -> None:
    table = comparison.tables[0]
    assert row_of(table, world.API).kind == "api"
    assert row_of(table, world.ENSEMBLE).kind == "ensemble"
    assert comparison.models[-1].members == (world.SOURCE, world.MERGE)


def test_an_ensemble_is_not_scored_in_a_mode_that_its_answers_do_not_carry(
    tmp_path: Path,
) -> None:
    with store_at(tmp_path) as store:
        add_asked(store, add_model(store, "a"), Asked(frozenset(range(5)), 10), tasks=["t"])
        trio = add_model(store, "trio", kind="ensemble")
        found = add_choices(store, trio, "t", answers_of(Asked(frozenset(range(5)), 10)))
        # A copy whose metrics say that there is no unconstrained accuracy.
        store.add_evaluation(
            replace(
                found,
                key="0" * 32,
                seed=1,
                metrics={"constrained/accuracy": 0.5, "unconstrained/accuracy": None},
            ),
            [],
        )
    tables = compare(tmp_path / "results.db").tables
    constrained = row_of(tables[0], "trio").scores[0]
    unconstrained = row_of(tables[1], "trio").scores[0]
    assert constrained is not None
    assert unconstrained is not None
    assert (constrained.num_seeds, unconstrained.num_seeds) == (2, 1)


def test_the_majority_baseline_is_that_of_the_items(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        for label in ("a", "b"):
            # Gold goes 0 1 2 3 0 1: two of six.
            add_choices(store, add_model(store, label), "t", [choice(0)] * 6)
    table = compare(tmp_path / "results.db").tables[0]
    assert table.tasks[0].majority == pytest.approx(2 / 6)
    assert table.majority_macro == pytest.approx(2 / 6)


def test_readings_beside_an_accuracy(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        for label in ("a", "b"):
            answers = [choice(number % 4 if number < 30 else (number + 1) % 4, confidence=0.8,
                              mass=0.5) for number in range(40)]  # fmt: skip
            add_choices(store, add_model(store, label), "t", answers)
    found = compare(tmp_path / "results.db")
    score = found.tables[0].rows[0].scores[0]
    assert score is not None
    assert score.option_mass == pytest.approx(0.5)
    assert score.missing == 0
    # Confidence is 0.8 of half the mass, accuracy is 0.75.
    assert score.calibration_error == pytest.approx(0.75 - 0.4)
    assert found.reliability[0].calibration_error == pytest.approx(0.35)
    assert [held.num_answers for held in found.reliability[0].bins] == [40]


def test_other_data_are_left_out_with_a_notice(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        for label in ("a", "b"):
            add_choices(store, add_model(store, label), "t", [choice(0)] * 8)
        add_choices(
            store, add_model(store, "b"), "t", [choice(1)] * 9, suite_digest="other", seed=1
        )
    table = compare(tmp_path / "results.db").tables[0]
    assert table.tasks[0].num_items == 8
    assert any("1 evaluations of 't' with other data" in note for note in table.notes)


def test_the_whole_counts_and_not_the_sample_of_it(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        for label in ("a", "b"):
            model = add_model(store, label)
            add_choices(store, model, "t", answers_of(Asked(frozenset(range(5)), 50)))
            add_choices(store, model, "t", answers_of(Asked(frozenset(range(5)), 5)))
    score = compare(tmp_path / "results.db").tables[0].rows[0].scores[0]
    assert score is not None
    assert (score.num_items, score.value) == (50, pytest.approx(0.1))


def test_chat_templates_are_a_table_of_their_own(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        for label in ("a", "b"):
            model = add_model(store, label)
            add_choices(store, model, "t", [choice(0)] * 8)
        add_choices(store, model, "t", [choice(0)] * 8, chat=True)
    found = compare(tmp_path / "results.db")
    assert [(table.chat, table.mode, table.primary) for table in found.tables] == [
        (False, "constrained", True), (False, "unconstrained", False),
        (True, "constrained", False), (True, "unconstrained", False),
    ]  # fmt: skip
    assert found.notices == ("Verdicts rest on planted; beside it: planted with chat templates.",)


def test_answers_in_words_have_a_table_for_each_metric(comparison: Comparison) -> None:
    table = comparison.tables[-1]
    assert (table.metric, table.mode) == ("rouge_l", None)
    values = {row.model: row.scores[0] for row in table.rows}
    same = values[world.SAME]
    assert same is not None
    assert (same.value, same.missing) == (0.29, 0.1)


def test_a_metric_that_only_some_tasks_have_is_a_table_of_those(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        model = add_model(store, "a")
        world.add_texts(store, model, "why", {"rougeL": 0.3, "rougeL_se": 0.1})
        world.add_texts(store, model, "how", {"rougeL": 0.5, "decision_accuracy": 0.75})
    tables = {table.metric: table for table in compare(tmp_path / "results.db").tables}
    assert sorted(tables) == ["decision_accuracy", "rougeL"]
    assert [task.name for task in tables["decision_accuracy"].tasks] == ["how"]
    macro = row_of(tables["rougeL"], "a").macro
    assert macro is not None
    assert macro.value == pytest.approx(0.4)


def test_a_mode_that_no_answer_carries_has_no_table(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        trio = add_model(store, "trio", kind="ensemble")
        found = add_choices(store, trio, "t", [choice(0)] * 8)
        metrics = {"constrained/accuracy": 0.5, "unconstrained/accuracy": None}
        store.add_evaluation(replace(found, key="0" * 32, task="u", metrics=metrics), [])
    tables = compare(tmp_path / "results.db").tables
    assert [[task.name for task in table.tasks] for table in tables] == [["t", "u"], ["t"]]

"""A prepared task depends on its data, its examples and its sample, and on nothing else."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from forge.core.errors import EvaluationError
from forge.evaluate.prepare import PreparedTask, prepare_task
from forge.evaluate.suite import load_suite
from tests.evaluate.tiny_data import medmcqa, medqa, pubmedqa, write_lines, write_medical


def _prepare(
    folder: Path, name: str = "pubmedqa", *, seed: int = 1, quick: int | None = None
) -> PreparedTask:
    task = load_suite("medical").task(name)
    return prepare_task(task, seed=seed, data_dir=folder, quick=quick)


def test_the_order_of_rows_means_nothing(tmp_path: Path) -> None:
    rows = pubmedqa(40)
    write_lines(tmp_path / "a" / "pubmedqa.test.jsonl", rows)
    random.Random(5).shuffle(rows)
    write_lines(tmp_path / "b" / "pubmedqa.test.jsonl", rows)
    first, second = (_prepare(tmp_path / name, quick=11) for name in "ab")
    assert first == second
    assert first.digest == second.digest
    assert first.sample["labels"] == {"maybe": 4, "no": 3, "yes": 4}


def test_the_sample_says_what_it_is(tmp_path: Path) -> None:
    write_lines(tmp_path / "pubmedqa.test.jsonl", pubmedqa(40))
    sample = dict(_prepare(tmp_path, quick=10).sample)
    assert str(sample.pop("detectable")).startswith("10 items can show a difference of ")
    assert sample == {
        "items": 10, "of": 40, "quick": 10, "drawn": "stratified by label, seed 0",
        "labels": {"maybe": 3, "no": 3, "yes": 4}, "examples": "published", "held_out": 0,
    }  # fmt: skip
    whole = _prepare(tmp_path).sample
    assert (whole["items"], whole["quick"], whole["drawn"]) == (40, None, "all")
    assert json.loads(json.dumps(dict(whole))) == whole


def test_the_sample_is_the_same_for_all_sets_of_examples(tmp_path: Path) -> None:
    write_lines(tmp_path / "medqa_4options.test.jsonl", medqa(60))
    prepared = [_prepare(tmp_path, "medqa", seed=seed, quick=12) for seed in (1, 2, 3)]
    assert len({task.items for task in prepared}) == 1
    assert len({task.shots for task in prepared}) == 3
    assert len({task.digest for task in prepared}) == 3


def test_examples_come_from_the_pool_if_it_is_there(tmp_path: Path) -> None:
    write_lines(tmp_path / "medmcqa.validation.jsonl", medmcqa(30))
    without = _prepare(tmp_path, "medmcqa")
    shots = {
        shot.item_id
        for seed in (1, 2, 3)
        for shot in _prepare(tmp_path, "medmcqa", seed=seed).shots
    }
    assert 3 < len(shots) <= 9
    assert (without.sample["examples"], without.sample["held_out"]) == ("held out", len(shots))
    assert {item.item_id for item in without.items} == {
        f"validation-{n}" for n in range(30)
    } - shots
    write_lines(tmp_path / "medmcqa.train.jsonl", medmcqa(30, word="train"))
    with_pool = _prepare(tmp_path, "medmcqa")
    assert (with_pool.sample["examples"], with_pool.sample["held_out"]) == ("pool", 0)
    assert len(with_pool.items) == 30
    assert all(shot.item_id.startswith("train-") for shot in with_pool.shots)


def test_an_item_that_is_an_example_too_is_not_evaluated(tmp_path: Path) -> None:
    write_lines(tmp_path / "medqa_4options.test.jsonl", medqa(30))
    write_lines(tmp_path / "medqa_4options.train.jsonl", [*medqa(4), *medqa(2, word="train")])
    prepared = _prepare(tmp_path, "medqa")
    questions = {item.question for item in prepared.items}
    assert not questions & {shot.question for shot in prepared.shots}
    assert int(str(prepared.sample["held_out"])) == 30 - len(prepared.items) > 0


def test_a_broken_row_of_a_pool_is_no_example(tmp_path: Path) -> None:
    write_lines(tmp_path / "medqa_4options.test.jsonl", medqa(8))
    broken = [{"question": "", "options": {}, "answer_idx": "?"}] * 5
    write_lines(tmp_path / "medqa_4options.train.jsonl", [*broken, *medqa(12, word="train")])
    assert all("train" in shot.question for shot in _prepare(tmp_path, "medqa").shots)


@pytest.mark.parametrize("change", ["row", "example", "nothing"])
def test_the_digest_changes_with_what_it_depends_on(change: str, tmp_path: Path) -> None:
    before = write_medical(tmp_path / "before", count=40)
    after = write_medical(tmp_path / "after", count=40)
    if change != "nothing":
        name = "medmcqa.validation.jsonl" if change == "row" else "medmcqa.train.jsonl"
        rows = medmcqa(40) if change == "row" else medmcqa(9, word="train")
        write_lines(after / name, [{**rows[0], "question": "Changed?"}, *rows[1:]])
    changed = {
        task.name
        for task in load_suite("medical").tasks
        if _prepare(before, task.name).digest != _prepare(after, task.name).digest
    }
    assert changed == (set() if change == "nothing" else {"medmcqa"})


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    folder = write_medical(tmp_path, count=3)
    with pytest.raises(EvaluationError) as caught:
        _prepare(folder, seed=4)
    assert str(caught.value) == "The suite 'medical' has no set of examples 4: it has 1, 2, 3."
    with pytest.raises(EvaluationError, match="A sample of 0 items measures nothing"):
        _prepare(folder, quick=0)
    with pytest.raises(EvaluationError, match="has 3 items, and all of them are examples"):
        _prepare(folder, "medqa")
    write_lines(folder / "medqa_4options.test.jsonl", medqa(2))
    with pytest.raises(EvaluationError, match="needs 3 examples, but its own questions"):
        _prepare(folder, "medqa")
    write_lines(folder / "medqa_4options.train.jsonl", medqa(2, word="train"))
    with pytest.raises(EvaluationError, match="needs 3 examples, but its pool has 2"):
        _prepare(folder, "medqa")


def test_a_missing_file_is_said_with_its_columns(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError) as caught:
        _prepare(tmp_path)
    assert str(caught.value) == (
        "Task 'pubmedqa' needs 'pubmedqa.test.jsonl' (qiaojin/PubMedQA, 'pqa_labeled', split "
        f"'train') in '{tmp_path}', with the columns question, contexts|context.contexts, "
        "final_decision, pubid."
    )


def test_published_examples_must_be_complete(tmp_path: Path) -> None:
    rows = [
        {"task": "t", "seed": 1, "id": f"e{n}", "question": f"e{n}?", "options": ["a", "b"],
         "answer": "AB"[n % 2]}
        for n in range(2)
    ]  # fmt: skip
    write_lines(tmp_path / "examples.jsonl", rows)
    write_lines(tmp_path / "rows.jsonl", [
        {"question": f"q{n}?", "choices": ["a", "b"], "answer": 0} for n in range(4)
    ])  # fmt: skip
    path = tmp_path / "mine.yaml"
    path.write_text(
        "seeds: [1, 2]\nexamples: examples.jsonl\n"
        'prompts: {p: {question: "{question}", answer: "{text}"}}\n'
        "columns: {c: {question: question, options: choices, answer: answer}}\n"
        "tasks: [{name: t, shots: 2, prompt: p, columns: c, data: {beside: rows.jsonl}}]\n"
    )
    with pytest.raises(EvaluationError) as caught:
        prepare_task(load_suite(str(path)).tasks[0], seed=1, data_dir=None, quick=None)
    assert str(caught.value) == (
        f"'{tmp_path / 'examples.jsonl'}' has 0 examples of task 't' and seed 2, not 2."
    )
    write_lines(tmp_path / "examples.jsonl", [*rows, *({**row, "seed": 2} for row in rows[::-1])])
    first = prepare_task(load_suite(str(path)).tasks[0], seed=1, data_dir=None, quick=None)
    second = prepare_task(load_suite(str(path)).tasks[0], seed=2, data_dir=None, quick=None)
    assert [shot.item_id for shot in first.shots] == ["e0", "e1"]
    assert [shot.item_id for shot in second.shots] == ["e1", "e0"]

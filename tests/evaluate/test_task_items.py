"""Rows become questions, or one error that says what is wrong with each."""

from __future__ import annotations

from pathlib import Path

import pytest

from forge.core.errors import EvaluationError
from forge.evaluate.rows import Row
from forge.evaluate.suite import load_suite
from forge.evaluate.task_items import TaskItem, read_items
from forge.evaluate.task_spec import Columns, TaskSpec
from tests.evaluate import tiny_data

MMLU = Columns(question="question", options=("choices",), answer="answer")


def _task(name: str = "mmlu_anatomy", suite: str = "medical") -> TaskSpec:
    return load_suite(suite).task(name)


def _read(
    values: list[dict[str, object]], columns: Columns = MMLU, **options: bool
) -> list[TaskItem]:
    rows = [Row(value, f"line {number}") for number, value in enumerate(values, start=1)]
    return read_items(_task(), [("FILE", rows)], columns, **options)


def _refusal(values: list[dict[str, object]], columns: Columns = MMLU) -> str:
    with pytest.raises(EvaluationError) as caught:
        _read(values, columns)
    return str(caught.value)


def _row(**values: object) -> dict[str, object]:
    return {"question": "q?", "choices": ["a", "b", "c"], "answer": 1, **values}


def test_ids_follow_from_the_content_where_no_column_has_them() -> None:
    first, second, again = _read([_row(), _row(question="r?"), _row(subject="other")])
    assert first.record.item_id != second.record.item_id
    assert again.record.item_id == f"{first.record.item_id}-2"
    assert again.content == first.content
    assert again.record.digest != first.record.digest
    assert _read([_row(question=" q? ")])[0].record == first.record


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"answer": 3}, "'answer' = 3 is not a whole number 0 to 2."),
        ({"answer": -1}, "'answer' = -1 is not a whole number 0 to 2."),
        ({"answer": True}, "'answer' = True is not a whole number 0 to 2."),
        ({"answer": "1"}, "'answer' = '1' is not a whole number 0 to 2."),
        ({"answer": None}, "'answer' = None is not a whole number 0 to 2."),
        ({"question": " "}, "'question' is no text, or an empty one."),
        ({"question": 5}, "'question' is no text, or an empty one."),
        ({"choices": ["a"]}, "1 options are not 2 to 26."),
        ({"choices": ["a"] * 27}, "27 options are not 2 to 26."),
        ({"choices": ["a", ""]}, "'choices' holds an option that is no text, or an empty one."),
        ({"choices": ["a", 2]}, "'choices' holds an option that is no text, or an empty one."),
        ({"choices": "ab"},
         "'choices' must be a list of options, or a mapping from letters to them."),
    ],
)  # fmt: skip
def test_a_wrong_value_is_said_with_its_line(values: dict[str, object], message: str) -> None:
    assert _refusal([_row(), _row(**values)]) == f"'FILE' line 2: {message}"


def test_a_missing_column_is_said_with_those_that_are_there() -> None:
    row: dict[str, object] = {"Question": "q?", "choices": ["a", "b"], "answer": 0}
    assert _refusal([row]) == (
        "'FILE' line 1: there is no column 'question'; the columns are Question, choices, answer."
    )


def test_all_problems_of_a_file_are_told_at_once() -> None:
    assert _refusal([_row(answer=9), _row(), _row(question="")]) == (
        "'FILE' has 2 problems:\n"
        "  line 1: 'answer' = 9 is not a whole number 0 to 2.\n"
        "  line 3: 'question' is no text, or an empty one."
    )


def test_ids_of_a_column_may_not_repeat() -> None:
    columns = Columns(question="question", options=("choices",), answer="answer", id="id")
    rows = [_row(id=7), _row(id="x"), _row(id="7"), _row(id=None)]
    assert _refusal(rows, columns) == (
        "'FILE' has 2 problems:\n"
        "  line 3: the id '7' is that of line 1.\n"
        "  line 4: 'id' is neither a text nor a whole number."
    )


def test_wrong_rows_of_a_pool_are_passed_over_unless_all_are() -> None:
    assert len(_read([_row(answer=-1), _row()], lenient=True)) == 1
    with pytest.raises(EvaluationError, match="'answer' = -1"):
        _read([_row(answer=-1)], lenient=True)


def test_letters_texts_and_numbers_from_one_name_the_same_option() -> None:
    by_letter = Columns(
        question="question", options=("options",), answer="answer", answer_is="letter"
    )
    row: dict[str, object] = {"question": "q?", "options": {"B": "b", "A": "a", "E": None}}
    (item,) = _read([{**row, "answer": "B"}], by_letter)
    assert (item.record.options, item.record.gold, item.record.label) == (("a", "b"), 1, "B")
    assert _refusal([{**row, "answer": "E"}], by_letter) == (
        "'FILE' line 1: 'answer' = 'E' is none of A, B."
    )
    by_text = Columns(
        question="question", fixed_options=("yes", "no"), answer="answer", answer_is="text"
    )
    (item,) = _read([{**row, "answer": "no"}], by_text)
    assert (item.record.gold, item.record.label, item.decision) == (1, "no", "no")
    assert "'answer' = 'nay' is none of yes, no." in _refusal([{**row, "answer": "nay"}], by_text)
    from_one = Columns(
        question="question", options=("x", "y"), answer="answer", answer_is="index_from_1"
    )
    (item,) = _read([{"question": "q?", "x": "a", "y": "b", "answer": 2}], from_one)
    assert item.record.gold == 1


def test_columns_are_found_by_path_and_by_either_name() -> None:
    columns = Columns(
        question="question", options=("choices",), answer="answer",
        context="contexts|context.contexts",
    )  # fmt: skip
    flat, nested = _read(
        [_row(contexts=["x", "y"]), _row(context={"contexts": ["x", "y"]}, question="r?")], columns
    )
    assert flat.passages == nested.passages == ("x", "y")
    assert flat.record.question == "x\n\ny\n\nq?"
    assert "there is no column 'contexts|context.contexts'" in _refusal([_row()], columns)
    assert "holds a passage that is no text" in _refusal([_row(contexts=["x", ""])], columns)
    assert "must be a text or a list of texts" in _refusal([_row(contexts=[])], columns)


def test_wrong_options_may_not_hold_the_right_one() -> None:
    columns = Columns(question="question", right="best", wrong="others")
    row: dict[str, object] = {"question": "q?", "best": "a"}
    (item,) = _read([{**row, "others": ["b", "b", "c"]}], columns)
    assert sorted(item.record.options) == ["a", "b", "c"]
    assert "holds the right option too" in _refusal([{**row, "others": ["b", "a"]}], columns)
    assert "must be a list of wrong options" in _refusal([{**row, "others": []}], columns)


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("mmlu_anatomy", tiny_data.mmlu("anatomy", 8)),
        ("medqa", tiny_data.medqa(8)),
        ("medqa_5_options", tiny_data.medqa(10, letters="ABCDE")),
        ("medmcqa", tiny_data.medmcqa(8)),
        ("pubmedqa", tiny_data.pubmedqa(9)),
    ],
)
def test_the_columns_of_the_data_sets_are_understood(
    task: str, rows: list[dict[str, object]], tmp_path: Path
) -> None:
    spec = _task(task)
    items = read_items(spec, [("f", [Row(row, "line") for row in rows])], spec.columns)
    for item in items:
        number = int(item.question.split()[-1].rstrip("?"))
        assert item.record.gold == number % len(item.record.options)


def test_the_label_of_an_answer_in_words_is_its_decision() -> None:
    columns = Columns(
        question="question", options=("choices",), answer="answer", label="topic",
        reference="reference",
    )  # fmt: skip
    rows = [Row(_row(topic="heart", reference="Because."), "line 1")]
    words = load_suite("medical-generative").task("pubmedqa_long")
    (item,) = read_items(words, [("FILE", rows)], columns)
    assert (item.record.label, item.record.gold, item.decision) == ("b", "Because.", "b")
    (item,) = read_items(_task(), [("FILE", rows)], columns)
    assert (item.record.label, item.record.gold) == ("heart", 1)

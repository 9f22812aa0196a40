"""Prompts through chat templates: turns, cues, and one prefix for all questions."""

from __future__ import annotations

import pytest

from forge.core.errors import EvaluationError
from forge.evaluate.prepare import PreparedTask, prepare_task
from forge.evaluate.suite import load_suite
from tests.evaluate.tiny_data import write_medical


def _chatml(messages: list[dict[str, str]]) -> str:
    turns = (f"<|{m['role']}|>\n{m['content'].strip()}</s>\n" for m in messages)
    return "<s>" + "".join(turns) + "<|assistant|>\n"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreparedTask]:
    folder = write_medical(tmp_path_factory.mktemp("data"))
    suite = load_suite("medical")
    return {
        name: prepare_task(suite.task(name), seed=1, data_dir=folder, quick=None, chat=_chatml)
        for name in ("mmlu_anatomy", "pubmedqa")
    }


def test_examples_are_turns_and_the_cue_begins_the_last_one(
    prepared: dict[str, PreparedTask],
) -> None:
    task = prepared["mmlu_anatomy"]
    text = task.requests[0].prompt.text
    assert text.count("<|user|>") == 4
    assert text.count("<|assistant|>") == 4
    assert text.startswith(
        "<s><|user|>\nThe following are multiple choice questions (with answers) about medical "
        f"knowledge.\n\n**Question:** {task.shots[0].question} \n (A) "
    )
    gold = task.shots[0].gold
    assert isinstance(gold, int)
    assert f"</s>\n<|assistant|>\n**Answer:**({'ABCD'[gold]}</s>\n<|user|>\n**Question:**" in text
    assert text.endswith("</s>\n<|assistant|>\n**Answer:**(")
    assert task.requests[0].options == ("A", "B", "C", "D")  # type: ignore[union-attr]


def test_the_prefix_ends_where_questions_begin(prepared: dict[str, PreparedTask]) -> None:
    for task in prepared.values():
        (prefix,) = {request.prompt.prefix for request in task.requests}
        assert prefix.endswith("</s>\n<|user|>\n")
    suffix = prepared["mmlu_anatomy"].requests[0].prompt.suffix
    assert suffix.startswith("**Question:** anatomy test question")


def test_one_question_alone_has_the_prefix_of_many(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = write_medical(tmp_path_factory.mktemp("data"))
    task = load_suite("medical").task("mmlu_anatomy")
    one = prepare_task(task, seed=1, data_dir=folder, quick=1, chat=_chatml)
    many = prepare_task(task, seed=1, data_dir=folder, quick=None, chat=_chatml)
    assert one.requests[0].prompt.prefix == many.requests[0].prompt.prefix
    assert one.requests[0].prompt in [request.prompt for request in many.requests]


def test_a_template_is_part_of_the_digest(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = write_medical(tmp_path_factory.mktemp("data"))
    task = load_suite("medical").task("mmlu_anatomy")
    digests = {
        prepare_task(task, seed=1, data_dir=folder, quick=2, chat=chat).digest
        for chat in (None, _chatml, lambda messages: _chatml(messages) + " ")
    }
    assert len(digests) == 3


def test_a_template_that_drops_the_question_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = write_medical(tmp_path_factory.mktemp("data"))
    task = load_suite("medical").task("mmlu_anatomy")
    with pytest.raises(EvaluationError, match="does not show what the user says"):
        prepare_task(task, seed=1, data_dir=folder, quick=2, chat=lambda messages: "Hello")


def test_words_in_braces_of_the_data_are_left_alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("mine")
    (folder / "rows.jsonl").write_text(
        '{"question": "Is {options} {letter}?", "choices": ["{text}", "{question}"], "answer": 0}\n'
    )
    (folder / "mine.yaml").write_text(
        'prompts: {p: {question: "{question}|{options}", answer: "{text}"}}\n'
        "columns: {c: {question: question, options: choices, answer: answer}}\n"
        "tasks: [{name: t, prompt: p, columns: c, data: {beside: rows.jsonl}}]\n"
    )
    task = load_suite(str(folder / "mine.yaml")).tasks[0]
    (request,) = prepare_task(task, seed=1, data_dir=None, quick=None).requests
    assert request.prompt.text == "Is {options} {letter}?|A. {text}\nB. {question}"
    assert request.options == ("{text}", "{question}")  # type: ignore[union-attr]

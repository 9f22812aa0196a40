"""A suite is strict: all mistakes of a file at once, each with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from forge.core.errors import EvaluationError
from forge.evaluate.suite import SUITES, load_suite

GOOD = """\
title: Mine
seeds: [1, 2]
prompts:
  plain:
    question: "Q: {question}\\n{options}"
    cue: "\\nA:"
    answer: " {letter}"
columns:
  mine: {question: question, options: choices, answer: answer}
tasks:
  - name: first
    prompt: plain
    columns: mine
    shots: 1
    data: {beside: rows.jsonl}
"""
ROWS = """\
{"question": "one?", "choices": ["a", "b"], "answer": 0}
{"question": "two?", "choices": ["a", "b"], "answer": 1}
"""


def _write(folder: Path, text: str) -> str:
    (folder / "rows.jsonl").write_text(ROWS)
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def _problems(folder: Path, text: str) -> list[str]:
    path = _write(folder, text)
    with pytest.raises(EvaluationError) as caught:
        load_suite(path)
    return str(caught.value).replace(path, "mine.yaml").replace(str(folder), "here").splitlines()


def test_a_file_of_the_users_own_is_a_suite(tmp_path: Path) -> None:
    suite = load_suite(_write(tmp_path, GOOD))
    assert (suite.name, suite.title, suite.seeds) == ("mine", "Mine", (1, 2))
    (task,) = suite.tasks
    assert (task.name, task.title, task.kind, task.shots) == ("first", "first", "choice", 1)
    assert task.prompt.option == "{letter}. {text}"
    assert task.suite == "mine"


@pytest.mark.parametrize(
    ("old", "new"),
    [("seeds: [1, 2]", "seeds: [1, 3]"), ('" {letter}"', '"{letter}"'), ("shots: 1", "shots: 2"),
     ("beside: rows.jsonl", "beside: rows.jsonl, where: {question: one?}")],
)  # fmt: skip
def test_the_digest_is_that_of_what_it_says_and_not_of_its_place(
    old: str, new: str, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    suite = load_suite(_write(tmp_path, GOOD))
    moved = load_suite(_write(tmp_path / "other", f"# A comment.\n{GOOD}"))
    changed = load_suite(_write(tmp_path / "other", GOOD.replace(old, new)))
    assert moved.digest == suite.digest
    assert changed.digest != suite.digest


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("medcal", "There is no suite 'medcal'. Did you mean 'medical'? Known: medical, "),
        ("nothing-like-it", "There is no suite 'nothing-like-it'. Known: medical, "),
        ("mine.yaml", "There is no suite file 'mine.yaml'. Name a YAML file, or one of the suites"),
        ("folder/medical", "There is no suite file 'folder/medical'."),
    ],
)
def test_an_unknown_suite_has_a_suggestion(name: str, message: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        load_suite(name)
    assert str(caught.value).startswith(message)
    assert all(suite in str(caught.value) for suite in SUITES)


def test_all_mistakes_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    text = """\
title: Mine
seeds: [1, 1]
tittle: Mine
examples: ../other.jsonl
prompts:
  plain:
    question: "Q: {qestion}"
    answer: " {letter}"
  fine:
    question: "Q: {question}"
    answer: " {letter}"
    cue: "{letter}"
columns:
  mine: {question: question, options: choices, fixed_options: [yes, no], answr: answer}
tasks:
  - name: first
    prompt: fien
    columns: mine
    shots: -1
    data: {beside: missing.jsonl}
  - prompt: fine
    columns: other
    data: {hub: a/b, beside: ../rows.jsonl, archive: x.zip}
"""
    assert _problems(tmp_path, text) == [
        "mine.yaml:2 seeds: List each seed once, and at least one.",
        "mine.yaml:3 tittle: Unknown key. Did you mean 'title'? Known here: title, description, "
        "reference, seeds, sample_seed, examples, prompts, columns, tasks.",
        "mine.yaml:4 examples: '../other.jsonl' leads out of the suite's folder.",
        "mine.yaml:7 prompts.plain.question: {qestion} means nothing here. Did you mean "
        "'question'? Use {context} or {question} or {options}.",
        "mine.yaml:7 prompts.plain.question: A prompt needs a 'question' with {question}.",
        "mine.yaml:12 prompts.fine.cue: {letter} means nothing here. Use no words in braces.",
        "mine.yaml:14 columns.mine.fixed_options: A list must be a list of texts in quotes, such "
        "as ['yes', 'no', 'maybe'].",
        "mine.yaml:14 columns.mine.answr: Unknown key. Did you mean 'answer'? Known here: "
        "question, context, options, fixed_options, answer, answer_is, right, wrong, reference, "
        "id, label, cluster.",
        "mine.yaml:14 columns.mine: Options need an 'answer' column, and an answer needs options.",
        "mine.yaml:17 tasks[0].prompt: 'fien' is not there. Did you mean 'fine'? Under 'prompts': "
        "plain, fine.",
        "mine.yaml:19 tasks[0].shots: -1 must be a whole number from 0 to 64.",
        "mine.yaml:20 tasks[0].data.beside: There is no file 'missing.jsonl' in 'here'.",
        "mine.yaml:21 tasks[1].name: A task needs a 'name' of letters, digits, '_', '-' and '.'.",
        "mine.yaml:22 tasks[1].columns: 'other' is not there. Under 'columns': mine.",
        "mine.yaml:23 tasks[1].data.beside: A file beside the suite is the only place; keep one.",
        "mine.yaml:23 tasks[1].data: 'archive' and 'member' go together.",
        "mine.yaml:23 tasks[1].data.beside: '../rows.jsonl' leads out of the suite's folder.",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("columns: mine\n", "columns: mine\n    kind: text\n",
         "columns: A task of kind 'text' needs columns with a 'reference'."),
        ('" {letter}"', '"{letter} {text}"',
         "prompt: Its 'answer' must have {letter} or {text}: what is scored is its first token."),
        (", options: choices, answer: answer", "",
         "columns: A task of kind 'choice' needs columns with options."),
        ('question: "Q', 'instruction: "{subject}"\n    question: "Q',
         "subject: Its prompt's instruction names a {subject}."),
        ("data: {beside: rows.jsonl}", "data: {split: test}",
         "data.hub: Name a data set ('hub'), or a file ('beside')."),
        ("    data: {beside: rows.jsonl}\n", "",
         "data: Say where its questions are: 'data: {hub: ...}'."),
        ("{beside: rows.jsonl}", "{hub: a/b, file: /etc/passwd}",
         "data.file: '/etc/passwd' leads out of the folder."),
        ("{beside: rows.jsonl}", "{hub: a/b, where: {x: 3}}",
         "data.where.x: 3 must be a text or a list of texts."),
    ],
)  # fmt: skip
def test_what_a_task_lacks_is_said(old: str, new: str, message: str, tmp_path: Path) -> None:
    problems = _problems(tmp_path, GOOD.replace(old, new))
    assert any(f"tasks[0].{message}" in problem for problem in problems), problems


def test_two_tasks_of_a_name_and_none_at_all(tmp_path: Path) -> None:
    task = GOOD[GOOD.index("  - name") :]
    assert _problems(tmp_path, GOOD + task) == [
        "mine.yaml:16 tasks[1].name: 'first' is there already."
    ]
    assert _problems(tmp_path, "title: Mine\n") == [
        "mine.yaml:1 tasks: A suite needs tasks: a list of '- name: ...'."
    ]
    assert "must be a mapping" in _problems(tmp_path, "- a\n")[0]
    assert "written twice" in _problems(tmp_path, GOOD + "title: Again\n")[0]

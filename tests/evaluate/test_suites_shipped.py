"""The suites that come with forge: what they hold, and that they run on tiny files."""

from __future__ import annotations

import importlib.util
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from forge.core.errors import EvaluationError
from forge.evaluate.contract import ChoiceRequest, TextRequest
from forge.evaluate.examples import example_sets
from forge.evaluate.prepare import PreparedTask, prepare_task
from forge.evaluate.suite import SUITES, load_suite
from forge.evaluate.task_data import check_data
from tests.evaluate.tiny_data import LANGUAGES, write_medical, write_multilingual

SIZES = {
    "medical": 10, "open-medical-llm": 9, "medical-generative": 2, "medical-multilingual": 70,
    "truthfulqa-medical": 4, "demo": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_multilingual(folder)
    return write_medical(folder)


def _prepared(suite: str, task: str, data_dir: Path | None, *, seed: int = 1) -> PreparedTask:
    return prepare_task(load_suite(suite).task(task), seed=seed, data_dir=data_dir, quick=None)


@pytest.mark.parametrize("name", SUITES)
def test_every_task_of_every_suite_is_ready_to_be_asked(name: str, data_dir: Path) -> None:
    suite = load_suite(name)
    assert len(suite.tasks) == SIZES[name]
    assert suite.title
    assert suite.description
    assert suite.reference
    for task in suite.tasks:
        prepared = prepare_task(task, seed=suite.seeds[-1], data_dir=data_dir, quick=3)
        kind = ChoiceRequest if task.kind == "choice" else TextRequest
        assert len(prepared.items) == len(prepared.requests) == 3
        assert all(isinstance(request, kind) for request in prepared.requests)
        assert len({request.prompt.prefix for request in prepared.requests}) == 1
        assert len(prepared.shots) == task.shots
        assert task.licence


def test_a_prompt_is_the_published_one_to_the_letter(data_dir: Path) -> None:
    prepared = _prepared("medical", "mmlu_anatomy", data_dir)
    request = prepared.requests[0]
    number = prepared.items[0].question.split()[-1].rstrip("?")
    assert request.prompt.suffix == (
        f"**Question:** anatomy test question {number}? \n (A) choice {number}a \n "
        f"(B) choice {number}b \n (C) choice {number}c \n (D) choice {number}d \n **Answer:**("
    )
    shot = prepared.shots[0]
    assert isinstance(shot.gold, int)
    assert request.prompt.prefix.startswith(
        "The following are multiple choice questions (with answers) about medical knowledge. \n "
        f"**Question:** {shot.question} \n (A) {shot.options[0]} \n "
    )
    assert request.prompt.prefix.endswith(f" \n **Answer:**({'ABCD'[prepared.shots[2].gold]} \n ")
    assert request.options == ("A", "B", "C", "D")  # type: ignore[union-attr]


def test_the_documentation_shows_the_prompts_as_they_are(data_dir: Path) -> None:
    shown = (Path(__file__).parents[2] / "docs" / "suites.md").read_text("utf-8")
    prefix = _prepared("medical", "mmlu_anatomy", data_dir).requests[0].prompt.prefix
    first = prefix[: prefix.index("**Answer:**(C") + len("**Answer:**(C \n **Question:** ")]
    assert first.replace(" \n ", "␣\n␣") in shown
    prefix = _prepared("demo", "demo_clinic", None, seed=3).requests[0].prompt.prefix
    assert "Question: Which organ is scarred in cirrhosis?\nAnswer: liver\n\n" in prefix
    assert prefix.startswith("Answer these questions about medicine.\n\nQuestion: ")
    abstract = load_suite("demo").task("demo_abstracts").prompt
    empty = abstract.context.replace("{text}", "…")
    text = abstract.question.replace("{context}", empty).replace("{question}", "…")
    assert f"```\n{text}{abstract.cue}\n```" in shown
    for task in load_suite("medical-generative").tasks:
        assert f"```\n{task.prompt.instruction}" in shown


def test_pubmedqa_has_its_passage_first_and_letters_for_yes_no_maybe(data_dir: Path) -> None:
    prepared = _prepared("medical", "pubmedqa", data_dir)
    item = prepared.items[1]
    assert item.item_id == item.cluster == "1001"
    assert prepared.requests[1].prompt.suffix == (
        "Background 1. Results 1. \n **Question:** PubMedQA test question 1? \n (A) yes \n "
        "(B) no \n (C) maybe \n **Answer:**("
    )
    assert (item.gold, item.label) == (1, "no")
    assert sorted(shot.label for shot in prepared.shots) == ["maybe", "no", "yes"]


def _lm_eval_function(path: str) -> Callable[[Mapping[str, object]], str]:
    """Return lm-eval's own ``doc_to_text`` of a task, without importing the package around it."""
    package = importlib.util.find_spec("lm_eval")
    if package is None or package.origin is None:
        pytest.skip("needs lm-eval")
    spec = importlib.util.spec_from_file_location(
        "doc_to_text", Path(package.origin).parent / "tasks" / path
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[[Mapping[str, object]], str] = module.doc_to_text
    return function


@pytest.mark.parametrize(
    ("task", "path", "document"),
    [
        ("medmcqa", "medmcqa/utils_medmcqa.py", lambda row: row),
        ("medqa", "medqa/preprocess_medqa.py", lambda row: {
            "sent1": row["question"],
            **{f"ending{n}": text for n, text in enumerate(row["options"].values())},
        }),
        ("pubmedqa", "pubmedqa/preprocess_pubmedqa.py", lambda row: {
            "CONTEXTS": row["contexts"], "QUESTION": row["question"],
        }),
    ],
)  # fmt: skip
def test_prompts_are_those_of_lm_evals_own_functions(
    task: str, path: str, document: Callable[[Any], Mapping[str, object]], data_dir: Path
) -> None:
    doc_to_text = _lm_eval_function(path)
    spec = load_suite("open-medical-llm").task(task)
    rows = (data_dir / (spec.data.file or "")).read_text().splitlines()
    theirs = {doc_to_text(document(json.loads(row))) for row in rows}
    prepared = prepare_task(spec, seed=1, data_dir=data_dir, quick=None)
    assert {request.prompt.text for request in prepared.requests} == theirs


@pytest.mark.parametrize(
    ("task", "text", "options"),
    [
        ("mmlu_anatomy",
         "The following are multiple choice questions (with answers) about anatomy.\n\n"
         "anatomy test question 1?\nA. choice 1a\nB. choice 1b\nC. choice 1c\nD. choice 1d\n"
         "Answer:", (" A", " B", " C", " D")),
        ("medmcqa",
         "Question: MedMCQA validation question 1?\nChoices:\nA. option 1a\nB. option 1b\n"
         "C. option 1c\nD. option 1d\nAnswer:", (" A", " B", " C", " D")),
        ("medqa",
         "Question: MedQA test question 1?\nA. option 1A\nB. option 1B\nC. option 1C\n"
         "D. option 1D\nAnswer:", (" A", " B", " C", " D")),
        ("pubmedqa",
         "Abstract: Background 1.\nResults 1.\nQuestion: PubMedQA test question 1?\nAnswer:",
         (" yes", " no", " maybe")),
    ],
)  # fmt: skip
def test_the_nine_tasks_are_put_as_lm_eval_puts_them(
    task: str, text: str, options: tuple[str, ...], data_dir: Path
) -> None:
    prepared = _prepared("open-medical-llm", task, data_dir)
    request = next(request for request in prepared.requests if "question 1?" in request.prompt.text)
    assert request.prompt.text == text
    assert request.options == options  # type: ignore[union-attr]


def test_the_long_answer_is_followed_by_the_decision(data_dir: Path) -> None:
    prepared = _prepared("medical-generative", "pubmedqa_long", data_dir)
    request, item = prepared.requests[1], prepared.items[1]
    assert isinstance(request, TextRequest)
    assert item.gold == "Conclusion 1 of the authors."
    assert (item.label, item.options) == ("no", ("yes", "no", "maybe"))
    assert request.prompt.suffix == (
        "Abstract: Background 1. Results 1.\nQuestion: PubMedQA test question 1?\nConclusion:"
    )
    first = prepared.shots[0]
    assert f"\nConclusion: {first.gold}\nAnswer: {first.label}\n\n" in request.prompt.prefix
    assert request.max_new_tokens == 160


def test_questions_are_translated_and_examples_are_not(data_dir: Path) -> None:
    for task in ("german_mmlu_anatomy", "german_medqa", "german_pubmedqa"):
        prepared = _prepared("medical-multilingual", task, data_dir)
        assert all("Frage" in item.question for item in prepared.items)
        assert not any("Frage" in shot.question for shot in prepared.shots)
    five = _prepared("medical-multilingual", "french_medqa_5_options", data_dir)
    assert {len(item.options) for item in (*five.items, *five.shots)} == {5}
    assert five.sample["examples"] == "pool"
    names = [task.name for task in load_suite("medical-multilingual").tasks]
    assert len({name.split("_", 1)[1] for name in names}) == 10
    assert {name.split("_", 1)[0] for name in names} == {word.lower() for word in LANGUAGES}


def test_the_right_answer_of_truthfulqa_is_not_always_first(data_dir: Path) -> None:
    prepared = _prepared("truthfulqa-medical", "truthfulqa_health", data_dir)
    assert len(prepared.items) == 12
    assert len({item.gold for item in prepared.items}) > 1
    for item in prepared.items:
        assert isinstance(item.gold, int)
        assert item.options[item.gold].startswith("right")
        assert sum(option.startswith("wrong") for option in item.options) == len(item.options) - 1
    again = _prepared("truthfulqa-medical", "truthfulqa_health", data_dir)
    assert again.items == prepared.items


def test_published_sets_have_three_different_examples_of_three_labels() -> None:
    for task in load_suite("medical").tasks:
        if task.group == "mmlu" or task.name == "pubmedqa":
            sets = example_sets(task, [], data_dir=None)
            assert sets.origin == "published"
            assert sorted(sets.sets) == [1, 2, 3]
            assert (
                len({frozenset(item.content for item in held) for held in sets.sets.values()}) == 3
            )
            for held in sets.sets.values():
                assert len({item.content for item in held}) == 3
                assert len({item.record.label for item in held}) >= 2


def test_the_list_of_pubmedqa_is_its_official_test_half() -> None:
    folder = load_suite("medical").tasks[0].folder
    lines = (folder / "pubmedqa.test_ids.jsonl").read_text().splitlines()
    ids = {json.loads(line)["id"] for line in lines}
    assert len(lines) == len(ids) == 500
    rows = [
        json.loads(line) for line in (folder / "medical.examples.jsonl").read_text().splitlines()
    ]
    assert not ids & {row["id"] for row in rows}


def test_a_suite_without_one_file_says_which_and_never_averages_over_it(tmp_path: Path) -> None:
    folder = write_medical(tmp_path, five_options=False)
    suite = load_suite("medical")
    with pytest.raises(EvaluationError) as caught:
        check_data(suite, data_dir=folder)
    assert str(caught.value) == (
        "Task 'medqa_5_options' needs 'medqa_5options.test.jsonl' "
        "('data_clean/questions/US/test.jsonl' of data_clean.zip in bigbio/med_qa) in "
        f"'{folder}', with the columns question, options, answer_idx.\n"
        "Put the files there, or leave these tasks out with --skip-missing: averages are then "
        "over the others."
    )
    found = check_data(suite, data_dir=folder, skip_missing=True)
    assert [task.name for task in found.tasks] == [
        task.name for task in suite.tasks if task.name != "medqa_5_options"
    ]
    assert [item.task for item in found.missing] == ["medqa_5_options"]
    assert found.notice == (
        "Left out for lack of data: medqa_5_options. Averages are over 9 of the suite's 10 tasks "
        "and do not compare with those over all."
    )


def test_a_file_that_many_tasks_need_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError) as caught:
        check_data(load_suite("truthfulqa-medical"), data_dir=tmp_path)
    first, last = str(caught.value).splitlines()
    assert first.startswith(
        "Task 'truthfulqa_health' needs 'truthfulqa.generation.validation.jsonl' "
        "(truthfulqa/truthful_qa, 'generation', split 'validation') in "
    )
    assert first.endswith(
        ". So do truthfulqa_nutrition, truthfulqa_psychology, truthfulqa_science."
    )
    assert last == "None of the suite's files is there."


def test_an_unknown_task_has_a_suggestion() -> None:
    with pytest.raises(EvaluationError) as caught:
        load_suite("demo").task("demo_basic")
    assert str(caught.value) == (
        "The suite 'demo' has no task 'demo_basic'. Did you mean 'demo_basics'? It has "
        "demo_basics, demo_clinic, demo_abstracts."
    )


def test_nothing_is_left_out_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"None of the suite's files is there\.$"):
        check_data(load_suite("medical"), data_dir=tmp_path, skip_missing=True)
    with pytest.raises(EvaluationError, match="There is no folder"):
        check_data(load_suite("medical"), data_dir=tmp_path / "no")
    assert check_data(load_suite("demo"), data_dir=tmp_path).notice is None
    assert check_data(load_suite("medical"), data_dir=None).missing == ()


def test_the_demo_is_balanced_and_its_options_begin_differently() -> None:
    suite = load_suite("demo")
    golds: dict[str, Counter[str]] = {}
    for task in suite.tasks:
        prepared = prepare_task(task, seed=1, data_dir=None, quick=None)
        golds[task.name] = Counter(item.label for item in prepared.items)
        questions = {item.question for item in prepared.items}
        assert len(questions) == 24
        for seed in suite.seeds:
            shots = prepare_task(task, seed=seed, data_dir=None, quick=1).shots
            assert not questions & {shot.question for shot in shots}
            assert len({shot.label for shot in shots}) == len(shots) == task.shots
        for item in prepared.items:
            assert len({option[:2].lower() for option in item.options}) == len(item.options)
            assert item.question.isascii()
    assert golds["demo_basics"] == golds["demo_clinic"] == dict.fromkeys("ABCD", 6)
    assert golds["demo_abstracts"] == {"Yes": 9, "No": 9, "Maybe": 6}


@pytest.mark.skipif("FORGE_MEDICAL_DATA" not in os.environ, reason="needs the medical data")
def test_the_medical_data_loads_with_its_published_sizes() -> None:
    sizes = {
        "mmlu_anatomy": 135, "mmlu_clinical_knowledge": 265, "mmlu_college_biology": 144,
        "mmlu_college_medicine": 173, "mmlu_medical_genetics": 100,
        "mmlu_professional_medicine": 272, "medqa": 1273, "medmcqa": 4183, "pubmedqa": 500,
    }  # fmt: skip
    folder = Path(os.environ["FORGE_MEDICAL_DATA"])
    suite = load_suite("medical")
    for task in check_data(suite, data_dir=folder, skip_missing=True).tasks:
        prepared = prepare_task(task, seed=1, data_dir=folder, quick=None)
        assert prepared.sample["of"] == sizes[task.name]
        held_out = 9 if task.name in ("medqa", "medmcqa") else 0
        assert prepared.sample["held_out"] == held_out
        assert len(prepared.items) == sizes[task.name] - held_out

"""forge scores as lm-eval's own model does, and runs lm-eval's own tasks to the same figures."""

from __future__ import annotations

import json
import random
import string
import warnings
from pathlib import Path

import pytest

from forge.core.errors import EvaluationError, IncompatibleError
from forge.evaluate.backends.local import LocalBackend
from forge.evaluate.subjects import LocalSettings
from forge.results.answers import ChoiceAnswer
from forge.results.store import open_results
from forge.runtime.any_model import LoadedModel, load_any
from tests.architectures.tiny_models import tiny_model
from tests.evaluate.backends.word_models import letter_tokenizer, loaded, requests
from tests.evaluate.tiny_suite import write_model
from tests.runtime.folders import llama, quantized_pair

with warnings.catch_warnings():
    # What other libraries deprecate is no mistake of ours.
    warnings.simplefilter("ignore")
    pytest.importorskip("lm_eval")
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from forge.evaluate import lm_eval_adapter as adapter
    from forge.evaluate.lm_eval_adapter import ForgeLM, evaluate_lm_eval_tasks, reference_scores

pytestmark = pytest.mark.filterwarnings("ignore")

CASES = ("llama", "gemma2", "gpt2", "bloom")


def model_of(case: str, folder: Path, **options: bool) -> LoadedModel:
    model = tiny_model(case, seed=3)
    model.config.max_position_embeddings = 64
    return loaded(model, folder, **options)


def both(model: LoadedModel) -> tuple[ForgeLM, HFLM]:
    return (
        ForgeLM(model, batch_tokens=60),
        HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=3),
    )


def text(draw: random.Random, longest: int) -> str:
    return "".join(draw.choice(string.ascii_letters + " ") for _ in range(draw.randint(1, longest)))


def pairs(count: int, *, seed: int = 0) -> list[Instance]:
    """Return contexts with several continuations each, and one without a context."""
    draw = random.Random(seed)
    arguments = [
        (f"Few shots.{context}:", continuation)
        for context in (text(draw, 16) for _ in range(count))
        for continuation in ("A", "B", " no", f" {text(draw, 9)}")
    ]
    # Blanks at the end of a context belong to the continuation.
    arguments += [("Is it so? ", "yes"), ("", "from nothing")]
    return [Instance("loglikelihood", {}, each, n) for n, each in enumerate(arguments)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("begin", [True, False])
def test_log_likelihoods(case: str, begin: bool, tmp_path: Path) -> None:
    ours, theirs = both(model_of(case, tmp_path, begin=begin))
    asked = pairs(6)
    found = ours.loglikelihood(asked, disable_tqdm=True)
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([v for v, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [bool(greedy) for _, greedy in expected]


def test_likeliest_continuations_are_known_as_such(tmp_path: Path) -> None:
    ours, theirs = both(model_of("llama", tmp_path))
    context = "Aspirin:"
    made = ours.generate_until(
        [Instance("generate_until", {}, (context, {"until": [], "max_gen_toks": 4}), 0)]
    )
    asked = [Instance("loglikelihood", {}, (context, each), 0) for each in (made[0], "zz")]
    found = ours.loglikelihood(asked, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, False]
    assert theirs.loglikelihood(asked, disable_tqdm=True)[0][1]


@pytest.mark.parametrize("case", CASES)
def test_whole_texts_in_windows(case: str, tmp_path: Path) -> None:
    ours, theirs = both(model_of(case, tmp_path))
    draw = random.Random(1)
    texts = [text(draw, 20), "".join(text(draw, 30) for _ in range(9)), "x"]
    asked = [Instance("loglikelihood_rolling", {}, (each,), n) for n, each in enumerate(texts)]
    assert ours.max_length == theirs.max_length == 64
    found = ours.loglikelihood_rolling(asked, disable_tqdm=True)
    assert found == pytest.approx(theirs.loglikelihood_rolling(asked, disable_tqdm=True), abs=1e-3)


@pytest.mark.parametrize("case", ["llama", "gpt2", "bloom"])
def test_texts(case: str, tmp_path: Path) -> None:
    ours, theirs = both(model_of(case, tmp_path))
    options = {"until": ["q", "xyz"], "max_gen_toks": 6, "do_sample": False}
    asked = [
        Instance("generate_until", {}, (request.prompt.text, options), n)
        for n, request in enumerate(requests(4))
    ]
    assert ours.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)


def test_random_answers_are_refused(tmp_path: Path) -> None:
    ours, _ = both(model_of("llama", tmp_path))
    options = {"until": [], "do_sample": True, "temperature": 0.7}
    with pytest.raises(EvaluationError, match="asks for random answers"):
        ours.generate_until([Instance("generate_until", {}, ("x", options), 0)])


@pytest.mark.parametrize("case", CASES)
def test_the_local_backend_scores_as_lm_eval(case: str, tmp_path: Path) -> None:
    model = model_of(case, tmp_path)
    asked = requests(7)
    found: dict[int, ChoiceAnswer] = {}
    LocalBackend(model).choose(asked, lambda place, answer: found.update({place: answer}))
    for place, expected in enumerate(reference_scores(model, asked, batch_size=2)):
        assert found[place].log_probs == pytest.approx(expected, abs=1e-4)


def test_packed_weights_behind_lm_evals_interface(tmp_path: Path) -> None:
    pair = quantized_pair(llama(vocab_size=96), tmp_path, "awq-gemm")
    for folder in (pair.quantized, pair.dense):
        letter_tokenizer().save_pretrained(folder)
    packed = ForgeLM(load_any(str(pair.quantized), dtype="float32"))
    dense = HFLM(
        pretrained=load_any(str(pair.dense), dtype="float32").model,
        tokenizer=letter_tokenizer(), batch_size=2,
    )  # fmt: skip
    asked = pairs(3)
    assert [v for v, _ in packed.loglikelihood(asked, disable_tqdm=True)] == pytest.approx(
        [v for v, _ in dense.loglikelihood(asked, disable_tqdm=True)], abs=2e-3
    )


def test_what_is_shared_is_computed_once_and_equal_rows_too(tmp_path: Path) -> None:
    ours, _ = both(model_of("llama", tmp_path))
    asked = [
        Instance("loglikelihood", {}, (f"A long beginning of {name} here:(", letter), 0)
        for name in ("this", "that", "those")
        for letter in "ABCD"
    ]
    ours.loglikelihood(asked, disable_tqdm=True)
    read: list[int] = []
    ours._backend.trunk.model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: read.append(inputs[0].numel())
    )
    ours.loglikelihood(asked, disable_tqdm=True)
    # One letter is one prediction: three prompts are read, behind what they share.
    shared = len("A long beginning of th") + 1
    assert sum(read) <= shared + 3 * len("ose here:(") + 3


def test_too_long_for_the_model(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    asked = [Instance("loglikelihood", {}, ("x" * 80, each), 0) for each in ("A", "no")]
    with pytest.raises(IncompatibleError, match="has 81 tokens; the model knows 64"):
        ForgeLM(model).loglikelihood(asked, disable_tqdm=True)
    found = ForgeLM(model, truncate=True).loglikelihood(asked, disable_tqdm=True)
    expected = both(model)[1].loglikelihood(asked, disable_tqdm=True)
    assert [v for v, _ in found] == pytest.approx([v for v, _ in expected], abs=1e-4)


CHOICE_TASK = """\
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/test.jsonl, train: {folder}/train.jsonl}}}}
output_type: multiple_choice
test_split: test
fewshot_split: train
num_fewshot: 1
doc_to_text: "Q: {{{{question}}}} A:"
doc_to_target: answer
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - {{metric: acc}}
  - {{metric: acc_norm}}
"""
TEXT_TASK = """\
task: tiny_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/test.jsonl}}}}
output_type: generate_until
test_split: test
num_fewshot: 0
doc_to_text: "Q: {{{{question}}}} A:"
doc_to_target: "yes"
generation_kwargs: {{until: ["q"], max_gen_toks: 4, do_sample: false}}
metric_list:
  - {{metric: exact_match}}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tasks"
    folder.mkdir()
    for split, count in (("test", 6), ("train", 3)):
        rows = [
            {"question": f"{split} {n}?", "choices": ["no", "yes", "may be"], "answer": n % 3}
            for n in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "choice.yaml").write_text(CHOICE_TASK.format(folder=folder))
    (folder / "text.yaml").write_text(TEXT_TASK.format(folder=folder))
    write_model(tmp_path / "a", seed=3)
    return tmp_path


def test_tasks_of_lm_eval_give_its_own_figures(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = ["tiny_choice", "tiny_text"]

    first = evaluate_lm_eval_tasks(
        [str(place / "a")], tasks, results=place / "r.db", include_path=place / "tasks",
        settings=LocalSettings(dtype="float32"),
    )  # fmt: skip
    model = load_any(str(place / "a"), dtype="float32")
    expected = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=2),
        tasks=tasks, bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(place / "tasks"), include_defaults=False),
    )["results"]  # fmt: skip
    choice, words = first.evaluations
    for evaluation in first.evaluations:
        for name, value in evaluation.metrics.items():
            if name.startswith("lm-eval/"):
                of_task = expected[evaluation.task]
                assert value == pytest.approx(of_task[name.removeprefix("lm-eval/")]), name
    assert choice.metrics["constrained/accuracy"] == choice.metrics["lm-eval/acc,none"]
    assert (choice.suite, choice.kind, choice.shots) == ("lm-eval", "choice", 1)
    assert (words.kind, len(words.items)) == ("text", 6)
    assert (first.computed, first.reused) == (6 * 3 + 6, 0)

    monkeypatch.setattr(adapter, "ForgeLM", None)
    again = evaluate_lm_eval_tasks(
        [str(place / "a")], tasks, results=place / "r.db", include_path=place / "tasks",
        settings=LocalSettings(dtype="float32"),
    )  # fmt: skip
    assert (again.computed, again.reused) == (0, 6 * 3 + 6)
    assert again.evaluations == first.evaluations
    with open_results(place / "r.db") as store:
        assert len(store.evaluations()) == 2


def test_an_unknown_task(place: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no task 'tiny_choise'\. Did you mean 'tiny_choice"):
        evaluate_lm_eval_tasks(
            [str(place / "a")], ["tiny_choise"], results=place / "r.db",
            include_path=place / "tasks",
        )  # fmt: skip


def test_a_task_whose_data_is_missing(place: Path) -> None:
    (place / "tasks" / "test.jsonl").unlink()
    with pytest.raises(EvaluationError, match="The task 'tiny_text' of lm-eval cannot be run"):
        evaluate_lm_eval_tasks(
            [str(place / "a")], ["tiny_text"], results=place / "r.db",
            include_path=place / "tasks",
        )  # fmt: skip


def test_a_folder_that_is_missing(place: Path) -> None:
    with pytest.raises(EvaluationError, match="There is no folder"):
        evaluate_lm_eval_tasks(
            [str(place / "a")], ["x"], results=place / "r.db", include_path=place / "nowhere"
        )

"""A run computes what is missing and nothing else, and loses nothing that is finished."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge.core.errors import EvaluationError, IncompatibleError
from forge.evaluate.backends.local import LocalBackend
from forge.evaluate.ensemble import Ensemble, combine
from forge.evaluate.run import EvaluationRun, evaluate_models
from forge.evaluate.scoring import choice_metrics
from forge.evaluate.selection import Silence
from forge.evaluate.subjects import ApiModel, LocalSettings
from forge.results.answers import ChoiceAnswer
from forge.results.store import open_results
from forge.runtime import any_model
from forge.runtime.any_model import load_any
from tests.cli.process import environment
from tests.evaluate.api_server import Served, serving
from tests.evaluate.tiny_data import write_medical
from tests.evaluate.tiny_suite import write_model, write_suite

FIRST, SECOND, WORDS, SEEDS = 6, 4, 3, 2
ALL = SEEDS * (FIRST + SECOND) + WORDS


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("originals")
    write_model(root / "a", seed=1)
    write_model(root / "b", seed=2)
    return root


@pytest.fixture
def place(originals: Path, tmp_path: Path) -> Path:
    """A folder with models ``a`` and ``b`` and the suite, to be changed at will."""
    for name in ("a", "b"):
        shutil.copytree(originals / name, tmp_path / name)
    write_suite(tmp_path / "suite")
    return tmp_path


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(any_model, "_multiplies_bfloat16", lambda: False)
    return


def run(place: Path, *names: str, **options: object) -> EvaluationRun:
    return evaluate_models(
        [place / name for name in names or ("a", "b")],
        suite=str(place / "suite" / "tiny.yaml"),
        results=place / "results.db",
        **options,  # type: ignore[arg-type]
    )


def change_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    # In a mantissa of the last tensor.
    data[-4] ^= 1
    path.write_bytes(data)


def test_a_second_run_computes_nothing_and_loads_no_model(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(place)
    assert (first.computed, first.reused) == (2 * ALL, 0)
    monkeypatch.setattr("forge.evaluate.subjects.load_checkpoint", None)
    again = run(place)
    assert (again.computed, again.reused) == (0, 2 * ALL)
    assert again.evaluations == first.evaluations
    assert again.summaries == first.summaries


def test_a_run_that_finds_everything_needs_no_torch(place: Path) -> None:
    run(place, "a")
    code = (
        "import sys\n"
        "from forge.evaluate.run import evaluate_models\n"
        "found = evaluate_models(['a'], suite='suite/tiny.yaml', results='results.db')\n"
        "print(found.computed, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment(), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert made.stdout.split() == ["0", "False", "False"]


def test_a_seed_more_computes_its_answers(place: Path) -> None:
    assert run(place, seeds=(1,)).computed == 2 * (FIRST + SECOND + WORDS)
    # Without examples, the task in words asks the same whatever the seed.
    assert run(place, seeds=(1, 2)).computed == 2 * (FIRST + SECOND)


def test_a_byte_of_one_model_recomputes_that_model(place: Path) -> None:
    before = run(place)
    change_byte(place / "a" / "model.safetensors")
    after = run(place)
    assert after.computed == ALL
    assert after.models[1] == before.models[1]
    assert after.models[0].fingerprint != before.models[0].fingerprint


def test_a_tokenizers_byte_counts_as_well(place: Path) -> None:
    run(place)
    path = place / "b" / "tokenizer_config.json"
    path.write_text(path.read_text() + " ")
    assert run(place).computed == ALL


def test_a_changed_file_recomputes_what_it_asks(place: Path) -> None:
    run(place)
    path = place / "suite" / "first.jsonl"
    path.write_text(path.read_text().replace("first 25?", "first 26?"))
    assert run(place).computed == 2 * SEEDS


def test_the_right_answer_is_no_part_of_the_question(place: Path) -> None:
    before = run(place)
    path = place / "suite" / "second.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["answer"] = 1 - lines[0]["answer"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    after = run(place)
    assert after.computed == 0
    pairs = zip(after.evaluations, before.evaluations, strict=True)
    assert [new.task for new, old in pairs if new.key != old.key] == ["second"] * 4


def test_a_description_changes_nothing(place: Path) -> None:
    before = run(place)
    path = place / "suite" / "tiny.yaml"
    path.write_text(path.read_text().replace("title: Tiny", "title: Tiny\ndescription: Renamed"))
    after = run(place)
    assert (after.computed, after.evaluations) == (0, before.evaluations)


@pytest.mark.parametrize(
    "settings", [LocalSettings(dtype="bfloat16"), LocalSettings(truncate=True)]
)
def test_another_way_of_computing_is_another_answer(place: Path, settings: LocalSettings) -> None:
    run(place, "a")
    other = run(place, "a", settings=settings)
    assert other.computed == ALL
    assert {e.dtype for e in other.evaluations} == {settings.dtype or "float32"}


def test_figures_follow_from_the_stored_answers(place: Path) -> None:
    found = run(place, "a")
    with open_results(place / "results.db", create=False) as store:
        stored = {evaluation.key: evaluation for evaluation in store.evaluations()}
        assert stored == {evaluation.key: evaluation for evaluation in found.evaluations}
        for evaluation in found.evaluations:
            if evaluation.kind != "choice":
                continue
            items = store.items()
            answers = store.answers()
            chosen = [answers[key] for _, key in evaluation.items]
            metrics = choice_metrics(
                [items[digest] for digest, _ in evaluation.items],
                [each for each in chosen if isinstance(each, ChoiceAnswer)],
            )
            assert metrics == evaluation.metrics
    summary = found.summaries[0]
    first = [e.metrics["constrained/accuracy"] for e in found.evaluations if e.task == "first"]
    task = next(task for task in summary.tasks if task.task == "first")
    mean = sum(value or 0.0 for value in first) / 2
    assert task.metrics["constrained/accuracy"].mean == pytest.approx(mean)  # type: ignore[union-attr]


class StopAfter(Silence):
    """Presses Ctrl-C after some answers."""

    def __init__(self, count: int) -> None:
        self.left = count

    def advance(self, amount: int) -> None:
        self.left -= amount
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("count", [1, 3, FIRST + 1, ALL + 2])
def test_ctrl_c_loses_no_finished_answer(place: Path, count: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(place, progress=StopAfter(count))
    with open_results(place / "results.db") as store:
        assert len(store.answers()) == count
    assert run(place).computed == 2 * ALL - count


def test_a_model_that_fails_later_loses_nothing_of_an_earlier_one(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = LocalBackend.choose
    calls: list[int] = []

    def fail(self: LocalBackend, requests: object, on_done: object) -> None:
        calls.append(1)
        if len(calls) > 5:
            raise IncompatibleError("The machine is tired.")
        plain(self, requests, on_done)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalBackend, "choose", fail)
    with pytest.raises(IncompatibleError, match="tired"):
        run(place)
    monkeypatch.setattr(LocalBackend, "choose", plain)
    with open_results(place / "results.db") as store:
        # All of a, and one task of b.
        assert len(store.evaluations()) == 3 * SEEDS + 1
    assert run(place).computed == ALL - FIRST


def test_what_cannot_be_loaded_is_said_before_anything_is_computed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (place / "a" / "model.safetensors").stat().st_size
    monkeypatch.setattr(any_model, "available_memory", lambda: size // 2)
    with pytest.raises(
        IncompatibleError, match=r"needs .* GB for its weights in float32, and this"
    ):
        run(place)
    with open_results(place / "results.db") as store:
        assert store.answers() == {}


def test_an_ensemble_adds_the_members_probabilities_and_computes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = run(place)
    monkeypatch.setattr("forge.evaluate.subjects.load_checkpoint", None)
    heard: list[str] = []
    hear = Silence()
    monkeypatch.setattr(hear, "notice", heard.append)
    both = run(place, ensembles=[Ensemble("both", ("a", str(place / "b")))], progress=hear)
    assert both.computed == 0
    record = both.models[2]
    assert (record.kind, record.label, record.location) == ("ensemble", "both", "a + b")
    assert record.members == tuple(model.fingerprint for model in both.models[:2])
    assert heard == ["'both' has no row for 'words': answers in words cannot be added up."]
    with open_results(place / "results.db") as store:
        answers = store.answers()
    rows = {(e.model, e.task, e.seed): e for e in both.evaluations}
    for task in ("first", "second"):
        for seed in (1, 2):
            of = [rows[model.fingerprint, task, seed] for model in both.models]
            for keys in zip(*(e.items for e in of), strict=True):
                assert len({digest for digest, _ in keys}) == 1
                a, b, joined = (answers[key] for _, key in keys)
                assert isinstance(a, ChoiceAnswer)
                assert isinstance(b, ChoiceAnswer)
                assert joined == combine([a, b])
    assert rows[record.fingerprint, "first", 1].metrics["unconstrained/accuracy"] is None
    assert both.evaluations[: len(alone.evaluations)] == alone.evaluations
    swapped = run(place, ensembles=[Ensemble("again", ("b", "a"))])
    assert swapped.models[2].fingerprint == record.fingerprint


def test_the_sum_of_probabilities_decides_and_not_the_count_of_votes() -> None:
    from math import exp, log

    answers = [
        ChoiceAnswer((log(0.90), log(0.05)), 0, "A", log(0.9)),
        ChoiceAnswer((log(0.20), log(0.40)), None, "x", log(0.41)),
        ChoiceAnswer((log(0.10), log(0.30)), None, "x", log(0.41)),
    ]
    found = combine(answers)
    assert found.chosen("constrained") == 0
    assert found.chosen("unconstrained") is None
    assert [exp(value) for value in found.log_probs] == pytest.approx([0.4, 0.25])
    nothing = ChoiceAnswer((float("-inf"),) * 2, None, "", None)
    assert combine([nothing, nothing]).log_probs == (float("-inf"),) * 2


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (("a", "c"), "has a member 'c' that is no model of this run"),
        (("a", "a"), "needs two or more different models"),
        (("a",), "needs two or more different models"),
    ],
)
def test_wrong_ensembles(place: Path, members: tuple[str, ...], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        run(place, ensembles=[Ensemble("e", members)])


def test_an_api_row_matches_the_local_row(place: Path) -> None:
    served = Served(load_any(str(place / "a"), dtype="float32"))
    with serving(served) as url:
        api = ApiModel(url, "tiny", label="remote")
        found = run(place, "a", apis=[api])
        count = len(served.requests)
        assert count == ALL
        again = run(place, "a", apis=[api])
        assert (again.computed, len(served.requests)) == (0, count)
    record = found.models[1]
    assert (record.kind, record.label) == ("api", "remote")
    half = len(found.evaluations) // 2
    for here, there in zip(found.evaluations[:half], found.evaluations[half:], strict=True):
        assert (there.backend, there.dtype, there.chat) == ("api-completions", None, False)
        assert [digest for digest, _ in here.items] == [digest for digest, _ in there.items]
        for name, value in here.metrics.items():
            assert there.metrics[name] == pytest.approx(value, abs=1e-4), name


def test_a_letter_in_a_text_has_no_probability(place: Path) -> None:
    with serving(Served(load_any(str(place / "a"), dtype="float32"))) as url:
        found = run(place, "a", tasks=("first",), apis=[ApiModel(url, "tiny", "text")])
    for evaluation in found.evaluations:
        is_text = evaluation.backend == "api-text"
        assert evaluation.chat == is_text
        assert (evaluation.metrics["option_mass"] is None) == is_text
        assert (evaluation.metrics["constrained/ece"] is None) == is_text
        assert evaluation.metrics["unconstrained/accuracy"] is not None


def test_an_api_that_fails_in_the_middle_loses_nothing(place: Path) -> None:
    served = Served(load_any(str(place / "a"), dtype="float32"))
    served.disturb = lambda number, path: (404, b"gone") if number > 9 else None
    with serving(served) as url:
        api = ApiModel(url, "tiny")
        with pytest.raises(EvaluationError, match="answered 404"):
            run(place, "a", apis=[api])
        with open_results(place / "results.db") as store:
            assert len(store.answers()) == ALL + 9
        served.disturb = lambda number, path: None
        assert run(place, "a", apis=[api]).computed == ALL - 9


def test_labels(place: Path) -> None:
    found = run(place, labels={"Alpha": str(place / "a")})
    assert [model.label for model in found.models] == ["Alpha", "b"]
    with pytest.raises(EvaluationError, match="names no model of this run"):
        run(place, labels={"Alpha": "elsewhere"})
    with pytest.raises(EvaluationError, match="are both called 'b'"):
        run(place, labels={"b": str(place / "a")})


def test_the_same_model_twice(place: Path) -> None:
    shutil.copytree(place / "a", place / "c")
    with pytest.raises(EvaluationError, match="'a' and 'c' are the same model, byte by byte"):
        run(place, "a", "c")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("frist",)}, r"The suite 'tiny' has no task 'frist'\. Did you mean 'first'"),
        ({"seeds": (7,)}, "has no set of examples 7"),
        ({"quick": 0}, "measures nothing"),
    ],
)
def test_wrong_selections(place: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        run(place, **options)


def test_a_quick_run_says_what_it_can_show(place: Path) -> None:
    found = run(place, "a", quick=4, tasks=("first",))
    assert {evaluation.seed for evaluation in found.evaluations} == {1, 2}
    assert len(run(place, "a", tasks=("words",)).evaluations) == 1
    assert found.computed == SEEDS * 4
    assert "4 items can show a difference" in str(found.evaluations[0].sample["detectable"])


def test_chat_prompts_go_through_the_template(place: Path) -> None:
    config = place / "a" / "tokenizer_config.json"
    template = "{% for m in messages %}({{ m.role[0] }}) {{ m.content }}\n{% endfor %}(a) "
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
    plain = run(place, "a", tasks=("first",))
    chat = run(place, "a", tasks=("first",), settings=LocalSettings(chat=True))
    assert chat.computed == plain.computed == SEEDS * FIRST
    assert {e.chat for e in chat.evaluations} == {True}
    with pytest.raises(EvaluationError, match="has no chat template"):
        run(place, "b", settings=LocalSettings(chat=True))


def test_nothing_to_evaluate(place: Path) -> None:
    with pytest.raises(EvaluationError, match="There is no model to evaluate"):
        evaluate_models([], suite=str(place / "suite" / "tiny.yaml"), results=place / "r.db")


class Heard(Silence):
    """Keeps the notices."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


def test_missing_data_is_refused_or_said_and_never_averaged_over(place: Path) -> None:
    data = write_medical(place / "data", five_options=False)

    def evaluate(*, skip_missing: bool, progress: Heard) -> EvaluationRun:
        return evaluate_models(
            [place / "a"], suite="medical", data_dir=data, quick=2, seeds=(1,),
            tasks=("mmlu_anatomy", "medqa_5_options"), skip_missing=skip_missing,
            results=place / "results.db", settings=LocalSettings(truncate=True), progress=progress,
        )  # fmt: skip

    with pytest.raises(EvaluationError, match=r"medqa_5options.*\n.*--skip-missing"):
        evaluate(skip_missing=False, progress=Heard())
    heard = Heard()
    found = evaluate(skip_missing=True, progress=heard)
    assert [record.task for record in found.evaluations] == ["mmlu_anatomy"]
    assert found.summaries[0].absent == ("medqa_5_options",)
    assert "Left out for lack of data: medqa_5_options." in " ".join(heard.notices)

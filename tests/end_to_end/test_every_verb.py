"""Every verb of ``forge`` on the tiny checkpoints of every row of the table, one after the other.

The models are those that transformers saved (``tests/architectures/rows.py``); each verb works on
what the verbs before it made. Commands run in this process, and so do the workers of ``profile``,
because importing torch once a command would be all that is measured; ``test_profile.py`` runs real
ones. What a verb prints is read, not only its exit code.

A few rows run by default, all of them with ``-m 'slow or not slow'``, in less than three minutes on
two cores.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from safetensors.torch import load_file

from forge.architectures.table import ARCHITECTURES
from forge.cli.app import _VERBS, run
from forge.profile import session
from forge.profile.devices import open_device
from forge.profile.turns import take_turns
from forge.profile.worker import Request, Worker
from tests.architectures.rows import BASE, FIRST, ROWS, SECOND, Row, write_row

RECIPE = f"""\
merge_method: dare_ties
base_model: ./{BASE}
models:
  - model: ./{FIRST}
    parameters: {{density: 0.5, weight: 0.6}}
  - model: ./{SECOND}
    parameters: {{density: 0.5, weight: 0.4}}
"""
MIXTURE = f"""\
base_model: ./{BASE}
gate_mode: random
experts:
  - source_model: ./{FIRST}
  - source_model: ./{SECOND}
"""
SHARED = f"shared_experts: [{{source_model: ./{BASE}, residual_scale: 0.1}}]\n"
MIXTURES = {"llama": "mixtral", "mistral": "mixtral", "qwen2": "qwen2_moe", "qwen3": "qwen3_moe"}
SUITE = """\
title: Letters
prompts:
  plain: {question: "{question}\\n{options}", cue: "\\n(", answer: "{letter}"}
columns:
  mine: {id: id, question: question, options: choices, answer: answer}
tasks:
  - {name: first, prompt: plain, columns: mine, shots: 0, data: {beside: first.jsonl}}
"""
CARD = """\
| Model | first |
| --- | --- |
| merged | {merged} |
| quantized | {quantized} |
"""
TRIED = frozenset(
    {
        "merge", "moe", "lora", "check", "methods", "quantize", "calibrate", "convert", "generate",
        "profile", "eval", "divergence", "report", "lint", "results", "inspect", "verify", "diff",
    }
)  # fmt: skip
CALIBRATION = (
    "--calibration", "self", "--calibration-samples", "8", "--calibration-tokens", "32",
)  # fmt: skip
QUIET = ("--threads", "1", "--quiet")


class WorkerHere:
    """A worker of ``profile`` in this process: it measures, and starts nothing.

    Args:
        request: What it is for.
    """

    def __init__(self, request: Request) -> None:
        self.peak_bytes: int | None = None
        self._device = open_device(request.setting.device)
        self._worker = Worker(request, self._device.__enter__())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._device.__exit__(None, None, None)

    def await_ready(self) -> None:
        """Do nothing: the libraries are imported."""

    def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        """Do a command."""
        return dict(self._worker.commands[command](arguments))

    def end(self) -> None:
        """Do nothing: there is no process."""


class Place:
    """A row's models, and commands that run beside them."""

    def __init__(self, row: Row, root: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.row, self.root, self._capture = row, root, capture
        self.verbs: set[str] = set()

    def forge(self, *arguments: str, code: int = 0) -> str:
        """Run a command; return its stdout, or its stderr where it must be refused."""
        self.verbs.add(arguments[0])
        self._capture.readouterr()
        found = run(arguments)
        said = self._capture.readouterr()
        assert found == code, f"{' '.join(arguments)}\n{said.err}{said.out}"
        return said.err if code else said.out

    def json(self, *arguments: str) -> Any:
        """Run a command, and return what it prints as JSON."""
        return json.loads(self.forge(*arguments, "--json"))


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(session, "take_turns", partial(take_turns, start=WorkerHere))
    monkeypatch.setattr(session, "noise_before", lambda cores: {"load_before": 0.0})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "title",
    [title if row.is_quick else pytest.param(title, marks=pytest.mark.slow)
     for title, row in ROWS.items()],
)  # fmt: skip
def test_every_verb(
    title: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = Place(ROWS[title], write_row(title, tmp_path), capsys)
    monkeypatch.chdir(tmp_path)
    _merge(place)
    _look(place)
    _extract(place)
    _calibrate(place)
    variants = ["out"]
    if place.row.refusal is None:
        variants += _quantize(place)
    else:
        said = place.forge("quantize", "out", "--method", "awq", "--out", "no", code=2)
        assert place.row.refusal in said
        # Without a variant, a parent is compared with the merge.
        variants.append(FIRST)
        said = place.forge("convert", "out", "--to", "gemv", "--out", "no", code=2)
        assert "error: 'out' is not quantized" in said
    _build_mixture(place)
    _run_models(place, variants)
    _measure(place, variants[:2])
    assert place.verbs == TRIED


def test_no_verb_is_left_out() -> None:
    assert set(_VERBS) == TRIED, "try the new verb on every row, too"


def _merge(place: Place) -> None:
    (place.root / "recipe.yaml").write_text(RECIPE)
    found = place.json("check", "recipe.yaml")
    assert found["ok"]
    assert {model["architecture"] for model in found["models"]} == {place.row.family}
    warnings = {each["code"] for each in found["findings"] if each["level"] == "warning"}
    assert warnings == ({"routers"} if place.row.has_experts else set())
    plan = place.json("merge", "recipe.yaml", "--dry-run", "--out", "out")
    assert not (place.root / "out").exists()
    place.forge("merge", "recipe.yaml", "--out", "out", *QUIET)
    tensors = load_file(place.root / "out" / "model.safetensors")
    assert {job["output"] for job in plan["jobs"]} == set(tensors)
    assert plan["architecture"] == place.row.family
    assert "weight" in place.forge("methods", "dare_ties")


def _look(place: Place) -> None:
    assert place.json("verify", "out")["ok"]
    found = place.json("inspect", "out")
    assert (found["architecture"], found["num_layers"]) == (place.row.family, 2)
    places = [row["place"] for row in found["layers"]]
    assert places[:3] == ["embedding", "layer 0", "layer 1"]
    difference = place.json("diff", BASE, "out")
    assert difference["only_a"] == difference["only_b"] == []
    changed = {row["place"] for row in difference["layers"] if row["num_changed"]}
    assert {"layer 0", "layer 1"} <= changed


def _extract(place: Place) -> None:
    """A fine-tune as an adapter of full rank is the fine-tune again, in what an adapter holds."""
    place.forge(
        "lora", "extract", FIRST, "--base", BASE, "--energy", "1", "--no-divergence",
        "--out", "adapter", *QUIET,
    )  # fmt: skip
    recipe = f"merge_method: linear\nmodels:\n  - model: ./{BASE}+./adapter\n"
    (place.root / "adapter.yaml").write_text(f"{recipe}    parameters: {{weight: 1}}\n")
    place.forge("merge", "adapter.yaml", "--out", "adapted", *QUIET)
    base, first, adapted = (
        load_file(place.root / name / "model.safetensors") for name in (BASE, FIRST, "adapted")
    )
    held = " ".join(load_file(place.root / "adapter" / "adapter_model.safetensors"))
    row = ARCHITECTURES[place.row.family]
    matrices = [
        name
        for name in first
        if row.layer_of(name) is not None and f"{name.removesuffix('.weight')}.lora_A" in held
    ]
    assert {row.layer_of(name) for name in matrices} == {0, 1}
    for name in matrices:
        step = (first[name].float() - base[name].float()).norm()
        assert (adapted[name].float() - first[name].float()).norm() < 0.01 * step, name


def _calibrate(place: Place) -> None:
    arguments = ("calibrate", FIRST, "--statistics", "regmean", *CALIBRATION, "--out", "inputs")
    if place.row.refusal is not None:
        assert place.row.refusal in place.forge(*arguments, code=2)
        return
    place.forge(*arguments, *QUIET)
    assert list((place.root / "inputs").glob("*.safetensors"))


def _quantize(place: Place) -> list[str]:
    check = ("--verify", "quick", *QUIET)
    place.forge(
        "quantize", "out", "--method", "awq", "--version", "gemm", "--group-size", "32",
        *CALIBRATION, "--out", "awq", *check,
    )  # fmt: skip
    keep = ("--keep", ",".join(place.row.keep)) if place.row.keep else ()
    place.forge(
        "quantize", "out", "--method", "bnb", "--type", "nf4", *keep, "--out", "nf4", *check
    )
    place.forge("convert", "awq", "--to", "gemv", "--out", "gemv", *QUIET)
    found = place.json("verify", "gemv", "--against", "awq", "--quick", "--quiet")
    assert found["ok"]
    assert found["quantized"]["format"] == "awq-gemv"
    return ["awq", "nf4", "gemv"]


def _build_mixture(place: Place) -> None:
    shared = SHARED if MIXTURES.get(place.row.family) == "qwen2_moe" else ""
    (place.root / "moe.yaml").write_text(MIXTURE + shared)
    if place.row.family not in MIXTURES:
        said = place.forge("moe", "moe.yaml", "--out", "moe", code=2)
        assert f"./{BASE} is a '{place.row.family}' model, which" in said
        assert "it builds mixtral of llama or mistral" in said
        return
    place.forge("moe", "moe.yaml", "--out", "moe", *QUIET)
    assert place.json("inspect", "moe")["architecture"] == MIXTURES[place.row.family]
    place.forge("generate", "moe", "A dose", "--max-new-tokens", "2", *QUIET)


def _run_models(place: Place, variants: list[str]) -> None:
    for name in variants:
        reply = place.json("generate", name, "A dose", "--max-new-tokens", "3", *QUIET)
        assert 1 <= reply["tokens"] <= 3
    # Two layouts of the same codes say the same.
    if "gemv" in variants:
        texts = [place.json("generate", name, "Is it", "--max-new-tokens", "4", *QUIET)["text"]
                 for name in ("awq", "gemv")]  # fmt: skip
        assert texts[0] == texts[1]


def _measure(place: Place, variants: list[str]) -> None:
    (place.root / "letters.yaml").write_text(SUITE)
    questions = [
        {"id": str(n), "question": f"{n}?", "choices": ["no", "yes"], "answer": n % 2}
        for n in range(4)
    ]
    (place.root / "first.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    kept = ("--results", "results.db", *QUIET)
    found = place.json("eval", *variants, "--suite", "letters.yaml", "--dtype", "float32", *kept)
    assert found["computed"] == 8
    accuracies = {
        each["model"]: 100 * each["metrics"]["constrained/accuracy"]
        for each in found["evaluations"]
    }
    assert len(accuracies) == 2
    source, variant = variants
    place.forge(
        "profile", *variants, "--prompt-tokens", "8", "--new-tokens", "2", "--rounds", "1",
        "--samples", "1", "--no-control", *kept,
    )  # fmt: skip
    figures = place.json("divergence", variant, "--against", source, "--tokens", "128", *kept)
    assert figures["figures"]["mean"] > 0
    assert len(figures["layers"]) == 2
    listed = place.json("results", "results.db")
    assert [row["label"] for row in listed] == variants
    assert [(row["evaluations"], row["profiles"]) for row in listed] == [(1, 1), (1, 1)]
    place.forge("report", "--results", "results.db", "--out", "report", "--formats", "md,json")
    page = (place.root / "report" / "report.md").read_text()
    assert all(name in page for name in variants)
    place.forge("lint", "report/report.md")
    merged, quantized = accuracies.values()
    (place.root / "card.md").write_text(CARD.format(merged=merged, quantized=quantized))
    place.forge("lint", "card.md")

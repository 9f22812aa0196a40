"""``forge eval`` and ``forge results`` as their users run them."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from forge.cli.evaluate import command as eval_command
from forge.results.store import open_results
from forge.runtime.any_model import load_any
from tests.cli.process import environment, forge
from tests.evaluate.api_server import Served, serving
from tests.evaluate.tiny_suite import write_model, write_suite

SUITE = ("--suite", "suite/tiny.yaml", "--dtype", "float32", "--threads", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models and a suite, and the results of evaluating both."""
    root = tmp_path_factory.mktemp("place")
    write_model(root / "a", seed=1)
    write_model(root / "b", seed=2)
    write_suite(root / "suite")
    made = forge("eval", "a", "b", *SUITE, "--ensemble", "both=a+b", "--results", "r.db", cwd=root)
    assert made.returncode == 0, made.stderr
    assert "46 answers computed, 0 found; all are in 'r.db'." in made.stderr
    (root / "first.txt").write_text(made.stdout)
    open_results(root / "old.db").close()
    connection = sqlite3.connect(root / "old.db")
    connection.execute("PRAGMA user_version = 0")
    connection.close()
    return root


def test_the_table(place: Path) -> None:
    lines = (place / "first.txt").read_text().splitlines()
    assert lines[0] == (
        "Accuracy in %, constrained (the likeliest option), mean ± standard deviation over sets of "
        "examples"
    )
    assert lines[2].split() == ["task", "items", "a", "b", "both"]
    titles = [line.split("  ")[0] for line in lines[4:12]]
    assert titles == ["first", "second", "macro average", "micro average", "missing",
                      "option mass", "majority", "ECE"]  # fmt: skip
    assert "Answers in words, in %" in lines
    with open_results(place / "r.db", create=False) as store:
        of_a = store.models()[0].fingerprint
        values = [
            100 * (each.metrics["constrained/accuracy"] or 0.0)
            for each in store.evaluations()
            if each.model == of_a and each.task == "first"
        ]
    assert f"{sum(values) / 2:.1f}" in lines[4].split()


def test_again_from_the_store_and_in_the_other_mode(place: Path) -> None:
    arguments = ("eval", "a", "b", *SUITE, "--ensemble", "both=a+b", "--results", "r.db")
    again = forge(*arguments, cwd=place)
    assert again.stdout == (place / "first.txt").read_text()
    assert "0 answers computed, 46 found" in again.stderr
    other = forge(*arguments, "--mode", "unconstrained", cwd=place)
    assert other.stdout.startswith("Accuracy in %, unconstrained (the likeliest token of all)")
    # An ensemble has no unconstrained answer.
    row = next(line for line in other.stdout.splitlines() if line.startswith("first"))
    assert len(row) < len(other.stdout.splitlines()[2])


def test_json(place: Path) -> None:
    made = forge("eval", "a", *SUITE, "--results", "r.db", "--json", "--quiet", cwd=place)
    found = json.loads(made.stdout)
    assert made.stderr == ""
    assert (found["computed"], found["reused"]) == (0, 23)
    assert [model["label"] for model in found["models"]] == ["a"]
    assert len(found["evaluations"]) == 6
    assert found["summaries"][0]["macro"]["constrained/accuracy"]["mean"] >= 0


def test_a_quick_run_says_what_it_can_show(place: Path, tmp_path: Path) -> None:
    made = forge(
        "eval", "a", *SUITE, "--quick", "4", "--tasks", "first", "--seeds", "2",
        "--label", "Alpha=a", "--results", str(tmp_path / "q.db"), cwd=place,
    )  # fmt: skip
    assert "4 items can show a difference of" in made.stdout
    assert "Alpha" in made.stdout
    assert "4 answers computed" in made.stderr


def test_results_are_listed_and_exported(place: Path, tmp_path: Path) -> None:
    listed = forge("results", "r.db", cwd=place).stdout.splitlines()
    assert listed[0].split()[:3] == ["model", "kind", "evaluations"]
    assert [line.split()[:4] for line in listed[2:]] == [
        ["a", "local", "6", "tiny"], ["b", "local", "6", "tiny"], ["both", "ensemble", "4", "tiny"],
    ]  # fmt: skip
    records = json.loads(forge("results", "r.db", "--json", cwd=place).stdout)
    assert [record["evaluations"] for record in records] == [6, 6, 4]
    out = tmp_path / "deep" / "all.jsonl"
    made = forge("results", "r.db", "--export", str(out), cwd=place)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert f"{len(lines)} lines written" in made.stderr
    assert sum(line["table"] == "answers" for line in lines) == 46 + 20
    to_stdout = forge("results", "r.db", "--export", "-", cwd=place)
    assert to_stdout.stdout == out.read_text()


def test_an_api_row(place: Path, tmp_path: Path) -> None:
    served = Served(load_any(str(place / "a"), dtype="float32"))
    with serving(served) as url:
        made = forge(
            "eval", "a", *SUITE, "--api", url, "--api-model", "tiny", "--label", "remote=tiny",
            "--results", str(tmp_path / "r.db"), "--json", cwd=place,
        )  # fmt: skip
    assert made.returncode == 0, made.stderr
    here, there = json.loads(made.stdout)["summaries"]
    assert there["backend"] == "api-completions"
    for name, value in here["macro"].items():
        assert (there["macro"][name] is None) == (value is None)
        if value is not None:
            assert there["macro"][name]["mean"] == pytest.approx(value["mean"], abs=1e-4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_is_finished(
    number: signal.Signals, place: Path, tmp_path: Path
) -> None:
    """The API answers slowly, so that the signal comes in the middle."""

    def slowly(count: int, path: str) -> None:
        time.sleep(0.05)

    served = Served(load_any(str(place / "a"), dtype="float32"), slowly)
    arguments = [
        sys.executable, "-m", "forge", "eval", *SUITE, "--api-model", "tiny",
        "--results", str(tmp_path / "r.db"), "--quiet", "--api",
    ]  # fmt: skip
    with serving(served) as url:
        running = subprocess.Popen(
            [*arguments, url], cwd=place, env=environment(), stderr=subprocess.PIPE, text=True
        )
        while len(served.requests) < 8:
            time.sleep(0.01)
        os.kill(running.pid, number)
        _, said = running.communicate(timeout=60)
        assert running.returncode == 128 + number
        assert said == "interrupted; the same command resumes\n"
        with open_results(tmp_path / "r.db") as store:
            kept = len(store.answers())
        assert 1 <= kept < 23
        served.disturb = lambda count, path: None
        again = subprocess.run(
            [*(each for each in arguments if each != "--quiet"), url], cwd=place,
            env=environment(), capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert f"{23 - kept} answers computed, {kept} found" in again.stderr


WRONG: list[tuple[tuple[str, ...], str]] = [
    (("a",), "Name what to run: --suite SUITE or --lm-eval-tasks A,B."),
    (("--suite", "demo"), "Name a MODEL, or one behind --api."),
    (("a", "--suite", "medcial"), "There is no suite 'medcial'. Did you mean 'medical'?"),
    (("a", "--suite", "none.yaml"), "There is no suite file 'none.yaml'."),
    (("a", *SUITE, "--tasks", "frist"), "has no task 'frist'. Did you mean 'first'?"),
    (("a", *SUITE, "--seeds", "1,x"), "'1,x' is no list of whole numbers such as 1,2,3."),
    (("a", *SUITE, "--seeds", "9"), "has no set of examples 9"),
    (("nowhere", *SUITE), "nowhere"),
    (("a", *SUITE, "--chat"), "'a' has no chat template. Leave --chat away"),
    (("a", *SUITE, "--ensemble", "e=a+c"), "has a member 'c' that is no model of this run"),
    (("a", *SUITE, "--ensemble", "e"), "'e' is not of the form NAME=..."),
    (("a", *SUITE, "--results", "old.db"), "written by an older forge"),
    (("a", *SUITE, "--results", "suite/tiny.yaml"), "is no SQLite file, or a damaged one"),
    (("a", *SUITE, "--api", "http://x/v1"), "--api and --api-model belong together."),
    (("a", *SUITE, "--api", "x", "--api-model", "m"), "'x' is no URL of an API."),
    (
        ("a", *SUITE, "--api", "http://127.0.0.1:9/v1", "--api-model", "m", "--api-key-env", "NO"),
        "The environment variable 'NO' has no API key.",
    ),
    (("a", "--suite", "medical", "--data-dir", "suite"), "suite"),
    (("a", *SUITE, "--dtype", "int3"), "Nothing is computed in 'int3'"),
    (("a", *SUITE, "--device", "cuda"), "There is no device 'cuda' here; use 'cpu'."),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_inputs_are_one_message(
    arguments: tuple[str, ...], message: str, place: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from forge.cli.app import run

    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said: list[str] = []
    monkeypatch.setattr("forge.cli.console.say", said.append)
    options = () if "--results" in arguments else ("--results", str(tmp_path / "r.db"))
    assert run(["eval", *arguments, *options, "--quiet"]) == 2
    text = "\n".join(said)
    assert message in text.replace("\n       ", " ")
    assert "Traceback" not in text
    assert text.count("error: ") == 1


def test_results_of_nothing(tmp_path: Path) -> None:
    made = forge("results", cwd=tmp_path)
    assert made.returncode == 2
    assert "There is no results file 'reports/results.db'. Measure something first" in made.stderr
    assert not (tmp_path / "reports").exists()


def test_help_explains_every_option() -> None:
    shown = CliRunner().invoke(eval_command, ["--help"]).output
    for option in eval_command.params:
        assert not isinstance(option, click.Option) or option.help, option.name
    assert "Answers are kept in the results file and never computed twice" in " ".join(
        shown.split()
    )

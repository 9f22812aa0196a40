"""``forge profile``: what it prints, what it refuses, and that a stop loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from forge.cli.app import run
from forge.cli.profile_progress import TurnLines
from forge.profile import run as profile_run
from forge.profile import session
from forge.profile.setting import Effort
from forge.profile.turns import Seat
from forge.profile.worker_process import WorkerError
from forge.results.store import open_results
from tests.cli.golden import check_golden
from tests.cli.process import environment
from tests.factory import tiny_checkpoint

pytestmark = pytest.mark.alone

Capture = pytest.CaptureFixture[str]
BODY = {
    "cpu": {"model": "Test CPU", "cores": 2},
    "gpu": None,
    "memory_bytes": 8 * 10**9,
    "versions": {"forge": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
}
TIMES = {
    "source": (0.100, 0.110, 0.020),
    "source again": (0.101, 0.111, 0.0201),
    "fast": (0.125, 0.140, 0.010),
    "same": (0.1003, 0.1103, 0.02005),
}
"""Seconds of a prompt, of the first token and of a step, by model."""


def take_turns(queue: Sequence[Seat], effort: Effort, *, together: bool, done: object) -> None:
    """Fill in figures that were never measured."""
    for seat in queue:
        if seat.name == "broken":
            seat.leave(WorkerError("failed", "ValueError: no such layer."))
            continue
        for quantity, value in zip(
            ("prefill_s", "ttft_s", "decode_s"), TIMES[seat.name], strict=True
        ):
            seat.samples[quantity] = [
                [value * (1 + 0.001 * number)] * effort.samples for number in range(effort.rounds)
            ]
        seat.samples["load_s"] = [[1.5]]
        seat.backend = "forge plain, float32, sdpa attention"
        seat.memory = {
            "weights_in_memory": 538_000_000, "peak_resident_loading": 900_000_000,
            "peak_resident_running": 950_000_000, "peak_resident": 950_000_000,
            "kv_per_token": 46_080, "kv_per_token_by_formula": 46_080,
        }  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with models and without a machine."""
    for seed, name in enumerate(("source", "fast", "same", "broken")):
        tiny_checkpoint(tmp_path / name, seed=seed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(session, "take_turns", take_turns)
    monkeypatch.setattr(session, "noise_before", lambda cores: {"load_before": 0.25})
    monkeypatch.setattr(profile_run, "describe_environment", lambda device: BODY)
    return tmp_path


COMMON = ["--prompt-tokens", "16", "--new-tokens", "4", "--threads", "2", "--quiet"]


def test_two_tables_and_what_to_know_of_them(place: Path, capsys: Capture) -> None:
    assert run(["profile", "source", "fast", "same", "broken", *COMMON]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    check_golden("profile", captured.out)
    # A second time nothing is measured, and it is said.
    assert run(["profile", "source", "fast", "same", "broken", *COMMON]) == 0
    assert "measured before (--again measures anew)" in capsys.readouterr().out


def test_json_holds_raw_samples_and_verdicts(place: Path, capsys: Capture) -> None:
    assert run(["profile", "source", "fast", "same", "--json", "--rounds", "3", *COMMON]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["baseline"] == "source"
    assert found["effort"] == {"rounds": 3, "samples": 2, "seed": 0, "control": True}
    base, fast, same = found["sessions"][0]["profiles"]
    assert base["ratios"] == {}
    assert len(base["samples"]["control_decode_s"]) == 3
    assert fast["ratios"]["decode"]["verdict"] == "faster"
    assert fast["ratios"]["decode"]["ratio"] == pytest.approx(2.0)
    assert fast["ratios"]["prefill"]["verdict"] == "slower"
    assert same["ratios"]["decode"]["verdict"] == "≈"
    assert fast["decode_tokens_per_s"] == pytest.approx(1 / 0.01001)
    assert fast["summary"]["decode_s"]["count"] == 6
    assert [len(each) for each in fast["samples"]["decode_s"]] == [2, 2, 2]


def test_a_sweep_prints_a_part_for_each_setting(place: Path, capsys: Capture) -> None:
    assert run(["profile", "source", "fast", *COMMON, "--batch", "1, 4"]) == 0
    out = capsys.readouterr().out
    assert out.count("batch 1, 16 prompt and 4 new tokens, cpu, 2 threads; 5 rounds of 2") == 1
    assert out.count("batch 4, 16 prompt and 4 new tokens") == 1
    with open_results(place / "reports" / "results.db", create=False) as store:
        assert len(store.profiles()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["source", "--batch", "0"], "--batch 0 is not from 1 to 4,194,304."),
        (["source", "--batch", "1,x"], "'1,x' is no number; write one such as 4, or several"),
        (["source", "--prompt-tokens", "500"], "'source' knows 128 positions"),
        (["source", "fast", "--baseline", "sorce"], "Did you mean 'source'?"),
        (["source", "--results", "source/config.json"], "is no SQLite file, or a damaged one"),
        (["source", "--dtype", "int3"], "--dtype int3 is no type that models compute in."),
        (["source", "--device", "cuda:77"], "There is no device 'cuda:77' here; use 'cpu'."),
        ([], "Missing argument 'MODEL...'"),
        (["source", "--rounds", "0"], "0 is not in the range"),
    ],
)
def test_wrong_inputs_are_one_message(
    arguments: list[str], message: str, place: Path, capsys: Capture
) -> None:
    assert run(["profile", "--prompt-tokens", "16", "--new-tokens", "4", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.err.count("error: ") == 1


def test_lines_say_rate_and_time_left(capsys: Capture) -> None:
    now = [0.0]
    lines = TurnLines(lambda: now[0])
    lines.stage("measuring")
    lines.start(20, 10)
    for number in range(3):
        now[0] += 3.0
        lines.status(f"batch 1: model {number}")
        lines.advance(1)
    assert capsys.readouterr().err == (
        "measuring ...\n10 turns of 20 were measured before\n"
        "12 of 20 turns  20 a minute  24 s left  batch 1: model 1\n"
    )


def test_a_stop_in_the_middle_keeps_what_is_complete_and_leaves_no_process(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "a")
    tiny_checkpoint(tmp_path / "b", seed=1)
    command = [
        sys.executable, "-m", "forge", "profile", "a", "b", "--prompt-tokens", "8,9,10",
        "--new-tokens", "3", "--rounds", "1", "--samples", "1", "--threads", "1", "--no-control",
    ]  # fmt: skip
    results = tmp_path / "reports" / "results.db"
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
            if results.is_file() and _profiles(results) >= 2:
                break
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said.endswith("interrupted; the same command resumes\n")
    assert _profiles(results) in (2, 4)
    assert "forge.profile.worker" not in _children_named(tmp_path)


def _profiles(results: Path) -> int:
    with open_results(results, create=False) as store:
        return len(store.profiles())


def _children_named(place: Path) -> str:
    """Return the command lines of processes that work in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cwd").resolve() == place:
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return "\n".join(found)

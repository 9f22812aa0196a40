"""A worker answers line by line, and its parent learns how it ended."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forge.profile import worker as worker_module
from forge.profile.setting import Setting
from forge.profile.worker import Request, serve
from forge.profile.worker_process import KILLED, WorkerError, WorkerProcess, ends_a_sweep
from tests.factory import tiny_checkpoint

pytestmark = pytest.mark.alone

SETTING = Setting("cpu", None, 1, 2, 6, 3)


def request(reference: Path | str, setting: Setting = SETTING) -> Request:
    return Request(str(reference), setting, seed=0, vocabulary=32)


def answers(wanted: Request, *commands: dict[str, object]) -> tuple[int, list[dict[str, Any]]]:
    """Serve commands in this process."""
    found: list[dict[str, Any]] = []
    lines = io.StringIO("".join(json.dumps(command) + "\n" for command in commands))
    return serve(wanted, lines, found.append), found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("worker") / "model"
    tiny_checkpoint(root)
    return root


def test_a_request_survives_its_journey() -> None:
    assert Request.load(request("a+b").dump()) == request("a+b")


def test_every_command_is_answered_once(model: Path) -> None:
    code, found = answers(
        request(model), {"do": "load"}, {"do": "warm_up"}, {"do": "measure", "samples": 2},
        {"do": "measure", "samples": 1}, {"do": "finish"}, {"do": "load"},
    )  # fmt: skip
    assert code == 0
    ready, load, warm, first, second, finish = (answer["ok"] for answer in found)
    assert ready == {}
    assert load["load_s"] > 0
    assert load["backend"] == "forge plain, float32, sdpa attention"
    assert warm["runs"] >= 2
    assert [len(first["samples"][name]) for name in ("prefill_s", "ttft_s", "decode_s")] == [
        2, 2, 6,
    ]  # fmt: skip
    assert len(second["samples"]["decode_s"]) == 3
    assert first["cpu_s"] > 0
    memory = finish["memory"]
    # 2 layers, keys and values, 2 heads of 4, float32.
    assert memory["kv_per_token"] == memory["kv_per_token_by_formula"] == 2 * 2 * 2 * 4 * 4
    assert memory["peak_resident"] >= memory["peak_resident_loading"] > 0
    assert memory["peak_allocated"] is memory["driver"] is None
    assert memory["anonymous"] > 0


def test_a_model_that_does_not_load_is_one_message(tmp_path: Path) -> None:
    code, found = answers(request(tmp_path / "nothing"), {"do": "load"})
    assert code == worker_module.FAILED
    assert found[-1]["failed"]["status"] == "failed"
    assert "nothing" in found[-1]["failed"]["message"]


def test_memory_that_runs_out_has_a_status_of_its_own(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from forge.profile.probes import Probe

    def too_much(self: Probe, samples: int, *, steps: int | None = None) -> None:
        torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(Probe, "measure", too_much)
    code, found = answers(request(model), {"do": "load"}, {"do": "warm_up"})
    assert code == worker_module.FAILED
    assert found[-1]["failed"]["status"] == "out of memory"
    assert found[-1]["failed"]["message"].startswith("Memory ran out: ")
    assert ends_a_sweep("out of memory")
    assert ends_a_sweep(KILLED)
    assert not ends_a_sweep("failed")


def test_a_defect_names_its_kind(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise TypeError("no such thing\nand more")

    monkeypatch.setattr("forge.runtime.any_model.load_any", broken)
    _, found = answers(request(model), {"do": "load"})
    assert found[-1]["failed"] == {"status": "failed", "message": "TypeError: no such thing"}


def test_measuring_before_loading_is_refused(model: Path) -> None:
    _, found = answers(request(model), {"do": "measure", "samples": 1})
    assert "No model is loaded yet" in found[-1]["failed"]["message"]


PARENT = """
import os, sys
pid = os.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(pid, 0)
print("Maximum resident set size (kbytes):", usage.ru_maxrss, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize(
    "observer", [["/usr/bin/time", "-v"], [sys.executable, "-S", "-I", "-c", PARENT]],
    ids=["time", "wait4"],
)  # fmt: skip
def test_the_peak_agrees_with_an_independent_reading(observer: list[str], model: Path) -> None:
    """Observers that are small themselves, so that what they saw is the worker's alone."""
    if not Path(observer[0]).is_file():
        pytest.skip(f"there is no {observer[0]}")
    words = ({"do": "load"}, {"do": "warm_up"}, {"do": "measure", "samples": 1}, {"do": "finish"})
    command = [*observer, sys.executable, "-m", "forge.profile.worker", request(model).dump()]
    done = subprocess.run(
        command, input="".join(json.dumps(word) + "\n" for word in words), capture_output=True,
        text=True, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    memory = json.loads(done.stdout.splitlines()[-1])["ok"]["memory"]
    found = re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)
    assert found is not None
    own = memory["peak_resident_running"] or memory["peak_resident"]
    assert own == pytest.approx(1024 * int(found[1]), rel=0.03)


def test_a_process_measures_and_its_peak_is_seen_from_outside(model: Path) -> None:
    with WorkerProcess(request(model)) as process:
        process.await_ready()
        process.ask("load")
        process.ask("warm_up")
        process.ask("measure", samples=1)
        memory = process.ask("finish")["memory"]
        process.end()
        own = memory["peak_resident_running"] or memory["peak_resident"]
        assert process.peak_bytes is not None
        # The kernel may count this process's own peak as its child's, never less than the child's.
        assert process.peak_bytes >= 0.97 * own


def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Put a program in the place of Python's, which gets the same arguments."""
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        (
            "import os; os.kill(os.getpid(), 9)",
            KILLED,
            "ended from outside (Killed), as the kernel",
        ),
        ("import os; os.abort()", "failed", "ended from outside (Aborted)."),
        ("import sys; sys.exit('no torch here')", "failed", "exit code 1: no torch here"),
        ("import sys; sys.exit(5)", "failed", "exit code 5: it said nothing"),
        ("print('{\"ok\"', end='')", "failed", "exit code 0: it said nothing"),
    ],
)
def test_the_way_it_ended_is_said(
    code: str, status: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake(monkeypatch, tmp_path, code)
    with WorkerProcess(request("x")) as process, pytest.raises(WorkerError) as caught:
        process.ask("load")
    assert caught.value.status == status
    assert message in caught.value.message


def test_what_libraries_print_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The worker's own way of keeping its channel, with a library that prints at once.
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from forge.profile.worker import _claim_stdout\n"
        "say = _claim_stdout()\n"
        "print('Loading weights: 100%', flush=True)\n"
        "import os; os.system('echo noise')\n"
        "say({'ok': {'fine': 1}})\n"
    )
    fake(monkeypatch, tmp_path, code)
    with WorkerProcess(request("x")) as process:
        assert process.ask("load") == {"fine": 1}


def test_closing_ends_a_process_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(monkeypatch, tmp_path, "import time; print('{\"ok\": {}}', flush=True); time.sleep(600)")
    with WorkerProcess(request("x")) as process:
        process.await_ready()
        pid = process.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)

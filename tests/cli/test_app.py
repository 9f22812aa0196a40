"""Exit codes, tracebacks, signals and pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forge import api
from forge.cli.app import Terminated, run
from forge.core.errors import IncompatibleError, VerificationError
from tests.cli.process import environment, forge, python

Capture = pytest.CaptureFixture[str]


def failing(monkeypatch: pytest.MonkeyPatch, problem: BaseException) -> None:
    def fail() -> None:
        raise problem

    monkeypatch.setattr(api, "methods", fail)


def test_no_command_shows_help_and_is_an_error(capsys: Capture) -> None:
    assert run([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Commands:" in captured.err


def test_version(capsys: Capture) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == "forge 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["mrge"], "There is no command 'mrge'. Did you mean 'merge'?", "forge"),
        (
            ["zzz"],
            "There is no command 'zzz'. Choose from: merge, moe, check, methods, "
            "calibrate, quantize, convert, lora, generate, profile, eval, divergence, report, "
            "lint, results, inspect, verify, diff.",
            "forge",
        ),
        (["verify"], "Missing argument 'DIR'.", "forge verify"),
        (["diff", "a"], "Missing argument 'B'.", "forge diff"),
        (["methods", "tie"], "There is no merge method 'tie'. Did you mean 'ties'?",
         "forge methods"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_exits_with_2(
    arguments: list[str], message: str, hint: str, capsys: Capture
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: {message}\nTry '{hint} --help'.\n"


def test_a_misspelt_option_gets_a_guess(capsys: Capture) -> None:
    assert run(["merge", "x.yaml", "--thread", "2"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "--thread" in message
    assert "--threads" in message


@pytest.mark.parametrize(
    ("problem", "code"), [(IncompatibleError("No."), 2), (VerificationError("No."), 1)]
)
def test_a_users_mistake_shows_no_traceback(
    problem: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    failing(monkeypatch, problem)
    assert run(["methods"]) == code
    assert capsys.readouterr().err == "error: No.\n"


@pytest.mark.parametrize("arguments", [["--debug", "methods"], ["methods", "--debug"]])
def test_debug_brings_the_traceback_back(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    failing(monkeypatch, IncompatibleError("No."))
    assert run(arguments) == 2
    message = capsys.readouterr().err
    assert "Traceback (most recent call last)" in message
    assert message.endswith("error: No.\n")


def test_a_message_of_several_lines_is_indented(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    failing(monkeypatch, IncompatibleError("One.\nTwo."))
    assert run(["methods"]) == 2
    assert capsys.readouterr().err == "error: One.\n       Two.\n"


def test_a_message_cannot_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    failing(monkeypatch, IncompatibleError("'\x1b[2J\x07evil\r'"))
    assert run(["methods"]) == 2
    assert capsys.readouterr().err == "error: '\\x1b[2J\\x07evil\\r'\n"


def test_a_defect_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    failing(monkeypatch, ZeroDivisionError("division by zero"))
    assert run(["methods"]) == 70
    message = capsys.readouterr().err
    assert message.startswith("error: ZeroDivisionError: division by zero\n")
    assert "defect in forge; run with --debug" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (KeyboardInterrupt(), 130),
        (Terminated(signal.SIGTERM), 143),
        (Terminated(signal.SIGHUP), 129),
    ],
)
def test_an_interruption_has_the_signals_exit_code(
    problem: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    failing(monkeypatch, problem)
    assert run(["methods"]) == code
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "kill"]
)
def test_a_signal_in_a_finalizer_ends_the_run(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    program = f"""
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from forge import api
from forge.cli import app
class Slow:
    def __del__(self):
        os.kill(os.getpid(), {int(number)})
        time.sleep(0.01)
def work():
    Slow()
    time.sleep(20)
api.methods = work
app.sys.argv = ["forge", "methods"]
app.main()
"""
    done = python(program, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (code, "interrupted\n")


@pytest.mark.parametrize("ignored", [True, False])
def test_under_nohup_a_closed_terminal_is_ignored(ignored: bool, tmp_path: Path) -> None:
    code = f"""
import os, signal
if {ignored}:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
from forge.cli import app
def survive(arguments):
    os.kill(os.getpid(), signal.SIGHUP)
    return 7
app.run = survive
app.main()
"""
    done = python(code, cwd=tmp_path)
    assert done.returncode == (7 if ignored else 1)


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-m", "forge", "methods", "--json"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.close()
    message = writer.stderr.read()
    writer.stderr.close()
    assert writer.wait(timeout=30) == 128 + signal.SIGPIPE
    assert message == b""


@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [
        (">/dev/full", 2, "error: The result cannot be printed: No space left on device.\n"),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
    ],
)
def test_a_stdout_that_takes_nothing(
    redirection: str, code: int, message: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        f"exec {sys.executable} -m forge methods {redirection}",
        shell=True,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, message)


def test_a_stream_without_unicode_gets_question_marks(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "forge", "methods", "ties"],
        cwd=tmp_path,
        env={**environment(), "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"? TIES: trim" in done.stdout


SLOW = """
import sys, time
from forge.checkpoints.sink import TensorSink
finish = TensorSink.finish
def slow(self, name, **record):
    finish(self, name, **record)
    time.sleep(0.3)
TensorSink.finish = slow
from forge.cli.app import main
sys.argv = ["forge", *sys.argv[1:]]
main()
"""


def _default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "kill"]
)
def test_a_stopped_merge_is_resumed_by_the_same_command(
    number: signal.Signals, code: int, workplace: Path
) -> None:
    whole = forge("merge", "dare.yaml", "--out", "whole", "--quiet", cwd=workplace)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "merge", "dare.yaml", "--out", "out", "--threads", "1"],
        cwd=workplace,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests may run in the background, where a shell has SIGINT ignored.
        preexec_fn=_default_signals,
    )
    journal = workplace / "out.forge-partial" / "journal.jsonl"
    deadline = time.monotonic() + 60
    while not (journal.is_file() and journal.read_bytes().count(b"\n") > 4):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, number)
    output, message = process.communicate(timeout=60)
    assert process.returncode == code
    assert output == ""
    assert message.splitlines()[-1] == "interrupted; the same command resumes"
    assert "Traceback" not in message
    assert not (workplace / "out").exists()
    again = forge("merge", "dare.yaml", "--out", "out", "--threads", "1", "--json", cwd=workplace)
    assert again.returncode == 0, again.stderr
    assert "Resumed: " in again.stderr
    assert not (workplace / "out.forge-partial").exists()
    name = "model.safetensors"
    assert (workplace / "out" / name).read_bytes() == (workplace / "whole" / name).read_bytes()

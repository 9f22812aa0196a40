"""Progress on a log and on a terminal."""

from __future__ import annotations

import io
import re
import sys

import pytest

from forge.cli import console
from forge.cli.progress import BarProgress, LineProgress, SilentProgress, open_progress

Capture = pytest.CaptureFixture[str]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_each_tenth_but_not_too_often(capsys: Capture) -> None:
    clock = Clock()
    progress = LineProgress(clock)
    progress.stage("merging")
    progress.start(1_000_000, 0)
    for _ in range(100):
        clock.now += 1
        progress.advance(10_000)
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "merging ..."
    assert lines[1] == " 10%  100.00 KB of 1.00 MB  10.00 KB/s  1 min 30 s left"
    assert len(lines) == 11
    assert lines[-1].startswith("100%")


def test_a_fast_merge_prints_no_lines(capsys: Capture) -> None:
    clock = Clock()
    progress = LineProgress(clock)
    progress.start(100, 0)
    for _ in range(10):
        clock.now += 0.4
        progress.advance(10)
    assert capsys.readouterr().err == ""


def test_a_slow_merge_prints_each_minute(capsys: Capture) -> None:
    clock = Clock()
    progress = LineProgress(clock)
    progress.start(1_000_000, 0)
    for _ in range(12):
        clock.now += 10
        progress.advance(100)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_resuming_counts_only_what_this_run_does(capsys: Capture) -> None:
    clock = Clock()
    progress = LineProgress(clock)
    progress.start(1000, 500)
    clock.now += 10
    progress.advance(250)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "resuming at 50%: 500 B are done",
        " 75%  750 B of 1.00 KB  25 B/s  10 s left",
    ]


def test_an_empty_total_divides_by_nothing(capsys: Capture) -> None:
    clock = Clock()
    progress = LineProgress(clock)
    progress.start(0, 0)
    clock.now += 100
    progress.advance(0)
    assert "0 B of 0 B" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_shown_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    progress = open_progress(quiet=False)
    assert isinstance(progress, BarProgress)
    progress.stage("merging [red]")
    progress.start(2_000_000, 500_000)
    progress.advance(500_000)
    assert progress._bar is not None
    assert [task.percentage for task in progress._bar.tasks] == [50.0]
    progress.notice("Something.")
    progress.warning("Beware.")
    progress.stage("hashing")
    progress.start(100, 0)
    progress.close()
    progress.close()
    shown = screen.getvalue()
    assert "merging [red] ...\n" in shown
    assert "notice: Something." in shown
    assert "warning: Beware." in shown
    assert sys.stderr is screen


def test_the_display_follows_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_progress(quiet=True), SilentProgress)
    monkeypatch.setattr(console, "is_interactive", lambda: False)
    assert isinstance(open_progress(quiet=False), LineProgress)


def test_silence(capsys: Capture) -> None:
    progress = SilentProgress()
    progress.stage("x")
    progress.start(1, 0)
    progress.advance(1)
    progress.notice("x")
    progress.close()
    assert capsys.readouterr() == ("", "")


def test_answers_are_counted_as_such(capsys: Capture) -> None:
    clock = Clock()
    progress = LineProgress(clock, counted="answers")
    progress.start(2000, 500)
    clock.now += 10
    progress.advance(500)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "resuming at 25%: 500 answers are done",
        " 50%  1,000 of 2,000 answers  50.0/s  20 s left",
    ]


def test_a_bar_of_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    progress = open_progress(quiet=False, counted="answers")
    progress.start(40, 10)
    progress.advance(1)
    progress.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "28% 11/40 answers" in shown

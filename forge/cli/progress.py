"""Show how far a long command is: a bar on a terminal, a line now and then elsewhere.

Both kinds satisfy ``forge.checkpoints.progress.Progress``. ``advance`` is called from worker
threads, so everything that it touches is under a lock. What is counted are bytes, or things of
which the plural is given, such as ``answers``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from forge.cli import console
from forge.cli.tables import duration_text, size_text

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_LEAST_SECONDS: Final = 5.0
_MOST_SECONDS: Final = 60.0
_LINE_SHARE: Final = 0.1


class Progress(Protocol):
    """What a long command is shown through."""

    def stage(self, name: str) -> None:
        """Say what begins now."""

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Say how much there is to do, and how much an earlier run has done."""

    def advance(self, num_bytes: int) -> None:
        """Say that so much more is done."""

    def status(self, text: str) -> None:
        """Say what is at work now; it replaces what was said last."""

    def notice(self, text: str) -> None:
        """Say something that the user should know."""

    def warning(self, text: str) -> None:
        """Say something that is probably not meant."""

    def close(self) -> None:
        """End the display."""


def open_progress(*, quiet: bool, counted: str | None = None) -> Progress:
    """Return the display that fits stderr.

    Args:
        quiet: Whether to show nothing at all.
        counted: What is counted, in the plural; ``None`` for bytes.
    """
    if quiet:
        return SilentProgress()
    if console.is_interactive():
        return BarProgress(counted)
    return LineProgress(counted=counted)


def amount_text(amount: float, counted: str | None) -> str:
    """Return an amount of bytes, or of what is counted."""
    return size_text(amount) if counted is None else f"{amount:,.0f} {counted}"


def rate_text(rate: float, counted: str | None) -> str:
    """Return so much a second."""
    return f"{size_text(rate) if counted is None else f'{rate:.1f}'}/s"


class SilentProgress:
    """Shows nothing."""

    def stage(self, name: str) -> None:
        """Show nothing."""

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Show nothing."""

    def advance(self, num_bytes: int) -> None:
        """Show nothing."""

    def status(self, text: str) -> None:
        """Show nothing."""

    def notice(self, text: str) -> None:
        """Show nothing."""

    def warning(self, text: str) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Show nothing."""


class LineProgress:
    """Prints a line each 10 %, but at least each minute and at most each 5 s, for logs.

    Args:
        clock: Returns seconds.
        counted: What is counted, in the plural; ``None`` for bytes.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, counted: str | None = None
    ) -> None:
        self._clock, self._counted = clock, counted
        self._lock = threading.Lock()
        self._total = self._done = self._first = 0
        self._began = self._said_at = 0.0
        self._said_done = 0
        self._status = ""

    def stage(self, name: str) -> None:
        """Print the stage's name."""
        self._status = ""
        console.say(f"{name} ...")

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Print how much there is to do."""
        with self._lock:
            self._total, self._done, self._first = total_bytes, done_bytes, done_bytes
            self._said_done = done_bytes
            self._began = self._said_at = self._clock()
        if done_bytes:
            share = done_bytes / max(total_bytes, 1)
            console.say(
                f"resuming at {share:.0%}: {amount_text(done_bytes, self._counted)} are done"
            )

    def advance(self, num_bytes: int) -> None:
        """Print rate and time left, now and then."""
        with self._lock:
            self._done += num_bytes
            now = self._clock()
            is_news = self._done - self._said_done >= _LINE_SHARE * self._total
            if now - self._said_at < (_LEAST_SECONDS if is_news else _MOST_SECONDS):
                return
            self._said_at, self._said_done = now, self._done
            line = self._line(now)
        console.say(line)

    def _line(self, now: float) -> str:
        seconds = max(now - self._began, 1e-9)
        rate = (self._done - self._first) / seconds
        left = (self._total - self._done) / rate if rate > 0 else 0.0
        return (
            f"{self._done / max(self._total, 1):4.0%}  "
            f"{self._amounts()}  {rate_text(rate, self._counted)}  {duration_text(left)} left"
            + (f"  {self._status}" if self._status else "")
        )

    def _amounts(self) -> str:
        if self._counted is None:
            return f"{size_text(self._done)} of {size_text(self._total)}"
        return f"{self._done:,} of {self._total:,} {self._counted}"

    def status(self, text: str) -> None:
        """Print it with the next line."""
        with self._lock:
            self._status = text

    def notice(self, text: str) -> None:
        """Print a notice."""
        console.say(f"notice: {text}")

    def warning(self, text: str) -> None:
        """Print a warning."""
        console.say(f"warning: {text}")

    def close(self) -> None:
        """Print nothing more."""


class BarProgress:
    """Redraws one line of the terminal.

    Args:
        counted: What is counted, in the plural; ``None`` for bytes.
    """

    def __init__(self, counted: str | None = None) -> None:
        self._counted = counted
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._lock = threading.Lock()

    def stage(self, name: str) -> None:
        """Show the stage's name before the bar, or as a line while there is no bar."""
        with self._lock:
            self._stage = name
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, description=name)
                return
        console.say(f"{name} ...")

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Show the bar."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            ProgressColumn,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        amounts: tuple[ProgressColumn, ...] = (DownloadColumn(), TransferSpeedColumn())
        if self._counted is not None:
            amounts = (MofNCompleteColumn(), TextColumn(self._counted, markup=False))
        with self._lock:
            if self._bar is None:
                self._bar = RichProgress(
                    TextColumn("{task.description}", markup=False),
                    BarColumn(),
                    TaskProgressColumn(),
                    *amounts,
                    TimeRemainingColumn(),
                    console=Console(stderr=True),
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=True,
                )
                self._bar.start()
            elif self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(self._stage, total=total_bytes, completed=done_bytes)

    def advance(self, num_bytes: int) -> None:
        """Move the bar."""
        with self._lock:
            if self._bar is not None and self._task is not None:
                self._bar.advance(self._task, num_bytes)

    def status(self, text: str) -> None:
        """Show it before the bar."""
        with self._lock:
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, description=f"{self._stage}: {text}")

    def notice(self, text: str) -> None:
        """Print a notice above the bar."""
        console.say(f"notice: {text}")

    def warning(self, text: str) -> None:
        """Print a warning above the bar."""
        console.say(f"warning: {text}")

    def close(self) -> None:
        """Take the bar away."""
        with self._lock:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

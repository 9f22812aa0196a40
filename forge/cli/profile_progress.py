"""Show how far a profile is, in turns: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from forge.cli import console
from forge.cli.progress import Progress, SilentProgress
from forge.cli.tables import duration_text, plural

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_LEAST_SECONDS: Final = 5.0


def open_turn_progress(*, quiet: bool) -> Progress:
    """Return the display of turns that fits stderr.

    Args:
        quiet: Whether to show nothing at all.
    """
    if quiet:
        return SilentProgress()
    return TurnBar() if console.is_interactive() else TurnLines()


class TurnLines:
    """Prints a line now and then, for logs.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._total = self._done = self._first = 0
        self._began = self._said_at = 0.0
        self._status = ""

    def stage(self, name: str) -> None:
        """Print the stage's name."""
        console.say(f"{name} ...")

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Take how many turns there are, and how many an earlier run took."""
        self._total, self._done, self._first = total_bytes, done_bytes, done_bytes
        self._began = self._said_at = self._clock()
        if done_bytes:
            console.say(f"{plural(done_bytes, 'turn')} of {total_bytes:,} were measured before")

    def advance(self, num_bytes: int) -> None:
        """Print rate and time left, now and then."""
        self._done += num_bytes
        now = self._clock()
        if now - self._said_at < _LEAST_SECONDS:
            return
        self._said_at = now
        rate = (self._done - self._first) / max(now - self._began, 1e-9)
        left = (self._total - self._done) / rate if rate > 0 else 0.0
        console.say(
            f"{self._done:,} of {plural(self._total, 'turn')}  {60 * rate:.0f} a minute  "
            f"{duration_text(left)} left  {self._status}"
        )

    def status(self, text: str) -> None:
        """Print it with the next line."""
        self._status = text

    def notice(self, text: str) -> None:
        """Print a notice."""
        console.say(f"notice: {text}")

    def warning(self, text: str) -> None:
        """Print a warning."""
        console.say(f"warning: {text}")

    def close(self) -> None:
        """Print nothing more."""


class TurnBar:
    """Redraws one line of the terminal."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._stage = ""

    def stage(self, name: str) -> None:
        """Show the stage's name."""
        self._stage = name
        if self._bar is None:
            console.say(f"{name} ...")

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Show the bar."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("turns, {task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            self._stage, total=total_bytes, completed=done_bytes, rate=""
        )

    def advance(self, num_bytes: int) -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, num_bytes)
            speed = self._bar.tasks[0].speed
            rate = "" if not speed else f"{60 * speed:.0f} a minute"
            self._bar.update(self._task, rate=rate)

    def status(self, text: str) -> None:
        """Show it before the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)

    def notice(self, text: str) -> None:
        """Print a notice above the bar."""
        console.say(f"notice: {text}")

    def warning(self, text: str) -> None:
        """Print a warning above the bar."""
        console.say(f"warning: {text}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

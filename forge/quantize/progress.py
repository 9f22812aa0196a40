"""Who hears how a quantization goes."""

from __future__ import annotations

import logging
from typing import Protocol

log = logging.getLogger(__name__)


class Progress(Protocol):
    """Hears how a quantization goes. Calls come from several threads.

    A merge's listener with one more word: ``status``, for what changes too often for a line.
    """

    def stage(self, name: str) -> None:
        """A new stage begins."""

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Something countable begins: how much it is, and how much an earlier run did.

        Bytes while weights are written; a stage of calibration counts tokens instead.
        """

    def advance(self, num_bytes: int) -> None:
        """That much more has been done."""

    def status(self, text: str) -> None:
        """What is at work now and how well: ``block 3 of 32, error 0.012``; replaces the last."""

    def notice(self, text: str) -> None:
        """Something that the user should know."""


class Silence:
    """Progress that nobody hears."""

    def stage(self, name: str) -> None:
        """Ignore."""

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Ignore."""

    def advance(self, num_bytes: int) -> None:
        """Ignore."""

    def status(self, text: str) -> None:
        """Ignore."""

    def notice(self, text: str) -> None:
        """Keep for the log."""
        log.info("%s", text)

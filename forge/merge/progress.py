"""Who hears how a merge goes."""

from __future__ import annotations

import logging
from typing import Protocol

log = logging.getLogger(__name__)


class Progress(Protocol):
    """Hears how a merge goes. Calls come from several threads."""

    def stage(self, name: str) -> None:
        """A new stage begins."""

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """The tensors begin: how many bytes will be written, and how many an earlier run wrote."""

    def advance(self, num_bytes: int) -> None:
        """That many more bytes have been written."""

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

    def notice(self, text: str) -> None:
        """Keep for the log."""
        log.info("%s", text)

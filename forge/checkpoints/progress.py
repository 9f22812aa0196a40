"""Who hears how a long piece of work goes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)


class Progress(Protocol):
    """Hears how a merge or a quantization goes. Calls come from several threads."""

    def stage(self, name: str) -> None:
        """A new stage begins."""

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """The tensors begin: how many bytes will be written, and how many an earlier run wrote."""

    def advance(self, num_bytes: int) -> None:
        """That many more bytes have been written."""

    def status(self, text: str) -> None:
        """What is at work now and how well: ``block 3 of 32, error 0.012``; replaces the last."""

    def notice(self, text: str) -> None:
        """Something that the user should know."""

    def warning(self, text: str) -> None:
        """Something that is probably not meant."""


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

    def warning(self, text: str) -> None:
        """Keep for the log."""
        log.warning("%s", text)


def compile_notice(progress: Progress) -> Callable[[str], None]:
    """Return what tells the user, once, why the first run of a method waits.

    Args:
        progress: Hears it.

    Returns:
        A listener for ``native.announcing``.
    """
    told = threading.Event()

    def announce(kernel: str) -> None:
        log.debug("compiling %s", kernel)
        if not told.is_set():
            told.set()
            progress.notice(
                "Compiling kernels for this machine; this happens once and takes a few seconds."
            )

    return announce

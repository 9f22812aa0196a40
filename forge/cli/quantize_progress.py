"""Show what a quantization needs beside what it does: its status says how much memory it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from forge.cli.progress import Progress
from forge.cli.tables import size_text

_STATUS: Final = Path("/proc/self/status")
_OWN_MEMORY: Final = "RssAnon:"


class WithMemory:
    """Passes everything on, and adds the memory to the status.

    Args:
        inner: Shows it.
    """

    def __init__(self, inner: Progress) -> None:
        self._inner = inner

    def stage(self, name: str) -> None:
        """Pass on."""
        self._inner.stage(name)

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Pass on."""
        self._inner.start(total_bytes, done_bytes)

    def advance(self, num_bytes: int) -> None:
        """Pass on."""
        self._inner.advance(num_bytes)

    def status(self, text: str) -> None:
        """Show what is at work, and the memory."""
        held = own_memory_bytes()
        self._inner.status(text if held is None else f"{text}, {size_text(held)} of memory")

    def notice(self, text: str) -> None:
        """Pass on."""
        self._inner.notice(text)

    def warning(self, text: str) -> None:
        """Pass on."""
        self._inner.warning(text)


def own_memory_bytes() -> int | None:
    """Return the memory that this process holds, mapped files apart; ``None`` where unknown."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(_OWN_MEMORY)), None)
    return None if found is None else int(found.split()[1]) * 1024

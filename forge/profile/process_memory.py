"""How much memory a process takes, as the kernel counts it.

Resident memory is what lies in RAM: heap and stacks (anonymous), and pages of files that are
mapped, weights among them, which the kernel may drop and read again. The kernel keeps the highest
value (``VmHWM``) and forgets it when asked to (5 in ``/proc/self/clear_refs``), so that the peak of
running can be told from the peak of loading.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Final

_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")


def peak_resident() -> int:
    """Return the highest resident memory of this process since it began or the peak was reset."""
    found = _line("VmHWM")
    if found is not None:
        return found
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024


def resident() -> int | None:
    """Return what of this process is in RAM now."""
    return _line("VmRSS")


def anonymous() -> int | None:
    """Return how much of that is not a mapped file's."""
    return _line("RssAnon")


def reset_peak() -> bool:
    """Let the kernel forget the peak.

    Returns:
        Whether it did; not every container allows it.
    """
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _line(name: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines if line.startswith(f"{name}:"))
    return next((int(words[1]) * 1024 for words in found), None)

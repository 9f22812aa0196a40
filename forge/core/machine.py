"""How many cores and how much memory this process may use: affinity, and its control group."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

_GROUPS: Final = Path("/sys/fs/cgroup")
_MEMORY: Final = Path("/proc/meminfo")


def usable_cores() -> tuple[int, ...]:
    """Return the numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def core_quota(root: Path = _GROUPS) -> float | None:
    """Return how many cores' time the control group may spend, or ``None`` for all of it.

    Args:
        root: Where control groups are mounted.
    """
    words = _text(root / "cpu.max").split()
    if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal():
        return int(words[0]) / int(words[1])
    quota = _text(root / "cpu" / "cpu.cfs_quota_us").strip()
    period = _text(root / "cpu" / "cpu.cfs_period_us").strip()
    if quota.isdecimal() and period.isdecimal() and int(period):
        return int(quota) / int(period)
    return None


def default_threads() -> int:
    """Return how many threads measure by default: one for each core that may be used."""
    quota = core_quota()
    cores = len(usable_cores())
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def available_memory(root: Path = _GROUPS, memory: Path = _MEMORY) -> int | None:
    """Return the bytes that this process could still take without swapping.

    Args:
        root: Where control groups are mounted.
        memory: The kernel's account of memory.

    Returns:
        The least of what the machine and the control group leave, or ``None`` where neither says.
    """
    found = [_machine_memory(memory), _group_memory(root)]
    return min((value for value in found if value is not None), default=None)


def _machine_memory(memory: Path) -> int | None:
    return memory_line("MemAvailable", memory)


def memory_line(name: str, memory: Path = _MEMORY) -> int | None:
    """Return one figure of ``/proc/meminfo`` in bytes, or ``None``.

    Args:
        name: Such as ``SwapTotal``.
        memory: The file.
    """
    for line in _text(memory).splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    return None


def _group_memory(root: Path) -> int | None:
    for limit, used, cached, name in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat",
         "total_inactive_file"),
    ):  # fmt: skip
        top, now = _text(root / limit).strip(), _text(root / used).strip()
        if top.isdecimal() and now.isdecimal():
            # Cached files count as used, but are dropped as soon as somebody needs the memory.
            return max(0, int(top) - int(now) + _statistic(root / cached, name))
    return None


def _statistic(path: Path, name: str) -> int:
    rows = (line.split() for line in _text(path).splitlines())
    return next((int(row[1]) for row in rows if len(row) == 2 and row[0] == name), 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

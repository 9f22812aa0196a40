"""Energy that the hardware says it used: RAPL for a CPU, the driver's counter for a GPU.

Both count everything that runs on the chip, the measured process and all others, so a figure from
a busy machine is too high, never too low. RAPL counts microjoules of each processor package and
begins anew at a limit of its own; most systems let only root read it, and virtual machines
have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from forge.profile.nvml import Gpu

_POWERCAP: Final = Path("/sys/class/powercap")
Counter = Callable[[], Mapping[str, tuple[float, float]] | None]
"""Returns joules and the joules at which the counter begins anew, by domain; or nothing."""


def read_packages(root: Path = _POWERCAP) -> dict[str, tuple[float, float]] | None:
    """Read the processors' counters.

    Args:
        root: Where the kernel lists them.

    Returns:
        Joules, and where they begin anew, by package; ``None`` where none can be read.
    """
    found = {}
    for folder in sorted(root.glob("*-rapl:*")):
        # A package is 'intel-rapl:0'; its parts, such as 'intel-rapl:0:1', are in its sum.
        if folder.name.count(":") != 1:
            continue
        try:
            used = int((folder / "energy_uj").read_text())
            limit = int((folder / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            return None
        found[folder.name] = (used / 1e6, limit / 1e6)
    return found or None


def gpu_counter(gpu: Gpu | None) -> Counter:
    """Return the counter of a GPU.

    Args:
        gpu: The GPU, or ``None`` for one that reports nothing.
    """

    def read() -> Mapping[str, tuple[float, float]] | None:
        used = None if gpu is None else gpu.energy_j()
        return None if used is None else {"gpu": (used, 0.0)}

    return read


def used_between(
    before: Mapping[str, tuple[float, float]] | None,
    after: Mapping[str, tuple[float, float]] | None,
) -> float | None:
    """Return the joules used between two readings of a counter, or ``None`` where it has none.

    Args:
        before: The first reading.
        after: The second.
    """
    if before is None or after is None or before.keys() != after.keys():
        return None
    total = 0.0
    for name, (used, limit) in after.items():
        difference = used - before[name][0]
        total += difference if difference >= 0 else difference + limit
    return total


def explain_absence(device: str) -> str:
    """Return the sentence for a machine that reports no energy.

    Args:
        device: What was measured.
    """
    if device == "cpu":
        return (
            "Energy is not reported: this machine shows no RAPL counter that may be read (it is "
            "virtual, or only root may)."
        )
    return "Energy is not reported: the driver gives no energy counter for this device."

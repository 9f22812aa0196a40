"""What the machine did beside the measurement: other processes, the hypervisor, waiting threads.

Three independent witnesses, none of which needs a privilege:

    other_cpu_cores    busy time of the cores that may be used (``/proc/stat``), less what the
                       measured process and its parent were charged; the kernel samples it a
                       hundred times a second, so bursts count in proportion to their length
    steal_share        share of those cores' time that the hypervisor gave to other machines
    queue_wait_share   share of the time in which the measured threads wanted to run and had to wait
                       for a core (``/proc/self/task/*/schedstat``, in nanoseconds)

A process that sleeps is invisible, and harmless; one that wakes now and then shows up by what it
used, and the turns that it disturbed show up in the spread between rounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_STAT: Final = Path("/proc/stat")
_TASKS: Final = Path("/proc/self/task")
_CPU_INFO: Final = Path("/proc/cpuinfo")
_FREQUENCY: Final = "/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq"
_BUSY: Final = (0, 1, 2, 5, 6)
"""Columns of ``/proc/stat`` that are work: user, nice, system, interrupts, soft interrupts."""
_STEAL: Final = 7
_LOOK_S: Final = 0.3


@dataclass(frozen=True, slots=True)
class MachineTime:
    """What a machine's cores have done since it started.

    Attributes:
        at_s: When this was read, on the monotonic clock.
        busy_s: Time that they worked, summed over cores.
        stolen_s: Time that the hypervisor took.
    """

    at_s: float
    busy_s: float
    stolen_s: float


@dataclass(frozen=True, slots=True)
class Turn:
    """What the machine did while one model had its turn.

    Attributes:
        wall_s: How long the turn took.
        busy_s: Time that the cores worked, whoever for.
        stolen_s: Time that the hypervisor took.
        own_s: CPU time of the measured process and of the one that measures.
        waited_s: Time for which the measured threads waited for a core.
    """

    wall_s: float
    busy_s: float
    stolen_s: float
    own_s: float
    waited_s: float


def read_machine(cores: Collection[int], stat: Path = _STAT) -> MachineTime | None:
    """Read what the cores have done, or ``None`` where the kernel does not say.

    Args:
        cores: Numbers of the cores that count.
        stat: The kernel's account.
    """
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    busy = stolen = 0
    for line in lines:
        name, *values = line.split()
        if not name.startswith("cpu") or not name[3:].isdecimal() or int(name[3:]) not in cores:
            continue
        busy += sum(int(values[column]) for column in _BUSY)
        stolen += int(values[_STEAL]) if len(values) > _STEAL else 0
    return MachineTime(time.monotonic(), busy / ticks, stolen / ticks)


def turn_between(
    before: MachineTime | None, after: MachineTime | None, *, own_s: float, waited_s: float
) -> Turn | None:
    """Return what the machine did between two readings, or ``None`` where there are none.

    Args:
        before: The first reading.
        after: The second.
        own_s: CPU time of the measurement between them.
        waited_s: Time for which its threads waited for a core.
    """
    if before is None or after is None:
        return None
    return Turn(
        after.at_s - before.at_s, after.busy_s - before.busy_s, after.stolen_s - before.stolen_s,
        own_s, waited_s,
    )  # fmt: skip


def noise_of(turns: Iterable[Turn], *, num_cores: int) -> dict[str, float]:
    """Sum up a model's turns.

    Args:
        turns: Its turns.
        num_cores: Cores that may be used.

    Returns:
        ``other_cpu_cores``, ``steal_share`` and ``queue_wait_share``; nothing where the kernel
        does not say.
    """
    found = list(turns)
    wall = sum(turn.wall_s for turn in found)
    if wall <= 0:
        return {}
    own = sum(turn.own_s for turn in found)
    waited = sum(turn.waited_s for turn in found)
    # Over all turns before it is cut off at 0: the kernel counts in steps of 10 ms, and the
    # errors of single turns cancel.
    others = sum(turn.busy_s for turn in found) - own
    return {
        "other_cpu_cores": round(max(0.0, others / wall), 4),
        "steal_share": round(sum(turn.stolen_s for turn in found) / (wall * num_cores), 4),
        "queue_wait_share": round(waited / (waited + own), 4) if waited + own > 0 else 0.0,
    }


def noise_before(cores: Collection[int], *, look_s: float = _LOOK_S) -> dict[str, float]:
    """Look at the machine before anything is measured.

    Args:
        cores: Numbers of the cores that may be used.
        look_s: For how long.

    Returns:
        ``load_before`` (processes that ran or waited, averaged by the kernel over a minute),
        ``busy_cores_before`` (now), ``swap_used_bytes`` and ``clock_mhz``, where known.
    """
    before = read_machine(cores)
    time.sleep(look_s)
    after = read_machine(cores)
    found = {"load_before": round(os.getloadavg()[0], 2)}
    if before is not None and after is not None:
        busy = (after.busy_s - before.busy_s) / max(after.at_s - before.at_s, 1e-9)
        found["busy_cores_before"] = round(busy, 3)
    found |= _swap()
    clock = _clock_mhz(cores)
    return found if clock is None else found | {"clock_mhz": round(clock, 1)}


def waited_s() -> float:
    """Return for how long the threads of this process have waited for a core, in seconds."""
    total = 0
    for path in _TASKS.glob("*/schedstat"):
        try:
            # A thread may end between being listed and being read.
            words = path.read_text().split()
        except OSError:
            continue
        total += int(words[1]) if len(words) > 1 else 0
    return total / 1e9


def spread_of(rounds: Iterable[Iterable[float]]) -> float | None:
    """Return how far the medians of rounds lie apart, relative to their median.

    Args:
        rounds: Samples of each round.

    Returns:
        (highest - lowest) / median, or ``None`` with fewer than two rounds.
    """
    from statistics import median

    medians = [median(samples) for samples in map(list, rounds) if samples]
    if len(medians) < 2:
        return None
    return (max(medians) - min(medians)) / median(medians)


def disturbance_of(noise: Mapping[str, float], *, num_cores: int) -> float:
    """Return which share of the machine others may have taken from a measurement.

    Args:
        noise: What ``noise_of`` returned.
        num_cores: Cores that may be used.

    Returns:
        From 0, nothing, to 0.95: the greater of what others used and of what the threads waited,
        and what the hypervisor took on top.
    """
    others = noise.get("other_cpu_cores", 0.0) / max(1, num_cores)
    share = max(others, noise.get("queue_wait_share", 0.0)) + noise.get("steal_share", 0.0)
    return min(0.95, max(0.0, share))


def _swap() -> dict[str, float]:
    from forge.core.machine import memory_line

    total, free = memory_line("SwapTotal"), memory_line("SwapFree")
    return {} if total is None or free is None else {"swap_used_bytes": float(total - free)}


def _clock_mhz(cores: Collection[int]) -> float | None:
    """Return the mean clock of the cores, as far as the kernel tells."""
    found = []
    for core in cores:
        try:
            found.append(int(Path(_FREQUENCY.format(core=core)).read_text()) / 1000)
        except (OSError, ValueError):
            break
    if len(found) < len(cores):
        try:
            lines = _CPU_INFO.read_text().splitlines()
        except OSError:
            return None
        clocks = [line.partition(":")[2] for line in lines if line.startswith("cpu MHz")]
        found = [float(clocks[core]) for core in cores if core < len(clocks)]
    return sum(found) / len(found) if found else None

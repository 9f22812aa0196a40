"""Run a whole process and measure it: CPU time, wall time, peak anonymous memory.

CPU time is what the kernel charged to the process and to its children that it waited for, user
and system together (``wait4``). Anonymous memory is RssAnon summed over the process tree, looked
at every 20 ms: heap and stacks, without pages of mapped files, which the kernel can drop at will.
Resident memory counts those pages, too: it is VmHWM, a high-water mark that the kernel keeps.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

POLL_S: Final = 0.02
_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_COPY_BYTES: Final = 1 << 20
_SHOWN_LINES: Final = 30

# Thread counts are left to each program, as its users meet it; and bytecode is kept, as it is
# for an installed package, so that no run pays for compiling sources.
_UNSET: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "PYTHONDONTWRITEBYTECODE",
)
_SET: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class BenchmarkError(Exception):
    """A measured program failed, or did something else than it was measured for."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one run cost.

    Attributes:
        wall_s: From start to exit.
        cpu_s: User and system time of the process and its children.
        peak_anonymous_bytes: Greatest RssAnon of the process tree; None where it was not looked at.
        background_cores: Cores that everything else on the machine used meanwhile, on average.
        peak_resident_bytes: VmHWM summed over the process tree: no less than was resident at once.
    """

    wall_s: float
    cpu_s: float
    peak_anonymous_bytes: int | None
    background_cores: float
    peak_resident_bytes: int | None = None

    def as_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return asdict(self)


def child_environment(**extra: str) -> dict[str, str]:
    """Return the environment of measured programs: offline, and with their own thread counts."""
    kept = {key: value for key, value in os.environ.items() if key not in _UNSET}
    return kept | _SET | extra


def run_measured(
    command: Sequence[str | Path], *, folder: Path, log: Path, environment: dict[str, str]
) -> Measurement:
    """Run a command to its end and measure it.

    Args:
        command: The program and its arguments.
        folder: Its working directory.
        log: Receives what it prints.
        environment: See ``child_environment``.

    Raises:
        BenchmarkError: It did not end with 0.
    """
    with log.open("wb") as sink:
        busy = _busy_s()
        own = time.process_time()
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
        )  # fmt: skip
        try:
            anonymous, resident = _watch(process.pid)
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.perf_counter() - started
        # Popen must not wait for a process that wait4 has reaped.
        process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    others = _busy_s() - busy - cpu - (time.process_time() - own)
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:])
        line = " ".join(map(str, command))
        raise BenchmarkError(f"'{line}' ended with {process.returncode}:\n{tail}")
    return Measurement(wall, cpu, anonymous, max(0.0, others / wall), resident)


def copy_measured(inputs: Sequence[Path], output: Path) -> Measurement:
    """Read all inputs and write the bytes of the first to a fresh file; the least a merge must do.

    It runs in this process and by plain system calls, so there is no start-up in its time.
    """
    buffer = memoryview(bytearray(_COPY_BYTES))
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    busy = _busy_s()
    cpu = time.process_time()
    started = time.perf_counter()
    for number, path in enumerate(inputs):
        source = os.open(path, os.O_RDONLY)
        position = 0
        while count := os.preadv(source, [buffer], position):
            if number == 0 and os.pwrite(target, buffer[:count], position) != count:
                raise BenchmarkError(f"{output}: a write was cut short")
            position += count
        os.close(source)
    os.close(target)
    wall = time.perf_counter() - started
    cpu = time.process_time() - cpu
    return Measurement(wall, cpu, None, max(0.0, (_busy_s() - busy - cpu) / wall))


def _watch(pid: int) -> tuple[int, int]:
    """Follow a process until it exits, unreaped; return the peaks of RssAnon and of VmHWM."""
    anonymous = resident = 0
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not poll.poll(POLL_S * 1000):
            found = [_memory(process) for process in _tree(pid)]
            anonymous = max(anonymous, sum(memory["RssAnon"] for memory in found))
            resident = max(resident, sum(memory["VmHWM"] for memory in found))
    finally:
        os.close(descriptor)
    return anonymous, resident


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        try:
            threads = list(Path(f"/proc/{parent}/task").iterdir())
        except OSError:  # it has just ended
            continue
        for thread in threads:
            try:
                found += map(int, (thread / "children").read_text().split())
            except OSError as error:
                if thread.exists():
                    raise BenchmarkError(f"{thread}: the kernel does not list children") from error
    return found


def _memory(pid: int) -> dict[str, int]:
    """Return RssAnon and VmHWM of a process, in bytes."""
    found = {"RssAnon": 0, "VmHWM": 0}
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended
        return found
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) * 1024
    return found


def _busy_s() -> float:
    """Return the CPU seconds that all processes of the machine have used since it started."""
    user, nice, system, _, _, irq, softirq = map(
        int, Path("/proc/stat").read_text().split(maxsplit=8)[1:8]
    )
    return (user + nice + system + irq + softirq) / _TICKS_A_SECOND

"""Say on what machine figures were taken, and whether it was quiet."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from benchmarks.process import BenchmarkError
from forge import __version__

QUIET_LOAD: Final = 0.5
"""Load average over one minute above which figures are called noisy."""

_PACKAGES: Final = ("numpy", "numba", "torch", "transformers", "mergekit")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and with what figures were taken.

    Attributes:
        cpu: Name of the CPU model.
        cores: Cores that this process may use.
        load_average: Over the minute before the first run.
        memory_gib: Of the whole machine.
        system: Kernel and its version.
        versions: Of Python and of the packages that matter, by name.
    """

    cpu: str
    cores: int
    load_average: float
    memory_gib: float
    system: str
    versions: dict[str, str]

    def as_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: object) -> Machine:
        """Read what ``as_json`` gave.

        Raises:
            BenchmarkError: It is something else.
        """
        if not isinstance(record, dict):
            raise BenchmarkError("the record does not say on what machine it was made")
        return cls(**record)

    def sentences(self) -> str:
        """Return the machine line, and the warning when the machine is not quiet."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        text = (
            f"{self.cpu}, {self.cores} cores, {self.memory_gib:.0f} GiB, {self.system}; "
            f"{versions}. Load average before the first run: {self.load_average:.2f}."
        )
        if self.load_average > QUIET_LOAD:
            text += (
                f" NOISY: the load average is above {QUIET_LOAD}, so other work ran beside "
                "these measurements. Take final figures on a quiet machine."
            )
        return text


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def describe_machine() -> Machine:
    """Read the machine's description from ``/proc``."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        cpu=_cpu_model(),
        cores=usable_cores(),
        load_average=os.getloadavg()[0],
        memory_gib=memory / 2**30,
        system=f"{platform.system()} {platform.release()}",
        versions={"forge": __version__, "python": platform.python_version()} | _package_versions(),
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions

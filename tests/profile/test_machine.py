"""What is read of the machine: control groups, counters of energy, the driver, the process."""

from __future__ import annotations

import ctypes
import getpass
import json
import os
import re
import socket
from pathlib import Path

import numpy as np
import pytest

from forge.core.machine import available_memory, core_quota, default_threads, memory_line
from forge.profile import nvml, process_memory
from forge.profile.energy import explain_absence, gpu_counter, read_packages, used_between
from forge.profile.environment import describe_environment
from forge.profile.nvml import Gpu, open_gpu


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_quota_of_either_version_is_read(
    files: dict[str, str], cores: float | None, tmp_path: Path
) -> None:
    assert core_quota(write(tmp_path, files)) == cores


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, 4_096_000),
        ({"memory.max": "3000000", "memory.current": "2000000",
          "memory.stat": "anon 5\ninactive_file 500000\n"}, 1_500_000),
        ({"memory.max": "max", "memory.current": "2000000"}, 4_096_000),
        ({"memory/memory.limit_in_bytes": "1000", "memory/memory.usage_in_bytes": "2000"}, 0),
        ({"memory/memory.limit_in_bytes": "9223372036854771712",
          "memory/memory.usage_in_bytes": "2000"}, 4_096_000),
    ],
)  # fmt: skip
def test_the_least_of_machine_and_group_is_available(
    files: dict[str, str], available: int, tmp_path: Path
) -> None:
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal:  8000 kB\nMemAvailable:    4000 kB\nSwapTotal: 0 kB\n")
    assert available_memory(write(tmp_path / "groups", files), memory) == available
    assert memory_line("SwapTotal", memory) == 0
    assert memory_line("SwapCached", memory) is None


def test_nobody_knows_what_is_available_without_proc(tmp_path: Path) -> None:
    assert available_memory(tmp_path, tmp_path / "meminfo") is None


def test_threads_are_the_cores_that_may_be_used() -> None:
    assert 1 <= default_threads() <= len(os.sched_getaffinity(0))


def test_the_peak_is_that_since_it_was_reset() -> None:
    ones = np.ones(40_000_000, np.uint8)
    high = process_memory.peak_resident()
    assert ones.sum() == ones.size
    del ones
    if not process_memory.reset_peak():
        pytest.skip("this container does not let the peak be reset")
    low = process_memory.peak_resident()
    assert low < high
    # What is touched now is in the peak again.
    again = np.ones(60_000_000, np.uint8)
    assert process_memory.peak_resident() >= low + 0.9 * again.nbytes
    assert (process_memory.anonymous() or 0) >= 0.9 * again.nbytes
    assert (process_memory.resident() or 0) >= (process_memory.anonymous() or 0)


def test_packages_are_summed_and_their_parts_are_not(tmp_path: Path) -> None:
    rows = {"intel-rapl:0": 5_000_000, "intel-rapl:1": 7_000_000, "intel-rapl:0:0": 1_000_000}
    for name, used in rows.items():
        write(tmp_path / name, {"energy_uj": f"{used}\n", "max_energy_range_uj": "10000000\n"})
    before = read_packages(tmp_path)
    assert before == {"intel-rapl:0": (5.0, 10.0), "intel-rapl:1": (7.0, 10.0)}
    # The first goes on, the second begins anew at 10 J.
    write(tmp_path / "intel-rapl:0", {"energy_uj": "6500000"})
    write(tmp_path / "intel-rapl:1", {"energy_uj": "1000000"})
    assert used_between(before, read_packages(tmp_path)) == pytest.approx(1.5 + 4.0)


def test_no_counter_is_no_energy(tmp_path: Path) -> None:
    assert read_packages(tmp_path) is None
    assert used_between(None, {"gpu": (1.0, 0.0)}) is None
    assert used_between({"gpu": (1.0, 0.0)}, {"gpu": (3.5, 0.0)}) == 2.5
    assert gpu_counter(None)() is None
    assert "RAPL" in explain_absence("cpu")
    assert "driver" in explain_absence("cuda")


class Driver:
    """Answers as the driver's library does."""

    pids = (os.getpid(), 1)
    code = 0

    def nvmlDeviceGetName(
        self, handle: object, name: ctypes.Array[ctypes.c_char], size: int
    ) -> int:
        name.value = b"Test GPU"
        return self.code

    def nvmlSystemGetDriverVersion(self, text: ctypes.Array[ctypes.c_char], size: int) -> int:
        text.value = b"570.1"
        return self.code

    def nvmlDeviceGetMemoryInfo(self, handle: object, memory: object) -> int:
        found = memory._obj  # type: ignore[attr-defined]
        found.total, found.free, found.used = 1000, 600, 400
        return self.code

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object, found: object) -> int:
        found._obj.value = 2500  # type: ignore[attr-defined]
        return self.code

    def nvmlDeviceGetComputeRunningProcesses_v3(
        self, handle: object, count: object, rows: ctypes.Array[nvml._Process]
    ) -> int:
        for row, pid in zip(rows, self.pids, strict=False):
            row.pid, row.used = pid, 100 + pid
        count._obj.value = len(self.pids)  # type: ignore[attr-defined]
        return self.code


def test_the_driver_is_asked_in_its_own_units() -> None:
    gpu = Gpu(Driver(), None)
    assert gpu.describe() == nvml.GpuDescription("Test GPU", 1000, "570.1")
    assert (gpu.free_bytes(), gpu.energy_j()) == (600, 2.5)
    assert gpu.process_bytes() == 100 + os.getpid()
    # A question that this driver does not know.
    assert gpu.clock_mhz() is None


def test_a_process_that_the_container_calls_otherwise_is_the_only_one_or_unknown() -> None:
    driver = Driver()
    driver.pids = (99_999_999,)  # type: ignore[assignment]
    assert Gpu(driver, None).process_bytes() == 100 + 99_999_999
    driver.pids = (99_999_999, 99_999_998)
    assert Gpu(driver, None).process_bytes() is None


def test_a_driver_that_refuses_says_nothing() -> None:
    driver = Driver()
    driver.code = 3
    gpu = Gpu(driver, None)
    assert (gpu.free_bytes(), gpu.energy_j(), gpu.process_bytes()) == (None, None, None)


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "_LIBRARY", "libnothing-ml.so.1")
    with open_gpu("cuda") as gpu:
        assert gpu is None


def test_the_environment_is_stable_and_names_nobody() -> None:
    first, second = describe_environment("cpu"), describe_environment("cpu")
    assert first == second
    text = json.dumps(first)
    assert first["gpu"] is None
    assert first["cpu"]["cores"] == len(os.sched_getaffinity(0))  # type: ignore[index]
    assert {"forge", "python", "torch", "transformers"} <= first["versions"].keys()  # type: ignore[attr-defined]
    assert socket.gethostname() not in text or len(socket.gethostname()) < 4
    assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", text)
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text

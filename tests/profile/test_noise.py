"""A competitor shows up, whether it never sleeps or mostly does; a quiet moment stays quiet."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from forge.core.machine import usable_cores
from forge.profile.noise import (
    Turn,
    disturbance_of,
    noise_before,
    noise_of,
    read_machine,
    spread_of,
    turn_between,
    waited_s,
)

BURNS = "while True: pass"
pytestmark = pytest.mark.alone

WAKES = """
import time
while True:
    end = time.perf_counter() + 0.05
    while time.perf_counter() < end: pass
    time.sleep(0.15)
"""
SLEEPS = "import time; time.sleep(60)"
MEASURED_S = 1.5


@contextmanager
def competitor(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs beside the measurement."""
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(0.3)
        yield process
    finally:
        process.kill()
        process.wait()


def measured() -> dict[str, float]:
    """What the noise meter says of a measurement that computes in one thread."""
    cores = usable_cores()
    before, cpu, waited = read_machine(cores), time.process_time(), waited_s()
    end = time.perf_counter() + MEASURED_S
    while time.perf_counter() < end:
        pass
    after, cpu, waited = read_machine(cores), time.process_time() - cpu, waited_s() - waited
    turn = turn_between(before, after, own_s=cpu, waited_s=waited)
    assert turn is not None
    return noise_of([turn], num_cores=len(cores))


def cpu_of(process: subprocess.Popen[bytes]) -> float:
    """What the kernel charged a process, in seconds."""
    fields = Path(f"/proc/{process.pid}/schedstat").read_text().split()
    return int(fields[0]) / 1e9


@pytest.mark.parametrize("code", [BURNS, WAKES], ids=["burns", "wakes"])
def test_a_competitor_shows_up_by_what_it_used(code: str) -> None:
    with competitor(code) as process:
        before, began = cpu_of(process), time.perf_counter()
        found = measured()
        used = (cpu_of(process) - before) / (time.perf_counter() - began)
    # Whatever else runs on this machine adds to it, so there is no upper bound to assert.
    assert used > 0.03
    assert found["other_cpu_cores"] >= 0.6 * used
    assert disturbance_of(found, num_cores=len(usable_cores())) >= 0.6 * used / len(usable_cores())


def test_waiting_for_a_core_is_seen_to_the_nanosecond() -> None:
    # As many burners as cores: at least one of them competes with this thread.
    burners = [subprocess.Popen([sys.executable, "-c", BURNS]) for _ in usable_cores()]
    try:
        time.sleep(0.3)
        found = measured()
    finally:
        for process in burners:
            process.kill()
            process.wait()
    assert found["queue_wait_share"] > 0.1


def test_own_time_is_no_noise() -> None:
    with competitor(SLEEPS) as process:
        found = measured()
        assert cpu_of(process) < 1.0
    # Other tests may run beside this one: what is shown is that own time is taken out.
    machine = noise_of(
        [Turn(MEASURED_S, found["other_cpu_cores"] * MEASURED_S + MEASURED_S, 0.0, MEASURED_S, 0)],
        num_cores=2,
    )
    assert machine["other_cpu_cores"] == pytest.approx(found["other_cpu_cores"], abs=1e-3)


def test_errors_of_single_turns_cancel_before_they_are_cut_off() -> None:
    # The kernel counts in ticks: one turn shows less than the measurement used itself.
    turns = [Turn(1.0, 1.9, 0.0, 2.0, 0.0), Turn(1.0, 2.3, 0.1, 2.0, 0.4)]
    found = noise_of(turns, num_cores=2)
    assert found == {"other_cpu_cores": 0.1, "steal_share": 0.025, "queue_wait_share": 0.0909}
    assert noise_of([Turn(1.0, 1.9, 0.0, 2.0, 0.0)], num_cores=2)["other_cpu_cores"] == 0.0


def test_only_cores_that_may_be_used_count(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu  999 9 9 9 9 9 9 9 0 0\n"
        "cpu0 100 10 20 500 7 1 2 30 50 0\n"
        "cpu1 200 0 0 0 0 0 0 0 0 0\n"
        "cpu10 400 0 0 0 0 0 0 5 0 0\n"
        "intr 5\n"
    )
    found = read_machine({0, 10}, stat)
    assert found is not None
    # Idle, waiting for disks, and guests, which are in user time already, are no work.
    assert found.busy_s == pytest.approx((133 + 400) / 100)
    assert found.stolen_s == pytest.approx(0.35)
    assert read_machine({0}, tmp_path / "missing") is None


def test_a_kernel_that_says_nothing_yields_nothing() -> None:
    assert turn_between(None, None, own_s=1.0, waited_s=0.0) is None
    assert noise_of([], num_cores=2) == {}
    assert disturbance_of({}, num_cores=2) == 0.0


def test_the_moment_before_is_kept() -> None:
    found = noise_before(usable_cores(), look_s=0.05)
    assert found["load_before"] >= 0
    assert {"busy_cores_before", "swap_used_bytes"} <= found.keys()


def test_spread_between_rounds_is_that_of_their_medians() -> None:
    assert spread_of([[1.0, 1.0, 9.0], [1.1, 1.1, 0.1], [1.2]]) == pytest.approx(0.2 / 1.1)
    assert spread_of([[1.0, 2.0]]) is None

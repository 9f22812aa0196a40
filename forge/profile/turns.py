"""Let the models of one setting take turns: A B A B …, one at a time.

Each model has a process of its own (``WorkerProcess``). If all of them fit into memory side by
side, every process lives through all rounds and waits, without using the CPU, for its next turn;
otherwise each turn gets a fresh process. Whoever begins changes with every round, so that what
happens at its beginning or its end does not always meet the same model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from forge.core.machine import usable_cores
from forge.profile import process_memory
from forge.profile.noise import Turn, read_machine, turn_between
from forge.profile.setting import Effort
from forge.profile.worker import Request
from forge.profile.worker_process import WorkerError, WorkerProcess

SAMPLED: Final = ("prefill_s", "ttft_s", "decode_s")
_DISAGREES: Final = 0.05

Start = Callable[[Request], WorkerProcess]


@dataclass(slots=True)
class Seat:
    """A model's place in the round, and what was found out about it.

    Attributes:
        name: Its name, for messages.
        request: What its processes are for.
        status: ``ok``, or why it is out.
        samples: A list for each round, by quantity.
        memory: Bytes by name.
        turns: What the machine did during its turns.
        backend: What computed.
        notices: What the reader should know.
        clocks_mhz: The device's clock at the end of each turn, where it is known.
    """

    name: str
    request: Request
    status: str = "ok"
    samples: dict[str, list[list[float]]] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    backend: str = ""
    notices: list[str] = field(default_factory=list)
    clocks_mhz: list[float] = field(default_factory=list)

    def add(self, quantity: str, values: list[float]) -> None:
        """Add the samples of one round."""
        self.samples.setdefault(quantity, []).append(values)

    def tell(self, notice: str) -> None:
        """Add a notice, once."""
        if notice not in self.notices:
            self.notices.append(notice)

    def leave(self, error: WorkerError) -> None:
        """Take the model out of the rounds. What was sampled before is not enough to be kept."""
        self.status = error.status
        self.samples.clear()
        self.tell(error.message)


def turns_needed(seats: int, effort: Effort) -> int:
    """Return how many steps a setting takes: to start, load, warm up, and one for each round.

    Args:
        seats: Models, the control included.
        effort: How much is measured.
    """
    return seats * (3 + effort.rounds)


def take_turns(
    seats: Sequence[Seat],
    effort: Effort,
    *,
    together: bool,
    done: Callable[[str], None],
    start: Start = WorkerProcess,
) -> None:
    """Measure models in turns.

    Args:
        seats: The models; filled with what is found.
        effort: How much is measured.
        together: Whether all models fit into memory side by side.
        done: Hears what was done, after each step.
        start: Starts a worker.
    """
    if together:
        _with_living_workers(seats, effort, done, start)
    else:
        _with_fresh_workers(seats, effort, done, start)


def _with_living_workers(
    seats: Sequence[Seat], effort: Effort, done: Callable[[str], None], start: Start
) -> None:
    with ExitStack() as stack:
        # All at once: importing the libraries takes seconds, and nothing is measured meanwhile.
        workers = [stack.enter_context(start(seat.request)) for seat in seats]
        pairs = list(zip(seats, workers, strict=True))
        for step in (_await, _load, _warm_up):
            for seat, worker in pairs:
                if seat.status == "ok":
                    _try(seat, worker, step)
                done(seat.name)
        for number in range(effort.rounds):
            for seat, worker in _rotated(pairs, number):
                if seat.status == "ok":
                    _try(seat, worker, lambda s, w: _measure(s, w, effort.samples))
                done(seat.name)
        for seat, worker in pairs:
            if seat.status == "ok":
                _try(seat, worker, _finish)


def _with_fresh_workers(
    seats: Sequence[Seat], effort: Effort, done: Callable[[str], None], start: Start
) -> None:
    def turn(seat: Seat, worker: WorkerProcess) -> None:
        for step in (_await, _load, _warm_up):
            step(seat, worker)
        _measure(seat, worker, effort.samples)
        _finish(seat, worker)

    for number in range(effort.rounds):
        for seat, _ in _rotated([(seat, None) for seat in seats], number):
            if seat.status == "ok":
                with start(seat.request) as worker:
                    _try(seat, worker, turn)
            # A round starts, loads and warms up as well; only the first one's are in the plan.
            for _ in range(4 if number == 0 else 1):
                done(seat.name)


def _rotated(pairs: Sequence[tuple[Seat, Any]], number: int) -> Iterator[tuple[Seat, Any]]:
    first = number % len(pairs)
    yield from pairs[first:]
    yield from pairs[:first]


def _try(seat: Seat, worker: WorkerProcess, step: Callable[[Seat, WorkerProcess], None]) -> None:
    try:
        step(seat, worker)
    except WorkerError as error:
        worker.close()
        seat.leave(error)


def _await(seat: Seat, worker: WorkerProcess) -> None:
    worker.await_ready()


def _load(seat: Seat, worker: WorkerProcess) -> None:
    found = worker.ask("load")
    seat.add("load_s", [found["load_s"]])
    seat.backend = found["backend"]
    for notice in found["notices"]:
        seat.tell(notice)


def _warm_up(seat: Seat, worker: WorkerProcess) -> None:
    found = worker.ask("warm_up")
    if not found["is_flat"]:
        seat.tell(
            f"Its times were not flat when the warm-up ended: after {found['runs']} runs the last "
            f"two differed by {found['change']:.0%}."
        )


def _measure(seat: Seat, worker: WorkerProcess, samples: int) -> None:
    cores = usable_cores()
    before, own = read_machine(cores), time.process_time()
    found = worker.ask("measure", samples=samples)
    after, own = read_machine(cores), time.process_time() - own
    turn = turn_between(before, after, own_s=found["cpu_s"] + own, waited_s=found["waited_s"])
    if turn is not None:
        seat.turns.append(turn)
    for quantity in SAMPLED:
        seat.add(quantity, found["samples"][quantity])
    if found["energy_j"] is not None:
        seat.add("energy_j", [found["energy_j"]])
    if found["clock_mhz"] is not None:
        seat.clocks_mhz.append(found["clock_mhz"])


def _finish(seat: Seat, worker: WorkerProcess) -> None:
    memory: dict[str, int | None] = worker.ask("finish")["memory"]
    worker.end()
    for name, value in memory.items():
        # Of several processes of one model, the one that took most.
        known = seat.memory.get(name)
        seat.memory[name] = value if known is None or value is None else max(known, value)
    own = memory["peak_resident_running"] or memory["peak_resident"]
    independent = worker.peak_bytes
    # The kernel counts what this process took when it started the other one as the other one's.
    is_clean = independent is not None and independent > process_memory.peak_resident()
    if own and independent and is_clean and abs(independent - own) > _DISAGREES * own:
        seat.tell(
            f"Two readings of its peak memory disagree: {own / 1e6:,.0f} MB by its own account, "
            f"{independent / 1e6:,.0f} MB by the kernel's at its end."
        )

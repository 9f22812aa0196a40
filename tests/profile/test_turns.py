"""Who measures when, and what one model's failure does to the others."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import pytest

from forge.profile import process_memory
from forge.profile.setting import Effort, Setting
from forge.profile.turns import Seat, take_turns, turns_needed
from forge.profile.worker import Request
from forge.profile.worker_process import WorkerError

SETTING = Setting("cpu", None, 1, 1, 4, 2)
EFFORT = Effort(rounds=3, samples=2)


class Workshop:
    """Starts workers that only write down what they are asked."""

    def __init__(self, fails: dict[tuple[str, str], WorkerError] | None = None) -> None:
        self.events: list[str] = []
        self.alive: set[str] = set()
        self.most_alive = 0
        self.fails = fails or {}
        self.peak = 10**12

    def start(self, request: Request) -> FakeWorker:
        return FakeWorker(self, request.reference)


class FakeWorker:
    def __init__(self, shop: Workshop, name: str) -> None:
        self.shop, self.name = shop, name
        self.peak_bytes: int | None = None
        shop.alive.add(name)
        shop.most_alive = max(shop.most_alive, len(shop.alive))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def await_ready(self) -> None:
        self.ask("await")

    def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        assert self.name in self.shop.alive
        self.shop.events.append(f"{command} {self.name}")
        if (command, self.name) in self.shop.fails:
            raise self.shop.fails[command, self.name]
        if command == "measure":
            samples = [1.0] * int(str(arguments["samples"]))
            return {
                "samples": {"prefill_s": samples, "ttft_s": samples, "decode_s": samples},
                "energy_j": 5.0, "clock_mhz": 1000, "cpu_s": 0.0, "waited_s": 0.0,
            }  # fmt: skip
        if command == "finish":
            memory = {"peak_resident": 10**12, "peak_resident_running": None, "weights": 7}
            return {"memory": memory}
        if command == "load":
            return {"load_s": 2.0, "backend": "forge", "memory": {}, "notices": ["compiled"]}
        return {"runs": 8, "change": 0.2, "is_flat": False}

    def end(self) -> None:
        self.peak_bytes = self.shop.peak

    def close(self) -> None:
        self.shop.alive.discard(self.name)


def seats(*names: str) -> list[Seat]:
    return [Seat(name, Request(name, SETTING, 0, 10)) for name in names]


def measured(shop: Workshop) -> str:
    return "".join(event[-1] for event in shop.events if event.startswith("measure"))


def run(
    shop: Workshop, found: list[Seat], *, together: bool, done: Callable[[str], None] = str
) -> None:
    take_turns(found, EFFORT, together=together, done=done, start=shop.start)  # type: ignore[arg-type]


@pytest.mark.parametrize("together", [True, False])
def test_models_take_turns_and_the_order_rotates(together: bool) -> None:
    shop, found = Workshop(), seats("a", "b", "c")
    told: list[str] = []
    run(shop, found, together=together, done=told.append)
    assert measured(shop) == "abcbcacab"
    assert len(told) == turns_needed(3, EFFORT)
    assert shop.alive == set()
    assert shop.most_alive == (3 if together else 1)
    for seat in found:
        assert seat.samples["decode_s"] == [[1.0, 1.0]] * 3
        assert seat.samples["load_s"] == [[2.0]] * (1 if together else 3)
        assert seat.samples["energy_j"] == [[5.0]] * 3
        assert seat.memory["weights"] == 7
        assert len(seat.turns) == len(seat.clocks_mhz) == 3
        # Said once, however often it happened.
        assert [note[:20] for note in seat.notices] == ["compiled", "Its times were not f"]


def test_everything_is_loaded_and_warm_before_the_first_turn() -> None:
    shop = Workshop()
    run(shop, seats("a", "b"), together=True)
    words = [event.split()[0] for event in shop.events]
    assert words[:6] == ["await", "await", "load", "load", "warm_up", "warm_up"]
    assert words[-2:] == ["finish", "finish"]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("command", ["await", "load", "warm_up", "measure", "finish"])
def test_one_model_that_fails_leaves_the_others_alone(command: str, together: bool) -> None:
    error = WorkerError("out of memory", "Memory ran out: 5 GB.")
    shop, found = Workshop({(command, "b"): error}), seats("a", "b")
    told: list[str] = []
    run(shop, found, together=together, done=told.append)
    assert [seat.status for seat in found] == ["ok", "out of memory"]
    assert found[0].samples["decode_s"] == [[1.0, 1.0]] * 3
    assert found[1].samples == {}
    assert found[1].notices[-1] == "Memory ran out: 5 GB."
    assert shop.alive == set()
    assert len(told) == turns_needed(2, EFFORT)


def test_an_interruption_ends_every_worker() -> None:
    shop = Workshop({("measure", "b"): KeyboardInterrupt()})  # type: ignore[dict-item]
    with pytest.raises(KeyboardInterrupt):
        run(shop, seats("a", "b"), together=True)
    assert shop.alive == set()


def test_two_readings_of_the_peak_that_disagree_are_said() -> None:
    shop, (seat,) = Workshop(), seats("a")
    shop.peak = 2 * 10**12
    run(shop, [seat], together=True)
    assert "Two readings of its peak memory disagree: 1,000,000 MB" in seat.notices[-1]


def test_a_reading_that_may_be_the_parents_own_is_no_disagreement() -> None:
    shop, (seat,) = Workshop(), seats("a")
    shop.peak = process_memory.peak_resident()
    run(shop, [seat], together=True)
    assert "disagree" not in seat.notices[-1]

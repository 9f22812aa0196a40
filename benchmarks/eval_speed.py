"""Race forge against lm-eval's ``HFLM`` on the same prompts: seconds, likelihoods, accuracy.

    python -m benchmarks.eval_speed MODEL --data-dir DIR [--quick 8] [--seeds 1,2,3]
        [--batch-size 1] [--batch-tokens N] [--threads 2]

The prompts are those of the suite ``medical``, whichever of its tasks DIR has files for, with each
set of examples. Both sides run the same model object in float32 in one process, one after the other
on the questions of one task and set, so that noise which lasts longer than that cancels in the
ratio; which goes first alternates. Everything is in the time, tokenizing too; loading is in
neither's. forge must be three times as fast, with log-likelihoods that are the same within 1e-3 and
the same accuracy. Where other programs use the machine, ``--threads 1`` and the seconds of CPU,
which do not count waiting, say more than the clock. A small ``--quick`` favours lm-eval: what forge
computes once for a task and set is then shared by few questions.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.machine import describe_machine
from benchmarks.tables import render_table

if TYPE_CHECKING:
    from forge.evaluate.backends.local import LocalBackend
    from forge.evaluate.contract import ChoiceRequest
    from forge.evaluate.prepare import PreparedTask
    from forge.runtime.any_model import LoadedModel

FLOOR: Final = 3.0
CLOSE: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Heat:
    """Both sides on one task with one set of examples.

    Attributes:
        task: Name of the task.
        items: Questions.
        forge_s: Seconds of forge by the clock.
        lm_eval_s: Those of lm-eval.
        forge_cpu_s: Seconds of CPU that forge took.
        lm_eval_cpu_s: Those of lm-eval.
        apart: Largest difference of two log-likelihoods.
        forge_right: Questions that forge scores as right.
        lm_eval_right: Those that lm-eval does.
    """

    task: str
    items: int
    forge_s: float
    lm_eval_s: float
    forge_cpu_s: float
    lm_eval_cpu_s: float
    apart: float
    forge_right: int
    lm_eval_right: int


def race(
    loaded: LoadedModel, tasks: Sequence[PreparedTask], *, batch_size: int, batch_tokens: int | None
) -> list[Heat]:
    """Run both sides on each task.

    Args:
        loaded: The model.
        tasks: The tasks.
        batch_size: Prompts of a batch of lm-eval.
        batch_tokens: Tokens of a batch of forge; ``None`` for its default.
    """
    from forge.evaluate.backends.local import LocalBackend
    from forge.evaluate.contract import ChoiceRequest

    backend = LocalBackend(loaded, batch_tokens=batch_tokens)
    heats = []
    for number, prepared in enumerate(tasks):
        requests = [each for each in prepared.requests if isinstance(each, ChoiceRequest)]
        sides = [
            lambda asked: _forge(backend, asked),
            lambda asked: _lm_eval(loaded, asked, batch_size),
        ]
        if number == 0:
            for side in sides:
                side(requests[:2])
        order = (0, 1) if number % 2 == 0 else (1, 0)
        seconds, busy, scores = [0.0, 0.0], [0.0, 0.0], [[], []]
        for place in order:
            begin, begin_cpu = time.perf_counter(), time.process_time()
            scores[place] = sides[place](requests)
            seconds[place] = time.perf_counter() - begin
            busy[place] = time.process_time() - begin_cpu
        ours, theirs = scores
        gold = [item.gold for item in prepared.items]
        heats.append(
            Heat(
                prepared.task.name, len(requests), *seconds, *busy,
                max(abs(a - b) for x, y in zip(ours, theirs, strict=True)
                    for a, b in zip(x, y, strict=True)),
                _right(ours, gold), _right(theirs, gold),
            )
        )  # fmt: skip
        heat = heats[-1]
        print(
            f"{heat.task} {prepared.seed}: forge {heat.forge_s:.1f} s, lm-eval "
            f"{heat.lm_eval_s:.1f} s; CPU {heat.forge_cpu_s:.1f} s, {heat.lm_eval_cpu_s:.1f} s",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    return heats


def _forge(backend: LocalBackend, requests: Sequence[ChoiceRequest]) -> list[tuple[float, ...]]:
    found: dict[int, tuple[float, ...]] = {}
    backend.choose(requests, lambda place, answer: found.update({place: answer.log_probs}))
    return [found[place] for place in range(len(requests))]


def _lm_eval(
    loaded: LoadedModel, requests: Sequence[ChoiceRequest], batch_size: int
) -> list[tuple[float, ...]]:
    from forge.evaluate.lm_eval_adapter import reference_scores

    return reference_scores(loaded, requests, batch_size=batch_size)


def _right(scores: Sequence[tuple[float, ...]], gold: Sequence[int | str]) -> int:
    return sum(each.index(max(each)) == right for each, right in zip(scores, gold, strict=True))


def report(heats: Sequence[Heat]) -> tuple[str, bool]:
    """Return the table and the verdict, and whether all floors were reached."""
    rows = [
        _row(task, [heat for heat in heats if heat.task == task])
        for task in dict.fromkeys(heat.task for heat in heats)
    ]
    rows.append(_row("all", heats))
    header = ("task", "questions", "forge s", "lm-eval s", "ratio", "forge CPU s",
              "lm-eval CPU s", "ratio", "max Δ", "right", "lm-eval")  # fmt: skip
    ratio = sum(heat.lm_eval_s for heat in heats) / sum(heat.forge_s for heat in heats)
    busy = sum(heat.lm_eval_cpu_s for heat in heats) / sum(heat.forge_cpu_s for heat in heats)
    apart = max(heat.apart for heat in heats)
    is_equal = all(heat.forge_right == heat.lm_eval_right for heat in heats)
    verdict = (
        f"forge is {ratio:.2f} times as fast by the clock, {busy:.2f} times by CPU (floor "
        f"{FLOOR:g}); log-likelihoods differ by at most "
        f"{apart:.1e} (floor {CLOSE:g}); accuracy is {'equal' if is_equal else 'NOT equal'}."
    )
    is_reached = ratio >= FLOOR and apart <= CLOSE and is_equal
    return f"{render_table(header, rows)}\n\n{verdict}", is_reached


def _row(name: str, heats: Sequence[Heat]) -> list[str]:
    ours, theirs = sum(heat.forge_s for heat in heats), sum(heat.lm_eval_s for heat in heats)
    busy = sum(heat.forge_cpu_s for heat in heats), sum(heat.lm_eval_cpu_s for heat in heats)
    return [
        name, str(sum(heat.items for heat in heats)), f"{ours:.1f}", f"{theirs:.1f}",
        f"{theirs / ours:.2f}", f"{busy[0]:.1f}", f"{busy[1]:.1f}", f"{busy[1] / busy[0]:.2f}",
        f"{max(heat.apart for heat in heats):.1e}",
        str(sum(heat.forge_right for heat in heats)),
        str(sum(heat.lm_eval_right for heat in heats)),
    ]  # fmt: skip


def _prepared(arguments: argparse.Namespace) -> list[PreparedTask]:
    from forge.core.errors import EvaluationError
    from forge.evaluate.prepare import prepare_task
    from forge.evaluate.suite import load_suite

    found = []
    for task in load_suite("medical").tasks:
        for seed in arguments.seeds:
            try:
                prepared = prepare_task(
                    task, seed=seed, data_dir=arguments.data_dir, quick=arguments.quick
                )
            except EvaluationError as problem:
                print(f"left out: {problem}", file=sys.stderr)
                break
            found.append(prepared)
    return found


def main() -> int:
    """Run the benchmark and return 1 when a floor is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--quick", type=int, default=8, help="questions of each task and set")
    parser.add_argument(
        "--seeds", type=lambda text: [int(each) for each in text.split(",")], default=[1, 2, 3]
    )
    parser.add_argument("--batch-size", type=int, default=1, help="of lm-eval")
    parser.add_argument("--batch-tokens", type=int, help="of forge")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    from forge.runtime.any_model import load_any

    tasks = _prepared(arguments)
    loaded = load_any(arguments.model, dtype="float32", threads=arguments.threads)
    machine = describe_machine()
    heats = race(
        loaded, tasks, batch_size=arguments.batch_size, batch_tokens=arguments.batch_tokens
    )
    text, is_reached = report(heats)
    print(f"{machine.sentences()}\n\n{text}")
    return 0 if is_reached else 1


if __name__ == "__main__":
    sys.exit(main())

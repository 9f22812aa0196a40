"""Race forge against mergekit and against a plain copy of the same bytes.

    python -m benchmarks.merge_speed [--methods ties,della] [--rounds 3] [--small] [--json FILE]

271 million parameters in bfloat16: a base and two fine-tunes (slerp reads one of them). Whole
processes, with their start-up, their reading of sidecars and forge's checksums. A round runs, for
each method, mergekit, forge, a copy, and forge on a model so small that only start-up is left;
ratios are taken within a round. A first round, which warms the page cache and compiles kernels,
is thrown away; its outputs show that both programs did the same work.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command import Record, chosen, run_benchmark, say
from benchmarks.machine import Machine, describe_machine
from benchmarks.models import LARGE, SMALL, SMALLEST, Family, write_family
from benchmarks.process import (
    Measurement,
    child_environment,
    copy_measured,
    run_measured,
)
from benchmarks.programs import (
    CONTESTS,
    ROOT,
    Command,
    Contest,
    check_same_work,
    forge_command,
    mergekit_command,
)
from benchmarks.speed_report import Run, report


@dataclass(frozen=True, slots=True)
class Race:
    """The models, recipes and folders of one race.

    Attributes:
        work: Where recipes, logs and outputs go.
        contests: What is merged, in this order.
        family: The models.
        smallest: Models that leave only start-up.
        with_mergekit: Whether mergekit runs too.
    """

    work: Path
    contests: tuple[Contest, ...]
    family: Family
    smallest: Family
    with_mergekit: bool

    def warm_up(self) -> list[Run]:
        """Run everything once, check the outputs, and return what the very first runs cost.

        A first run has an empty kernel cache, and the files in memory: compiling is what it adds.
        """
        first = []
        for contest in self.contests:
            say(f"warming up {contest.method}")
            with_empty_cache = child_environment(FORGE_CACHE=str(self.work / "empty_cache"))
            self._merge(forge_command, contest, self.smallest)
            self._merge(forge_command, contest, self.family)
            cost = self._merge(forge_command, contest, self.family, with_empty_cache)
            shutil.rmtree(self.work / "empty_cache", ignore_errors=True)
            first.append(Run("first-run", contest.method, 0, cost))
            if self.with_mergekit:
                ours = self._output.rename(self.work / "output_of_forge")
                self._merge(mergekit_command, contest, self.family)
                check_same_work(contest, self.family, ours, self._output)
                shutil.rmtree(ours)
            self._clear()
        return first

    def run_round(self, number: int) -> list[Run]:
        """Run each method once with each subject, one right after the other."""
        runs = []
        for contest in self.contests:
            costs: dict[str, Measurement] = {}
            if self.with_mergekit:
                costs["mergekit"] = self._merge(mergekit_command, contest, self.family)
            costs["forge"] = self._merge(forge_command, contest, self.family)
            costs["copy"] = self._copy(contest)
            costs["start-up"] = self._merge(forge_command, contest, self.smallest)
            self._clear()
            runs += [Run(subject, contest.method, number, cost) for subject, cost in costs.items()]
            times = (f"{subject} {cost.wall_s:.2f} s" for subject, cost in costs.items())
            say(f"round {number}, {contest.method}: {', '.join(times)}")
        return runs

    @property
    def _output(self) -> Path:
        return self.work / "output"

    def _clear(self) -> None:
        """Remove the last output, and let the disk come to rest."""
        if self._output.exists():
            shutil.rmtree(self._output)
        os.sync()

    def _merge(
        self,
        command: Command,
        contest: Contest,
        family: Family,
        environment: dict[str, str] | None = None,
    ) -> Measurement:
        self._clear()
        recipe = self.work / f"{contest.method}.yaml"
        contest.write_recipe(recipe, family)
        return run_measured(
            command(recipe, self._output),
            folder=ROOT,
            log=self.work / "program.log",
            environment=environment or child_environment(),
        )

    def _copy(self, contest: Contest) -> Measurement:
        self._clear()
        self._output.mkdir()
        weights = [folder / "model.safetensors" for folder in contest.inputs(self.family)]
        return copy_measured(weights, self._output / "model.safetensors")


def prepare(work: Path, methods: Sequence[str], *, small: bool, with_mergekit: bool) -> Race:
    """Write the models, or find those of an earlier run."""
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    say("writing the models")
    shape, folder = (SMALL, "small") if small else (LARGE, "large")
    return Race(
        work,
        tuple(CONTESTS[method] for method in methods),
        write_family(work / folder, shape),
        write_family(work / "smallest", SMALLEST),
        with_mergekit,
    )


def measure(arguments: argparse.Namespace) -> Record:
    """Run the race and return every measurement as plain JSON values."""
    machine: Machine = describe_machine()
    say(machine.sentences())
    race = prepare(
        arguments.work, chosen(arguments.methods, CONTESTS),
        small=arguments.small, with_mergekit=not arguments.without_mergekit,
    )  # fmt: skip
    runs = race.warm_up()
    for number in range(1, arguments.rounds + 1):
        runs += race.run_round(number)
    shape = SMALL if arguments.small else LARGE
    return {
        "machine": machine.as_json(),
        "parameters": shape.num_parameters,
        "runs": [run.as_json() for run in runs],
    }


def main() -> int:
    """Race forge against mergekit and a copy of the same bytes, and print the ratios."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.merge_speed", description=main.__doc__
    )
    parser.add_argument("--methods", default=",".join(CONTESTS), help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[3]")
    parser.add_argument("--without-mergekit", action="store_true", help="only forge and the copy")
    return run_benchmark(parser, "merge_speed", measure, report)


if __name__ == "__main__":
    raise SystemExit(main())

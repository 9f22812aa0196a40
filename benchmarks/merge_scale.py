"""Merge what is large in another way: thousands of tiny tensors, and a model of 7 billion.

    python -m benchmarks.merge_scale [--cases tensors,7b] [--mergekit] [--small] [--json FILE]

``tensors``: 8,004 tensors of at most a kilobyte, base and two fine-tunes, by TIES. What is measured
is planning, scheduling and bookkeeping; it must take less than 10 s. With ``--mergekit`` mergekit
merges the same (two minutes).

``7b``: the shapes of Mistral-7B in bfloat16, base and one fine-tune, with the published DARE and
TIES recipes of BioMistral. The inputs are sparse files of zeros, so that only the output, 14.5 GB,
takes room on the disk. What is measured is memory: less than 1 GB of it may be anonymous.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.command import Record, chosen, rows_of, run_benchmark, say
from benchmarks.machine import Machine, describe_machine
from benchmarks.models import (
    MANY_TENSORS,
    MISTRAL_7B,
    ModelShape,
    write_family,
    write_sparse_family,
)
from benchmarks.process import BenchmarkError, Measurement, child_environment, run_measured
from benchmarks.programs import (
    CONTESTS,
    ROOT,
    Command,
    Contest,
    forge_command,
    mergekit_command,
)
from benchmarks.tables import mark, render_table

TENSORS_LIMIT_S: Final = 10.0
MEMORY_LIMIT_BYTES: Final = 10**9
NUM_SHARDS: Final = 3
CASES: Final = {"tensors": "8,004 tiny tensors", "7b": "7 billion parameters"}
_BIOMISTRAL: Final = (
    Contest("dare_ties", 0, 2, False, True, {"weight": 0.5, "density": 0.5}, {"int8_mask": True}),
    Contest("ties", 0, 2, False, True, {"weight": 0.5, "density": 0.5}, {"normalize": True}),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One merge: who runs it, on what, and what it cost."""

    case: str
    program: str
    method: str
    num_tensors: int
    output_bytes: int
    cost: Measurement

    def as_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Bench:
    """Runs merges below one folder, one after the other."""

    work: Path

    def merge(self, command: Command, recipe: Path) -> Measurement:
        """Run one program on a recipe, and remove what it wrote."""
        output = self.work / "output"
        if output.exists():
            shutil.rmtree(output)
        os.sync()
        cost = run_measured(
            command(recipe, output),
            folder=ROOT, log=self.work / "program.log", environment=child_environment(),
        )  # fmt: skip
        shutil.rmtree(output)
        return cost

    def many_tensors(self, *, mergekit: bool, small: bool) -> Iterator[Case]:
        """Merge thousands of tiny tensors."""
        shape = replace(MANY_TENSORS, layers=9) if small else MANY_TENSORS
        family = write_family(self.work / f"tensors-{shape.layers}", shape)
        recipe = self.work / "tensors.yaml"
        CONTESTS["ties"].write_recipe(recipe, family)
        say("compiling and warming up")
        self.merge(forge_command, recipe)
        programs: dict[str, Command] = {"forge": forge_command}
        if mergekit:
            programs["mergekit"] = mergekit_command
        for program, command in programs.items():
            say(f"{len(shape.tensors())} tensors with {program}")
            yield _case("tensors", program, "ties", shape, self.merge(command, recipe))

    def seven_billion(self, *, small: bool) -> Iterator[Case]:
        """Merge files of zeros in the shapes of Mistral-7B."""
        shape = replace(MISTRAL_7B, layers=1, vocab=2000) if small else MISTRAL_7B
        needed, free = int(1.1 * shape.num_bytes), shutil.disk_usage(self.work).free
        if free < needed:
            raise BenchmarkError(
                f"{self.work} has {free / 1e9:.1f} GB free and the 7b case needs "
                f"{needed / 1e9:.1f} GB for its output; name a larger disk with --work"
            )
        family = write_sparse_family(self.work / f"7b-{shape.layers}", shape, num_shards=NUM_SHARDS)
        for contest in _BIOMISTRAL:
            recipe = self.work / f"7b-{contest.method}.yaml"
            contest.write_recipe(recipe, family)
            say(f"{shape.num_parameters / 1e9:.2f} billion parameters by {contest.method}")
            cost = self.merge(forge_command, recipe)
            yield _case("7b", "forge", contest.method, shape, cost)


def _case(case: str, program: str, method: str, shape: ModelShape, cost: Measurement) -> Case:
    return Case(case, program, method, len(shape.tensors()), shape.num_bytes, cost)


def _read_case(row: dict[str, object]) -> Case:
    cost = row["cost"]
    if not isinstance(cost, dict):
        raise BenchmarkError("a case of the record has no cost; was it written by this version?")
    return Case(**{**row, "cost": Measurement(**cost)})  # type: ignore[arg-type]


def measure(arguments: argparse.Namespace) -> Record:
    """Run the cases and return every measurement as plain JSON values."""
    wanted = chosen(arguments.cases, CASES)
    machine = describe_machine()
    say(machine.sentences())
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work)
    cases: list[Case] = []
    if "tensors" in wanted:
        cases += bench.many_tensors(mergekit=arguments.mergekit, small=arguments.small)
    if "7b" in wanted:
        cases += bench.seven_billion(small=arguments.small)
    return {"machine": machine.as_json(), "cases": [case.as_json() for case in cases]}


def report(record: Record) -> str:
    """Return the machine and the table as Markdown."""
    rows = []
    for case in map(_read_case, rows_of(record, "cases")):
        peak = case.cost.peak_anonymous_bytes or 0
        wall, memory = f"{case.cost.wall_s:.1f}", f"{peak / 1e6:.0f}"
        ours = case.program == "forge"
        if case.case == "tensors":
            wall = mark(wall, not ours or case.cost.wall_s < TENSORS_LIMIT_S)
        else:
            memory = mark(memory, not ours or peak < MEMORY_LIMIT_BYTES)
        rows.append([
            f"{case.case} {case.method}", case.program, f"{case.num_tensors}",
            f"{case.output_bytes / 1e9:.2f}", wall, f"{case.cost.cpu_s:.1f}", memory,
        ])  # fmt: skip
    header = ["case", "program", "tensors", "output GB", "wall s", "CPU s", "anonymous MB"]
    floors = "Floors for forge: tensors in less than 10 s; 7b within 1000 MB of anonymous memory."
    machine = Machine.from_json(record["machine"]).sentences()
    return "\n\n".join([machine, floors, render_table(header, rows)])


def main() -> int:
    """Merge thousands of tiny tensors and a model of 7 billion parameters."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.merge_scale", description=main.__doc__
    )
    parser.add_argument("--cases", default="tensors,7b", help="[%(default)s]")
    parser.add_argument("--mergekit", action="store_true", help="mergekit merges the tensors too")
    return run_benchmark(parser, "merge_scale", measure, report)


if __name__ == "__main__":
    raise SystemExit(main())

"""Plan models of 70 and 671 billion parameters, and work on one true-sized block of them.

    python -m benchmarks.scale [--cases plans,block] [--small] [--json FILE]

``plans``: checks and dry runs of merges of three models, and dry runs of quantizations, as whole
processes. The models have headers, configurations and tokenizers of their true sizes, and holes for
weights. Floors: 5 s for 70B and 10 s for 45,000 tensors, within 1 GB of resident memory.

``block``: one decoder block of Llama-3-70B, 1.7 GB a model, merged and quantized. Memory follows
the widest tensors, not their number, so what a block takes bounds what 80 of them take. Floor: less
than 400 MB of anonymous memory for merges. Takes 9 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.command import Record, chosen, rows_of, run_benchmark, say
from benchmarks.large_models import BLOCK_OF_70B, LARGE_MODELS, write_block_family
from benchmarks.machine import Machine, describe_machine
from benchmarks.models import Family
from benchmarks.process import BenchmarkError, Measurement, child_environment, run_measured
from benchmarks.programs import CONTESTS, ROOT
from benchmarks.tables import mark, render_table

CASES: Final = {"plans": "plans of whole models", "block": "one block of Llama-3-70B"}
RESIDENT_LIMIT_BYTES: Final = 10**9
ANONYMOUS_LIMIT_BYTES: Final = 400 * 10**6
_LIMITS_S: Final = {"llama-2-70b": 5.0, "llama-3-70b": 5.0, "deepseek-v3": 10.0}
_QUANTIZATIONS: Final = {
    "bnb-nf4": ("--method", "bnb", "--type", "nf4"),
    "rtn": ("--method", "rtn"),
}
_ALL_OF_70B: Final = 4 * 2 * LARGE_MODELS["llama-3-70b"].num_parameters
"""Bytes that a merge of three models reads and writes."""


@dataclass(frozen=True, slots=True)
class Run:
    """One process.

    Attributes:
        case: ``plans`` or ``block``.
        subject: The model, or the method.
        verb: What was done.
        moved_bytes: What was read and written of weights.
        cost: What it cost.
    """

    case: str
    subject: str
    verb: str
    moved_bytes: int
    cost: Measurement

    def as_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Bench:
    """Runs forge below one folder, one process after the other."""

    work: Path

    def forge(self, *arguments: str | Path) -> Measurement:
        """Run forge, and remove what it wrote."""
        output = self.work / "out"
        shutil.rmtree(output, ignore_errors=True)
        os.sync()
        cost = run_measured(
            (sys.executable, "-m", "forge", *arguments, *_output_of(arguments, output)),
            folder=self.work, log=self.work / "program.log",
            environment=child_environment(PYTHONPATH=str(ROOT)),
        )  # fmt: skip
        shutil.rmtree(output, ignore_errors=True)
        return cost

    def plans(self, *, small: bool) -> Iterator[Run]:
        """Check and plan whole models."""
        for name, model in LARGE_MODELS.items():
            if small and name != "llama-2-70b":
                continue
            root = self.work / name
            shutil.rmtree(root, ignore_errors=True)
            family = model.write_family(root)
            recipe = root / "dare_ties.yaml"
            CONTESTS["dare_ties"].write_recipe(recipe, family)
            self.forge("check", recipe)
            verbs: dict[str, tuple[str | Path, ...]] = {
                "check": ("check", recipe),
                "merge --dry-run": ("merge", recipe, "--dry-run"),
                "quantize --dry-run": ("quantize", family.base, "--method", "rtn", "--dry-run"),
            }
            for verb, arguments in verbs.items():
                say(f"{name}: {verb}")
                yield Run("plans", name, verb, 0, self.forge(*arguments))
            shutil.rmtree(root)

    def block(self, *, small: bool) -> Iterator[Run]:
        """Merge and quantize one block."""
        shape = replace(BLOCK_OF_70B, hidden=1024, intermediate=3584) if small else BLOCK_OF_70B
        if shutil.disk_usage(self.work).free < 6 * shape.num_bytes:
            raise BenchmarkError(f"{self.work} lacks room; name a larger disk with --work")
        root = self.work / "block"
        shutil.rmtree(root, ignore_errors=True)
        say("writing the block")
        family = write_block_family(root, shape)
        yield from self._merges(family, root, shape.num_bytes)
        for name, options in _QUANTIZATIONS.items():
            say(f"block: quantize to {name}")
            cost = self.forge("quantize", family.base, *options, "--verify", "off", "--quiet")
            yield Run("block", name, "quantize", shape.num_bytes, cost)
        shutil.rmtree(root)

    def _merges(self, family: Family, root: Path, num_bytes: int) -> Iterator[Run]:
        for name, contest in CONTESTS.items():
            recipe = root / f"{name}.yaml"
            contest.write_recipe(recipe, family)
            say(f"block: merge by {name}")
            cost = self.forge("merge", recipe, "--quiet")
            yield Run("block", name, "merge", (contest.num_models + 1) * num_bytes, cost)


def _output_of(arguments: tuple[str | Path, ...], output: Path) -> tuple[str | Path, ...]:
    return () if arguments[0] == "check" or "--dry-run" in arguments else ("--out", output)


def _read_run(row: dict[str, object]) -> Run:
    cost = row["cost"]
    if not isinstance(cost, dict):
        raise BenchmarkError("a run of the record has no cost; was it written by this version?")
    return Run(**{**row, "cost": Measurement(**cost)})  # type: ignore[arg-type]


def measure(arguments: argparse.Namespace) -> Record:
    """Run the cases and return every measurement as plain JSON values."""
    wanted = chosen(arguments.cases, CASES)
    machine = describe_machine()
    say(machine.sentences())
    work = (arguments.work / "scale").resolve()
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work)
    runs: list[Run] = []
    if "plans" in wanted:
        runs += bench.plans(small=arguments.small)
    if "block" in wanted:
        runs += bench.block(small=arguments.small)
    return {"machine": machine.as_json(), "runs": [run.as_json() for run in runs]}


def report(record: Record) -> str:
    """Return the machine and the tables as Markdown."""
    runs = [_read_run(row) for row in rows_of(record, "runs")]
    plans = [run for run in runs if run.case == "plans"]
    blocks = [run for run in runs if run.case == "block"]
    others = sum(run.cost.background_cores for run in runs) / len(runs)
    parts = [
        Machine.from_json(record["machine"]).sentences(),
        f"Other processes used {others:.2f} cores meanwhile.",
    ]
    if plans:
        header = ["model", "verb", "tensors", "wall s", "CPU s", "anonymous MB", "resident MB"]
        parts.append(render_table(header, [_plan_cells(run) for run in plans]))
    if blocks:
        header = ["block", "verb", "wall s", "CPU s", "GB/s", "anonymous MB", "all of 70B, min"]
        parts.append(render_table(header, [_block_cells(run) for run in blocks]))
    return "\n\n".join(parts)


def _plan_cells(run: Run) -> list[str]:
    cost, limit = run.cost, _LIMITS_S[run.subject]
    resident = cost.peak_resident_bytes or 0
    return [
        run.subject, run.verb, f"{len(LARGE_MODELS[run.subject].tensors):,}",
        mark(f"{cost.wall_s:.2f}", cost.wall_s < limit), f"{cost.cpu_s:.2f}",
        f"{(cost.peak_anonymous_bytes or 0) / 1e6:.0f}",
        mark(f"{resident / 1e6:.0f}", 0 < resident < RESIDENT_LIMIT_BYTES),
    ]  # fmt: skip


def _block_cells(run: Run) -> list[str]:
    cost, is_merge = run.cost, run.verb == "merge"
    anonymous = cost.peak_anonymous_bytes or 0
    rate = run.moved_bytes / cost.wall_s
    return [
        run.subject, run.verb, f"{cost.wall_s:.1f}", f"{cost.cpu_s:.1f}", f"{rate / 1e9:.2f}",
        mark(f"{anonymous / 1e6:.0f}", not is_merge or 0 < anonymous < ANONYMOUS_LIMIT_BYTES),
        f"{_ALL_OF_70B / rate / 60:.0f}" if is_merge else "",
    ]  # fmt: skip


def main() -> int:
    """Plan the largest models, and work on one block of 70B."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=main.__doc__)
    parser.add_argument("--cases", default="plans,block", help="[%(default)s]")
    return run_benchmark(parser, "scale", measure, report)


if __name__ == "__main__":
    raise SystemExit(main())

"""Race NF4, FP4 and int8 from file to file against bitsandbytes' own CPU path.

    python -m benchmarks.quantize_bnb [--kinds nf4,nf4-dq] [--rounds 3] [--small] [--json FILE]

Both programs quantize the linear layers of 271 million parameters in bfloat16 and write the whole
checkpoint. Before the race every tensor of both is compared, bit for bit, bitsandbytes then on one
thread: with several, torch sums the mean of double quantization in another order. Time is that of
the work, without start-up (bitsandbytes needs torch); the whole process is shown beside it. forge
also hashes all that it reads and writes, and journals it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.command import Record, chosen, rows_of, run_benchmark, say
from benchmarks.machine import Machine, describe_machine
from benchmarks.models import LARGE, SMALL, read_table, write_family
from benchmarks.process import BenchmarkError, child_environment, run_measured
from benchmarks.programs import ROOT
from benchmarks.tables import Spread, mark, ratios, render_table

FLOOR: Final = 4.0
KINDS: Final = {"nf4": 4, "nf4-dq": 4, "fp4": 4, "int8": 8}
PROGRAMS: Final = ("forge", "bitsandbytes")


def main() -> int:
    """Run the race."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Plain)
    parser.add_argument("--kinds", default=",".join(KINDS), help="which to race [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each [%(default)s]")
    return run_benchmark(parser, "quantize-bnb", _measure, _report)


class _Plain(argparse.RawDescriptionHelpFormatter):
    """Leaves the description's lines as they are."""


def _measure(arguments: argparse.Namespace) -> Record:
    shape = SMALL if arguments.small else LARGE
    root = (arguments.work / "quantize_bnb").resolve()
    model = write_family(root, shape, num_tunes=0).base
    rows: list[dict[str, object]] = []
    for kind in chosen(arguments.kinds, KINDS):
        outs = {program: root / f"{program}-{kind}" for program in PROGRAMS}
        for number in range(arguments.rounds + 1):
            # Pair by pair, so that noise which lasts longer than a pair cancels.
            for program in PROGRAMS:
                # With several threads torch sums a large mean in another order.
                extra = {} if number else {"OMP_NUM_THREADS": "1"}
                row = _run(program, model, outs[program], kind, extra)
                if number:
                    rows.append({"kind": kind, "program": program, **row})
            if not number:
                # The first round compiles, fills the page cache, and is held to be equal.
                _check_equal(kind, outs["forge"], outs["bitsandbytes"])
        for out in outs.values():
            shutil.rmtree(out)
        say(f"{kind}: done")
    return {
        "machine": describe_machine().as_json(),
        "source_bytes": shape.num_bytes,
        "num_parameters": shape.num_parameters,
        "runs": rows,
    }


def _run(
    program: str, model: Path, out: Path, kind: str, extra: Mapping[str, str]
) -> dict[str, object]:
    shutil.rmtree(out, ignore_errors=True)
    log = out.with_name(f"{out.name}.log")
    words: Sequence[str | Path] = (
        sys.executable, "-m", "benchmarks.bnb_program", program, model, out, kind,
    )  # fmt: skip
    cost = run_measured(
        words, folder=ROOT, log=log, environment=child_environment(PYTHONPATH=str(ROOT), **extra)
    )
    work = json.loads(log.read_text().splitlines()[-1])
    return {**cost.as_json(), **work}


def _check_equal(kind: str, ours: Path, theirs: Path) -> None:
    """Compare every tensor, byte by byte.

    Raises:
        BenchmarkError: One differs, or only one program wrote it.
    """
    tables = [read_table(folder / "model.safetensors") for folder in (ours, theirs)]
    (left, left_start), (right, right_start) = tables
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys())
        raise BenchmarkError(f"{kind}: only one of the programs wrote {odd[:3]}")
    with (
        (ours / "model.safetensors").open("rb") as first,
        (theirs / "model.safetensors").open("rb") as second,
    ):
        for name in left:
            first.seek(left_start + left[name]["data_offsets"][0])
            second.seek(right_start + right[name]["data_offsets"][0])
            size = left[name]["data_offsets"][1] - left[name]["data_offsets"][0]
            if left[name]["shape"] != right[name]["shape"] or first.read(size) != second.read(size):
                raise BenchmarkError(f"{kind}: {name} differs")


def _report(record: Record) -> str:
    rows = rows_of(record, "runs")
    size = record["source_bytes"]
    assert isinstance(size, int)
    cells = []
    for kind in dict.fromkeys(str(row["kind"]) for row in rows):
        ours, theirs = (
            [row for row in rows if row["kind"] == kind and row["program"] == program]
            for program in PROGRAMS
        )
        work = [_column(side, "work_s") for side in (ours, theirs)]
        wall = [_column(side, "wall_s") for side in (ours, theirs)]
        cpu = [_column(side, "cpu_s") for side in (ours, theirs)]
        memory = [Spread.of(_column(side, "peak_anonymous_bytes")) for side in (ours, theirs)]
        faster = ratios(work[1], work[0])
        cells.append(
            (
                kind,
                f"{size / Spread.of(work[0]).median / 1e9:.2f}",
                f"{size / Spread.of(work[1]).median / 1e9:.2f}",
                mark(str(faster), faster.median >= FLOOR),
                str(ratios(wall[1], wall[0])),
                str(ratios(cpu[1], cpu[0])),
                f"{memory[0].median / 1e6:.0f}",
                f"{memory[1].median / 1e6:.0f}",
            )
        )
    header = (
        "kind", "forge GB/s", "bitsandbytes GB/s", f"faster (floor {FLOOR:.0f})", "whole process",
        "CPU time", "forge MB", "bitsandbytes MB",
    )  # fmt: skip
    text = render_table(header, cells)
    count = f"{record['num_parameters']:,} parameters, {size / 1e6:.0f} MB in bfloat16"
    told = "GB/s count what is read. Every tensor is equal, bit for bit."
    machine = Machine.from_json(record["machine"]).sentences()
    return f"{count}. {told}\n\n{text}\n\n{machine}"


def _column(rows: Sequence[Mapping[str, object]], key: str) -> list[float]:
    values = [row[key] for row in rows]
    return [float(value) for value in values if isinstance(value, (int, float))]


if __name__ == "__main__":
    sys.exit(main())

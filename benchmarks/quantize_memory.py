"""Show that the memory of AWQ does not grow with a model's depth.

    python -m benchmarks.quantize_memory [--layers 4,32] [--small] [--json FILE]

Models of one width (a billion parameters at 16 layers) and different depths, filled with noise,
are quantized in processes of their own on a few calibration tokens, without the search for cuts,
which needs no memory of its own. What counts is the peak of anonymous memory: pages of the mapped
checkpoint can be dropped by the kernel at will.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.command import Record, rows_of, run_benchmark, say
from benchmarks.machine import Machine, describe_machine
from benchmarks.models import ModelShape, write_family
from benchmarks.process import BenchmarkError, child_environment, run_measured
from benchmarks.programs import ROOT
from benchmarks.tables import mark, render_table

LIMIT: Final = 1.15
SHAPE: Final = ModelShape(2048, 4, 5632, 32000, 32, 8)
SMALL_SHAPE: Final = ModelShape(256, 4, 704, 2000, 4, 4)
_PROGRAM: Final = Path(__file__).with_name("awq_program.py")
_TOKENS: Final = (2, 128)


def main() -> int:
    """Run the cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", default="4,32", help="depths to compare [%(default)s]")
    return run_benchmark(parser, "quantize-memory", measure, report)


def measure(arguments: argparse.Namespace) -> Record:
    """Quantize models of every depth."""
    shape = SMALL_SHAPE if arguments.small else SHAPE
    root = (arguments.work / "quantize_memory").resolve()
    root.mkdir(parents=True, exist_ok=True)
    tokens = root / "calibration.npy"
    np.save(tokens, np.random.default_rng(0).integers(4, shape.vocab, _TOKENS))
    rows: list[dict[str, object]] = []
    for layers in (int(word) for word in arguments.layers.split(",")):
        deep = dataclasses.replace(shape, layers=layers)
        folder = root / f"model-{layers}"
        model = write_family(folder, deep, num_tunes=0).base
        out = root / f"awq-{layers}"
        log = out.with_suffix(".log")
        shutil.rmtree(out, ignore_errors=True)
        cost = run_measured(
            (sys.executable, _PROGRAM, "forge", model, tokens, out, "clip=false"),
            folder=ROOT, log=log, environment=child_environment(PYTHONPATH=str(ROOT)),
        )  # fmt: skip
        work = json.loads(log.read_text().splitlines()[-1])
        rows.append(
            {"layers": layers, "num_parameters": deep.num_parameters, **cost.as_json(), **work}
        )
        say(f"{layers} layers: {work['work_s']:.0f} s")
        shutil.rmtree(out)
        shutil.rmtree(folder)
    return {"machine": describe_machine().as_json(), "runs": rows}


def report(record: Record) -> str:
    """Return the table."""
    rows = rows_of(record, "runs")
    machine = Machine.from_json(record["machine"])
    peaks = [float(str(row["peak_anonymous_bytes"])) for row in rows]
    if not peaks[0]:
        raise BenchmarkError("no memory was measured")
    cells = [
        [
            f"{row['layers']} layers",
            f"{float(str(row['num_parameters'])) / 1e6:.0f}",
            f"{float(str(row['work_s'])):.0f}",
            f"{peak / 1e6:.0f}",
            mark(f"{peak / peaks[0]:.2f}×", peak <= LIMIT * peaks[0]),
        ]
        for row, peak in zip(rows, peaks, strict=True)
    ]
    header = ["", "parameters, M", "time, s", "peak memory, MB", "against the first"]
    return f"{machine.sentences()}\n\n{render_table(header, cells)}"


if __name__ == "__main__":
    raise SystemExit(main())

"""Race AWQ on a CPU against AutoAWQ and AutoRound: time, memory, and distance from the source.

    python -m benchmarks.quantize_awq --model DIR [--autoawq-python PYTHON]
        [--autoawq-dtype float16] [--autoround-python PYTHON] [--text FILE] [--rounds 1]
        [--json FILE]

All programs quantize the same model to 4 bits in groups of 64 on the same calibration tokens, one
after the other and with all cores, and write the checkpoint. KL, the share of same top tokens and
perplexity are measured on held-out text by one evaluator, on dequantized weights in float32, so
that no program's kernels count. The text is cut in two: calibration comes from its first part,
held-out windows from its last.

The peers need environments of their own: AutoAWQ 0.2.9 with transformers 4.51.3, AutoRound 0.16.1.
Without one, its rows are left out. AutoAWQ's own default is float16, which a CPU without
AVX512-FP16 emulates: there float32 is many times faster, and the type to race against.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.command import Record, rows_of, run_benchmark, say
from benchmarks.machine import Machine, describe_machine
from benchmarks.process import BenchmarkError, child_environment, run_measured
from benchmarks.programs import ROOT
from benchmarks.tables import mark, render_table

AUTOAWQ_FLOOR: Final = 15.0
AUTOROUND_FLOOR: Final = 2.0
MEMORY_FLOOR: Final = 3.0
_PROGRAM: Final = Path(__file__).with_name("awq_program.py")


@dataclass(frozen=True, slots=True)
class Subject:
    """One way to quantize.

    Attributes:
        title: Its row.
        program: Word of ``awq_program``.
        python: Interpreter with its packages.
        options: What follows on the command line.
    """

    title: str
    program: str
    python: Path
    options: tuple[str, ...] = ()


def main() -> int:
    """Run the race."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, help="a checkpoint of a Llama, such as SmolLM2-135M")
    add("--text", type=Path, help="a text to calibrate on and to measure with [docs/*.md]")
    add("--autoawq-python", type=Path, help="interpreter of an environment with AutoAWQ")
    add("--autoawq-dtype", choices=("float16", "bfloat16", "float32"), default="float16",
        help="type that AutoAWQ computes with [%(default)s]")  # fmt: skip
    add("--autoround-python", type=Path, help="interpreter of an environment with AutoRound")
    add("--samples", type=int, default=8, help="calibration sequences [%(default)s]")
    add("--tokens", type=int, default=512, help="tokens of each [%(default)s]")
    add("--rounds", type=int, default=1, help="runs of each program [%(default)s]")
    return run_benchmark(parser, "quantize-awq", measure, report)


def subjects(arguments: argparse.Namespace) -> list[Subject]:
    """Return what is compared."""
    own = Path(sys.executable)
    found = [
        Subject("forge, sketch", "forge", own),
        Subject("forge, gram", "forge", own, ("search=gram",)),
        Subject("forge, sketch, error feedback", "forge", own, ("error_feedback=true",)),
    ]
    if arguments.autoawq_python:
        dtype = f"dtype={arguments.autoawq_dtype}"
        found.append(Subject("AutoAWQ 0.2.9", "autoawq", arguments.autoawq_python, (dtype,)))
    if arguments.autoround_python:
        found.append(Subject("AutoRound 0.16.1, AWQ", "autoround", arguments.autoround_python))
    return found


def measure(arguments: argparse.Namespace) -> Record:
    """Quantize with every program, and evaluate what it wrote."""
    if arguments.model is None:
        raise BenchmarkError("--model is missing; 'make demo' prepares SmolLM2-135M-Instruct")
    model = arguments.model.resolve()
    root = (arguments.work / "quantize_awq").resolve()
    root.mkdir(parents=True, exist_ok=True)
    calibration, held_out = write_tokens(arguments, model, root)
    rows: list[dict[str, object]] = []
    for subject in subjects(arguments):
        out = root / subject.title.replace(" ", "-").replace(",", "")
        for number in range(arguments.rounds):
            shutil.rmtree(out, ignore_errors=True)
            row = _run(subject, model, calibration, out)
            if number == 0:
                row |= _evaluate(model, held_out, out)
            rows.append({"title": subject.title, "program": subject.program, **row})
            say(f"{subject.title}: {row['work_s']:.1f} s")
    nearest = _evaluate(model, held_out, model)
    rows.append({"title": "round to nearest", "program": "rtn", **nearest})
    return {
        "machine": describe_machine().as_json(),
        "calibration_tokens": arguments.samples * arguments.tokens,
        "autoawq_dtype": arguments.autoawq_dtype,
        "runs": rows,
    }


def write_tokens(arguments: argparse.Namespace, model: Path, root: Path) -> tuple[Path, Path]:
    """Store calibration tokens and held-out windows.

    Raises:
        BenchmarkError: The text is too short.
    """
    from tokenizers import Tokenizer

    files = [arguments.text] if arguments.text else sorted((ROOT / "docs").glob("*.md"))
    text = "\n\n".join(file.read_text() for file in files)
    ids = np.array(Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids, np.int64)
    length = arguments.tokens
    wanted, held = arguments.samples * length, 4 * length
    if len(ids) < wanted + held:
        raise BenchmarkError(f"the text has {len(ids)} tokens; {wanted + held} are needed")
    paths = root / "calibration.npy", root / "held_out.npy"
    np.save(paths[0], ids[:wanted].reshape(-1, length))
    np.save(paths[1], ids[-held:].reshape(-1, length))
    return paths


def _run(subject: Subject, model: Path, tokens: Path, out: Path) -> dict[str, object]:
    log = out.with_name(f"{out.name}.log")
    extra = {"PYTHONPATH": str(ROOT)} if subject.program == "forge" else {"PYTHONPATH": ""}
    cost = run_measured(
        (subject.python, _PROGRAM, subject.program, model, tokens, out, *subject.options),
        folder=ROOT, log=log, environment=child_environment(**extra),
    )  # fmt: skip
    return {**cost.as_json(), **json.loads(log.read_text().splitlines()[-1])}


def _evaluate(model: Path, held_out: Path, out: Path) -> dict[str, object]:
    log = held_out.with_suffix(".log")
    run_measured(
        (sys.executable, _PROGRAM, "evaluate", model, held_out, out),
        folder=ROOT, log=log, environment=child_environment(PYTHONPATH=str(ROOT)),
    )  # fmt: skip
    found: dict[str, object] = json.loads(log.read_text().splitlines()[-1])
    return {key: found[key] for key in (
        "mean", "same_top_share", "perplexity_variant", "perplexity_reference", "num_quantized",
    )}  # fmt: skip


def report(record: Record) -> str:
    """Return the table."""
    rows = rows_of(record, "runs")
    machine = Machine.from_json(record["machine"])
    best: dict[str, dict[str, float]] = {}
    for row in rows:
        figures = {key: float(str(value)) for key, value in row.items() if _is_number(value)}
        kept = best.setdefault(str(row["title"]), figures)
        kept["work_s"] = min(kept.get("work_s", 0.0), figures.get("work_s", 0.0))
    ours = best["forge, sketch"]
    cells = []
    for title, row in best.items():
        if "work_s" not in row or title == "round to nearest":
            cells.append([title, "", "", "", *_quality(row)])
            continue
        memory = row["peak_anonymous_bytes"]
        times, share = row["work_s"] / ours["work_s"], memory / ours["peak_anonymous_bytes"]
        floor = {"AutoAWQ 0.2.9": AUTOAWQ_FLOOR, "AutoRound 0.16.1, AWQ": AUTOROUND_FLOOR}.get(
            title
        )
        slower = mark(f"{times:.1f}×", floor is None or times >= floor)
        wide = f"{memory / 1e6:.0f} ({share:.1f}×)"
        if title == "AutoAWQ 0.2.9":
            wide = mark(wide, share >= MEMORY_FLOOR)
        cells.append([title, f"{row['work_s']:.1f}", slower, wide, *_quality(row)])
    header = [
        "",
        "time, s",
        "against forge",
        "peak memory, MB",
        "KL, nats",
        "same top",
        "perplexity",
    ]
    reference = ours["perplexity_reference"]
    return "\n".join(
        [
            f"{record['calibration_tokens']} calibration tokens, 4 bits, groups of 64; the "
            f"source's perplexity is {reference:.2f}. AutoAWQ computes in "
            f"{record.get('autoawq_dtype', 'float16')}. {machine.sentences()}",
            "",
            render_table(header, cells),
        ]
    )


def _quality(row: dict[str, float]) -> list[str]:
    return [
        f"{row['mean']:.4f}", f"{row['same_top_share']:.3f}", f"{row['perplexity_variant']:.2f}",
    ]  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


if __name__ == "__main__":
    raise SystemExit(main())

"""Race forge.runtime against bfloat16 transformers: tokens a second, prompts, memory bandwidth.

    python -m benchmarks.decode [--formats awq-gemm,bnb-nf4,bnb-int8] [--rounds 3] [--threads 2]

The model is a Llama of a billion parameters, whose weights no cache holds, with random weights:
speed does not depend on them. ``forge quantize --method rtn`` (or ``bnb``) makes the variants.
Each run is a process of its own, and a round runs transformers and every variant one after the
other, so that noise which lasts longer than a round cancels in the ratios.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks.command import Record, chosen, rows_of, run_benchmark, say
from benchmarks.machine import Machine, describe_machine, usable_cores
from benchmarks.models import SMALL, ModelShape, write_family
from benchmarks.process import BenchmarkError, child_environment
from benchmarks.tables import Spread, mark, ratios, render_table

BILLION: Final = ModelShape(2048, 16, 8192, 32000, 32, 8)
"""1.1 billion parameters: the widths of Llama-3.2-1B with a smaller vocabulary."""
DECODE_FLOOR: Final = 2.0
PREFILL_FLOOR: Final = 0.7
BASELINE: Final = "transformers bf16"
FORMATS: Final = {
    "awq-gemm": ("--method", "rtn", "--version", "gemm"),
    "bnb-nf4": ("--method", "bnb", "--type", "nf4"),
    "bnb-int8": ("--method", "bnb", "--type", "int8"),
}
"""Options of ``forge quantize`` by format."""


@dataclass(frozen=True, slots=True)
class Run:
    """One process.

    Attributes:
        subject: ``transformers bf16`` or a format.
        load_s: Until the model is loaded; of the first run, kernels are compiled later.
        token_s: Median seconds of a token.
        prompt_s: Median seconds of a prompt.
        prompt_tokens: Its length.
        bytes_per_token: Weights that a token reads.
        bandwidth: Bytes a second that the machine reads, measured in the same process.
    """

    subject: str
    load_s: float
    token_s: float
    prompt_s: float
    prompt_tokens: int
    bytes_per_token: int
    bandwidth: float


def run_program(subject: str, folder: Path, options: Sequence[str]) -> Run:
    """Measure one subject in a fresh process.

    Raises:
        BenchmarkError: It failed.
    """
    program = "transformers" if subject == BASELINE else "forge"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.decode_program", program, folder, *options],
        env=child_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchmarkError(f"{subject} failed:\n{done.stderr[-4000:]}")
    return Run(subject, **json.loads(done.stdout.splitlines()[-1]))


def write_variant(dense: Path, name: str, group_size: int) -> Path:
    """Quantize the model into a format, or reuse what an earlier run made.

    Raises:
        BenchmarkError: ``forge quantize`` failed.
    """
    words = list(FORMATS[name])
    if name == "awq-gemm":
        words += ["--group-size", str(group_size)]
    out = dense.parent / f"{name}-{group_size}"
    if not (out / "config.json").is_file():
        say(f"quantizing to {name} ...")
        command = [
            sys.executable,
            "-m",
            "forge",
            "quantize",
            str(dense),
            *words,
            "--quiet",
            "--verify",
            "off",
        ]
        done = subprocess.run(
            [*command, "--out", str(out)],
            env=child_environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BenchmarkError(f"'{' '.join(command)}' failed:\n{done.stderr[-4000:]}")
    return out


def measure(arguments: argparse.Namespace) -> Record:
    """Run the race and return every measurement as plain JSON values."""
    names = chosen(arguments.formats, FORMATS)
    machine = describe_machine()
    say(machine.sentences())
    shape = SMALL if arguments.small else BILLION
    root = arguments.work / f"decode-{shape.hidden}"
    root.mkdir(parents=True, exist_ok=True)
    dense = write_family(root, shape, num_tunes=0).base
    subjects = {BASELINE: dense}
    subjects |= {name: write_variant(dense, name, arguments.group_size) for name in names}
    options = ("--threads", str(arguments.threads), "--prompt-tokens", str(arguments.prompt))
    runs = []
    for number in range(1, arguments.rounds + 1):
        for subject, folder in subjects.items():
            run = run_program(subject, folder, options)
            runs.append(asdict(run))
            say(
                f"round {number}, {subject}: {1 / run.token_s:.1f} tokens/s, "
                f"prompt {run.prompt_tokens / run.prompt_s:.0f} tokens/s"
            )
    return {
        "machine": machine.as_json(),
        "parameters": shape.num_parameters,
        "threads": arguments.threads,
        "group_size": arguments.group_size,
        "runs": runs,
    }


def report(record: Record) -> str:
    """Return the machine and the table as Markdown."""
    runs = [Run(**row) for row in rows_of(record, "runs")]  # type: ignore[arg-type]
    by_subject: dict[str, list[Run]] = {}
    for run in runs:
        by_subject.setdefault(run.subject, []).append(run)
    base = by_subject[BASELINE]
    lines = []
    for subject, own in by_subject.items():
        decode = ratios([run.token_s for run in base], [run.token_s for run in own])
        prefill = ratios([run.prompt_s for run in base], [run.prompt_s for run in own])
        rate = Spread.of([run.bytes_per_token / run.token_s / 1e9 for run in own])
        share = Spread.of([run.bytes_per_token / run.token_s / run.bandwidth for run in own])
        prompt = Spread.of([run.prompt_tokens / run.prompt_s for run in own])
        lines.append([
            subject,
            f"{Spread.of([1 / run.token_s for run in own])}",
            mark(f"{decode.median:.2f}", subject == BASELINE or decode.median >= DECODE_FLOOR),
            f"{own[0].bytes_per_token / 1e6:.0f}", f"{rate.median:.1f}", f"{share.median:.0%}",
            f"{prompt.median:.0f}",
            mark(f"{prefill.median:.2f}", subject == BASELINE or prefill.median >= PREFILL_FLOOR),
            f"{Spread.of([run.load_s for run in own]).median:.1f}",
        ])  # fmt: skip
    header = [
        "subject", "decode tokens/s", f"ratio (≥ {DECODE_FLOOR:g})", "MB a token", "GB/s",
        "of bandwidth", "prompt tokens/s", f"ratio (≥ {PREFILL_FLOOR:g})", "load s",
    ]  # fmt: skip
    best = max(run.bandwidth for run in runs) / 1e9
    text = (
        f"{int(str(record['parameters'])) / 1e9:.2f} G parameters, {record['threads']} threads, "
        f"groups of {record['group_size']}, batch 1, prompts of {runs[0].prompt_tokens} tokens; "
        f"medians of {len(base)} rounds. The machine reads {best:.1f} GB/s at best; the share is "
        "of what each process measured itself."
    )
    machine = Machine.from_json(record["machine"]).sentences()
    return "\n\n".join([machine, text, render_table(header, lines)])


def main() -> int:
    """Race forge.runtime against bfloat16 transformers, and print tokens a second."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=main.__doc__)
    parser.add_argument("--formats", default=",".join(FORMATS), help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[3]")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="[all cores]")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt [256]")
    parser.add_argument("--group-size", type=int, default=128, help="of awq-gemm [128]")
    return run_benchmark(parser, "decode", measure, report)


if __name__ == "__main__":
    raise SystemExit(main())

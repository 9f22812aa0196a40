"""Turn the measurements of ``merge_speed`` into tables, beside the floors that they must reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.command import Record, rows_of
from benchmarks.machine import Machine
from benchmarks.process import Measurement
from benchmarks.programs import CONTESTS
from benchmarks.tables import Spread, mark, ratios, render_table

COPY_FLOOR: Final = 3.0
"""Most that a merge may take after start-up, in times of copying its bytes."""
MEMORY_FLOOR_MB: Final = 400
_MEANINGFUL_MILLIONS: Final = 100
FIRST_RUN_FLOOR_S: Final = 3.0
"""Most that the very first run of a method may take longer."""


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run; ``subject`` is mergekit, forge, copy, start-up or first-run."""

    subject: str
    method: str
    round: int
    cost: Measurement

    def as_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        names: dict[str, object] = {"subject": self.subject, "method": self.method}
        return names | {"round": self.round} | self.cost.as_json()


def _run(row: Mapping[str, object]) -> Run:
    fields = dict(row)
    subject, method = str(fields.pop("subject")), str(fields.pop("method"))
    number = int(str(fields.pop("round")))
    return Run(subject, method, number, Measurement(**fields))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class _Figures:
    """All runs of one method, by subject and in the order of rounds."""

    method: str
    runs: Sequence[Run]

    def of(self, subject: str) -> list[Measurement]:
        return [run.cost for run in self.runs if run.subject == subject]

    def walls(self, subject: str) -> list[float]:
        return [cost.wall_s for cost in self.of(subject)]

    def cpus(self, subject: str) -> list[float]:
        return [cost.cpu_s for cost in self.of(subject)]

    def peak_mb(self, subject: str) -> float:
        return max(cost.peak_anonymous_bytes or 0 for cost in self.of(subject)) / 1e6


def report(record: Record) -> str:
    """Return the machine, the tables and what they mean, as Markdown.

    Args:
        record: What ``merge_speed.measure`` returned.
    """
    runs = [_run(row) for row in rows_of(record, "runs")]
    methods = list(dict.fromkeys(run.method for run in runs))
    figures = [_Figures(name, [run for run in runs if run.method == name]) for name in methods]
    machine = Machine.from_json(record["machine"])
    millions = int(str(record["parameters"])) / 1e6
    rounds = max(run.round for run in runs)
    parts = [
        machine.sentences(),
        f"{millions:.2f} M parameters in bfloat16, {rounds} rounds. Medians; ratios pair by pair "
        "as median (least–greatest). Other processes used "
        f"{Spread.of([run.cost.background_cores for run in runs]).median:.2f} cores meanwhile.",
    ]
    if millions < _MEANINGFUL_MILLIONS:
        parts.append("Models this small try the benchmark; their ratios mean little.")
    if figures[0].of("mergekit"):
        parts += ["Against mergekit:", _against_mergekit(figures)]
    parts += ["Against a copy of the same bytes, and memory:", _against_copy(figures)]
    return "\n\n".join(parts)


def _against_mergekit(figures: Sequence[_Figures]) -> str:
    rows = []
    for method in figures:
        floor = CONTESTS[method.method].floor
        cells = [method.method]
        for peer, ours in (
            (method.cpus("mergekit"), method.cpus("forge")),
            (method.walls("mergekit"), method.walls("forge")),
        ):
            ratio = ratios(peer, ours)
            cells += [_seconds(peer), _seconds(ours), mark(f"{ratio}", ratio.median >= floor)]
        rows.append([*cells, f"{floor:g}"])
    header = ["method", "mergekit CPU s", "forge CPU s", "ratio"]
    header += ["mergekit wall s", "forge wall s", "ratio", "at least"]
    return render_table(header, rows)


def _against_copy(figures: Sequence[_Figures]) -> str:
    rows = []
    for method in figures:
        forge, start = method.walls("forge"), method.walls("start-up")
        after = [whole - part for whole, part in zip(forge, start, strict=True)]
        ratio = ratios(after, method.walls("copy"))
        compiling = method.walls("first-run")[0] - Spread.of(forge).median
        compiling_cpu = method.cpus("first-run")[0] - Spread.of(method.cpus("forge")).median
        peak = method.peak_mb("forge")
        theirs = f"{method.peak_mb('mergekit'):.0f}" if method.of("mergekit") else "–"
        rows.append([
            method.method, _seconds(forge), _seconds(start), _seconds(method.walls("copy")),
            mark(f"{ratio}", ratio.median <= COPY_FLOOR),
            mark(f"{compiling:.1f} (CPU {compiling_cpu:.1f})", compiling <= FIRST_RUN_FLOOR_S),
            mark(f"{peak:.0f}", peak < MEMORY_FLOOR_MB),
            theirs,
        ])  # fmt: skip
    header = ["method", "forge wall s", "of it start-up s", "copy wall s", "rest / copy (≤ 3)"]
    header += ["first run adds s (≤ 3)", "forge anonymous MB (< 400)", "mergekit anonymous MB"]
    return render_table(header, rows)


def _seconds(values: Sequence[float]) -> str:
    return f"{Spread.of(values).median:.2f}"

"""A comparison's tables as grids of cells, which Markdown and LaTeX set in their own ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forge.core.enumeration import listed
from forge.report import figures
from forge.report.comparison import Comparison, Model, VerdictKind
from forge.report.comparison.differences import Difference
from forge.report.comparison.profiles import Profile
from forge.report.comparison.scores import Average, Score, ScoreTable, Standing
from forge.report.words import MEMORY_NAMES, chance

DAGGER: Final = "†"
STAR: Final = "*"
_VERDICTS: Final[dict[VerdictKind, str]] = {
    "source": "source",
    "better": "better",
    "not worse": "not worse",
    "worse": "worse",
    "undecided": "undecided",
    "unmeasured": "not measured",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell.

    Attributes:
        text: Its text; no markup.
        standing: Whether it is set bold or underlined.
    """

    text: str
    standing: Standing | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        title: Its head.
        numeric: Whether cells are numbers, set to the right.
    """

    title: str
    numeric: bool = True


@dataclass(frozen=True, slots=True)
class Grid:
    """A table.

    Attributes:
        name: Short, for labels and files.
        caption: What it shows.
        columns: Heads.
        rows: Cells; each row is as long as ``columns``.
        foot: Rows below a rule, such as the majority baseline.
        notes: Sentences below.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    foot: tuple[tuple[Cell, ...], ...] = ()
    notes: tuple[str, ...] = ()


def verdict_grid(comparison: Comparison) -> Grid:
    """Lay out the verdicts."""
    margin = figures.percent(comparison.settings.margin)
    return Grid(
        "verdicts",
        f"Verdicts, with a margin of {margin} points",
        (Column("Model", numeric=False), Column("Verdict", numeric=False),
         Column("In words", numeric=False)),
        tuple(
            (
                Cell(verdict.model, "best" if verdict.recommended else None),
                Cell(_VERDICTS[verdict.kind] + (", dominated" if verdict.dominated_by else "")),
                Cell(verdict.headline),
            )
            for verdict in comparison.verdicts
        ),
    )  # fmt: skip


def profile_grid(comparison: Comparison) -> Grid:
    """Lay out table 1."""
    models = {model.label: model for model in comparison.models}
    profiles = comparison.profiles
    rows = tuple(_profile_row(models[label], profile) for label, profile in profiles.rows)
    shown = [profile for _, profile in profiles.rows if profile is not None]
    kinds = sorted({MEMORY_NAMES[profile.peak_is] for profile in shown if profile.peak_is})
    notes = []
    if profiles.setting:
        notes.append(
            f"Measured with {profiles.setting}. Time ratios are against the model's baseline, "
            "measured in turns with it, with a 95 % interval; below 1 is faster, and ≈ means that "
            "the machine's noise covers the difference."
        )
    if kinds:
        notes.append(f"Peak memory is: {listed(kinds).lower()}.")
    notes += [
        f"{profile.model} has no figures: {profile.status}."
        for profile in shown
        if profile.status != "ok"
    ]
    return Grid(
        "profiles",
        "Memory and speed",
        (
            Column("Model", numeric=False), Column("Method", numeric=False), Column("Group size"),
            Column("Bits"), Column("Version", numeric=False), Column("Weights"),
            Column("Peak memory"), Column("Prefill tokens/s"), Column("Decode tokens/s"),
            Column("Prefill time ratio"), Column("Decode time ratio"),
        ),
        rows,
        notes=tuple(notes),
    )  # fmt: skip


def score_grids(comparison: Comparison) -> tuple[Grid, ...]:
    """Lay out table 2, once for each suite and mode."""
    return tuple(
        _score_grid(table, number) for number, table in enumerate(comparison.tables, start=1)
    )


def reading_grids(comparison: Comparison) -> tuple[Grid, ...]:
    """Lay out what stands behind accuracies: option mass, missing answers, calibration."""
    return tuple(
        Grid(
            f"readings-{number}",
            f"Behind the accuracies of {_title(table)}: option mass / missing / "
            "expected calibration error, in percent",
            (Column("Model", numeric=False), *(Column(task.name) for task in table.tasks)),
            tuple(
                (Cell(row.model), *(Cell(_readings(score)) for score in row.scores))
                for row in table.rows
            ),
        )
        for number, table in enumerate(comparison.tables, start=1)
        if table.mode is not None
    )


def difference_grid(comparison: Comparison) -> Grid | None:
    """Lay out the paired differences, or return ``None`` where there are none."""
    if not comparison.pairs:
        return None
    rows = [
        _difference_row(pair.variant, pair.baseline, difference)
        for pair in comparison.pairs
        for difference in (pair.overall, *pair.tasks)
    ]
    sizes = ", ".join(f"{each.name}: {each.num_tests}" for each in comparison.settings.families)
    return Grid(
        "differences",
        "Variants against their baselines on the same items, in points",
        (
            Column("Variant", numeric=False), Column("Baseline", numeric=False),
            Column("Task", numeric=False), Column("Items"), Column("Difference"),
            Column("95 % interval"), Column("Gained"), Column("Lost"), Column("McNemar p"),
            Column("Holm p"), Column("Against the margin", numeric=False),
        ),
        tuple(rows),
        notes=(
            f"Exact McNemar tests, corrected after Holm in families ({sizes}). The margin is "
            f"{figures.percent(comparison.settings.margin)} points.",
        ),
    )  # fmt: skip


def flip_grid(comparison: Comparison) -> Grid | None:
    """Lay out how answers changed, or return ``None`` without pairs."""
    if not comparison.pairs:
        return None
    return Grid(
        "flips",
        "Changed answers, counted by question and set of examples",
        (
            Column("Variant", numeric=False), Column("Baseline", numeric=False),
            Column("Both right"), Column("Right to wrong"), Column("Wrong to right"),
            Column("Wrong to another wrong"), Column("Both wrong alike"), Column("Changed, %"),
        ),
        tuple(
            (
                Cell(pair.variant), Cell(pair.baseline), *(
                    Cell(f"{count:,}")
                    for count in (pair.flips.both_right, pair.flips.lost, pair.flips.gained,
                                  pair.flips.moved, pair.flips.both_wrong)
                ),
                Cell(figures.percent(pair.flips.changed_share)),
            )
            for pair in comparison.pairs
        ),
    )  # fmt: skip


def divergence_grid(comparison: Comparison) -> Grid | None:
    """Lay out the divergences, or return ``None`` where there are none."""
    if not comparison.divergences:
        return None
    return Grid(
        "divergences",
        "KL divergence of next-token predictions from the source's, in nats",
        (
            Column("Variant", numeric=False), Column("Source", numeric=False),
            Column("Text", numeric=False), Column("Positions"), Column("KL mean"),
            Column("KL median"),
            Column("KL p90"), Column("KL p99"), Column("KL max"), Column("Same top token, %"),
            Column("Perplexity ratio"),
        ),
        tuple(
            (
                Cell(each.variant), Cell(each.reference), Cell(each.text),
                Cell(f"{each.num_positions:,}"),
                *(Cell(figures.number(value))
                  for value in (each.mean, each.median, each.p90, each.p99, each.max)),
                Cell(figures.percent(each.same_top_share)), Cell(f"{each.perplexity_ratio:.3f}"),
            )
            for each in comparison.divergences
        ),
    )  # fmt: skip


def grids(comparison: Comparison) -> tuple[Grid, ...]:
    """Return all tables in the order of a report."""
    found = (
        verdict_grid(comparison),
        profile_grid(comparison),
        *score_grids(comparison),
        difference_grid(comparison),
        flip_grid(comparison),
        divergence_grid(comparison),
        *reading_grids(comparison),
    )
    return tuple(grid for grid in found if grid is not None)


def _profile_row(model: Model, profile: Profile | None) -> tuple[Cell, ...]:
    group = "row" if model.group_size == 0 else str(model.group_size or figures.MISSING)
    return (
        Cell(model.label),
        Cell(model.method or figures.MISSING),
        Cell(group),
        Cell(str(model.bits or figures.MISSING)),
        Cell(model.version or model.format or model.dtype or figures.MISSING),
        Cell(figures.size(model.weight_bytes)),
        Cell(figures.size(profile.peak_bytes if profile and profile.status == "ok" else None)),
        Cell(figures.number(profile.prefill_tokens_per_s if profile else None)),
        Cell(figures.number(profile.decode_tokens_per_s if profile else None)),
        Cell(figures.time_ratio(profile.prefill_ratio if profile else None)),
        Cell(figures.time_ratio(profile.decode_ratio if profile else None)),
    )


def _title(table: ScoreTable) -> str:
    chat = ", chat templates" if table.chat else ""
    return f"{table.suite} ({table.mode or 'in words'}{chat})"


def _score_grid(table: ScoreTable, number: int) -> Grid:
    shots = f"{table.shots} {'shot' if table.shots == '1' else 'shots'}"
    sample = f", {table.sample}" if table.sample else ""
    is_accuracy = table.metric == "accuracy"
    foot = []
    if is_accuracy:
        foot.append(
            (
                Cell("always the commonest answer"),
                *(Cell(figures.percent(task.majority)) for task in table.tasks),
                Cell(figures.percent(table.majority_macro)),
                Cell(figures.MISSING),
            )
        )
    return Grid(
        f"scores-{number}",
        f"{'Accuracy in percent' if is_accuracy else table.metric + ', in percent'} on "
        f"{_title(table)}, {shots}{sample}",
        (
            Column("Model", numeric=False), *(Column(task.name) for task in table.tasks),
            Column("Macro average"), Column("Micro average"),
        ),
        tuple(
            (
                Cell(row.model + ("" if row.kind == "local" else f" ({row.kind})")),
                *(_score_cell(score) for score in row.scores),
                _average_cell(row.macro),
                _average_cell(row.micro),
            )
            for row in table.rows
        ),
        foot=tuple(foot),
        notes=(*_legend(table), *table.notes),
    )  # fmt: skip


def _legend(table: ScoreTable) -> list[str]:
    names = listed([f"{task.name} ({task.num_items:,} items)" for task in table.tasks])
    scores = [score for row in table.rows for score in row.scores if score is not None]
    averages = [each for row in table.rows for each in (row.macro, row.micro) if each is not None]
    legend = [f"Best bold, second underlined. Averages are over {names}."]
    if any(score.deviation is not None for score in scores):
        legend.append("± is the population standard deviation over sets of examples.")
    if any(score.dagger for score in scores) or any(each.dagger for each in averages):
        legend.append(f"{DAGGER} differs from its baseline after Holm's correction.")
    if any(not score.same_items for score in scores):
        legend.append(f"In brackets, {STAR}: other items or sets of examples than most; neither "
                      "ranked nor averaged.")  # fmt: skip
    return legend


def _score_cell(score: Score | None) -> Cell:
    if score is None:
        return Cell(figures.MISSING)
    text = _with_deviation(score.value, score.deviation) + (DAGGER if score.dagger else "")
    return Cell(text if score.same_items else f"({text}){STAR}", score.standing)


def _average_cell(average: Average | None) -> Cell:
    if average is None:
        return Cell(figures.MISSING)
    mark = DAGGER if average.dagger else ""
    return Cell(_with_deviation(average.value, average.deviation) + mark, average.standing)


def _with_deviation(value: float, deviation: float | None) -> str:
    text = figures.percent(value)
    return text if deviation is None else f"{text} ± {figures.percent(deviation)}"


def _readings(score: Score | None) -> str:
    if score is None:
        return figures.MISSING
    shares: Sequence[float | None] = (score.option_mass, score.missing, score.calibration_error)
    return " / ".join(figures.percent(share) for share in shares)


def _difference_row(variant: str, baseline: str, found: Difference) -> tuple[Cell, ...]:
    return (
        Cell(variant),
        Cell(baseline),
        Cell(found.task or "all"),
        Cell(f"{found.num_items:,}"),
        Cell(figures.points(found.difference) + (DAGGER if found.significant else "")),
        Cell(figures.points_interval(found.interval)),
        Cell(f"{found.gained:,}"),
        Cell(f"{found.lost:,}"),
        Cell(chance(found.p_value)),
        Cell(chance(found.p_holm)),
        Cell(found.verdict),
    )

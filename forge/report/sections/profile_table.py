"""Table 1: what each model is, and what it costs to run."""

from __future__ import annotations

from forge.report.comparison import Comparison, Model
from forge.report.comparison.profiles import Latency, Profile, TimeRatio
from forge.report.markup import EMPTY, Markup, element, join
from forge.report.sections.parts import (
    ABSENT,
    Cell,
    Column,
    Section,
    bullets,
    fold,
    named,
    paragraph,
    table,
)
from forge.report.words import MEMORY_NAMES, figures, seconds, size_text


def profile_table(comparison: Comparison) -> Section:
    """Lay out table 1, the settings swept, and memory in all its meanings."""
    found = comparison.profiles
    lead = (
        f"Measured with {found.setting}."
        if found.setting
        else "No model was profiled; `forge profile` does. What needs no profile is filled in."
    )
    parts = [paragraph(lead, role="lead"), _main(comparison)]
    parts.append(
        bullets(
            [
                "Ratios are times relative to the baseline's, from medians of rounds that were "
                "measured in turns; below 1 is faster. In brackets, a bootstrap interval over "
                "rounds.",
                "“Noise” stands where the machine's own noise covers the difference, so that "
                "nobody is faster.",
                *_notices(comparison),
            ],
            role="legend",
        )
    )
    if found.sweep:
        parts.append(
            fold(f"All {len(found.sweep)} profiles, with times and percentiles", _sweep(comparison))
        )
        parts.append(fold("Memory, each number by its name", _memory(comparison)))
    return Section("cost", "Table 1: size, memory and speed", join(parts))


def _main(comparison: Comparison) -> Markup:
    profiles = dict(comparison.profiles.rows)
    peaks = dict.fromkeys(
        profile.peak_is for profile in profiles.values() if profile and profile.peak_is
    )
    memory = " or ".join(MEMORY_NAMES.get(name, name).lower() for name in peaks)
    columns = [
        Column("Model", numeric=False, first="ascending"),
        Column("Method", numeric=False, first="ascending"),
        Column("Group size"),
        Column("Bits", first="ascending"),
        Column("Version", numeric=False, first="ascending"),
        Column("Bits / weight", first="ascending"),
        Column("Memory", memory or None, first="ascending"),
        Column("Prefill", "time ratio", first="ascending"),
        Column("Decode", "time ratio", first="ascending"),
        Column("Prefill", "tokens/s"),
        Column("Decode", "tokens/s"),
        Column("First token", "median", first="ascending"),
    ]
    local = [model for model in comparison.models if model.kind == "local"]
    baselines = tuple(dict.fromkeys(p.baseline for p in profiles.values() if p and p.baseline))
    rows = [
        _row(comparison, model, profiles.get(model.label), name_baseline=len(baselines) > 1)
        for model in local
    ]
    chosen = (
        [model.label for model in local].index(comparison.recommendation.model)
        if (comparison.recommendation.model in {model.label for model in local})
        else None
    )
    caption = "Each local model: how it was made, and what it needs."
    if len(baselines) == 1:
        caption += f" Time ratios are against {baselines[0]}."
    return table("cost-table", columns, rows, caption=caption, picked=chosen)


def _row(
    comparison: Comparison, model: Model, profile: Profile | None, *, name_baseline: bool
) -> list[Cell]:
    cells = [
        named(comparison, model.label),
        _text(model.method),
        _whole(model.group_size),
        _whole(model.bits),
        _text(model.version or model.dtype),
        ABSENT
        if model.bits_per_weight is None
        else Cell(f"{model.bits_per_weight:.2f}", model.bits_per_weight),
    ]
    if profile is None:
        return cells + [ABSENT] * 6
    if profile.status != "ok":
        return [*cells, Cell(profile.status, "", role="wrap"), *[ABSENT] * 5]
    return [
        *cells,
        _size(profile.peak_bytes),
        _ratio(profile.prefill_ratio, profile, name_baseline=name_baseline),
        _ratio(profile.decode_ratio, profile, name_baseline=name_baseline),
        _speed(profile.prefill_tokens_per_s),
        _speed(profile.decode_tokens_per_s),
        _time(profile.first_token),
    ]


def _ratio(ratio: TimeRatio | None, profile: Profile, *, name_baseline: bool) -> Cell:
    if ratio is None:
        return Cell("1", 1.0) if profile.baseline is None else ABSENT
    interval = f"[{ratio.interval.low:.2f}, {ratio.interval.high:.2f}]"
    tag = EMPTY
    if ratio.covered:
        tag = element("span", {"class": "tag", "title": ratio.why or ""}, "noise")
    against = EMPTY
    if name_baseline and profile.baseline is not None:
        against = element("small", None, f"of {profile.baseline}")
    content = join((f"{ratio.ratio:.2f}", tag, element("small", None, interval), against))
    return Cell(content, ratio.ratio)


def _sweep(comparison: Comparison) -> Markup:
    columns = [
        Column("Model", numeric=False, first="ascending"),
        Column("Device", numeric=False, first="ascending"),
        Column("Batch", first="ascending"),
        Column("Prompt", "tokens", first="ascending"),
        Column("New", "tokens", first="ascending"),
        Column("Prefill", "tokens/s"),
        Column("Decode", "tokens/s"),
        Column("Prefill", "median · p90 · p99", first="ascending"),
        Column("One step", "median · p90 · p99", first="ascending"),
        Column("First token", "median · p90 · p99", first="ascending"),
        Column("Load", "median", first="ascending"),
        Column("Memory", "peak", first="ascending"),
        Column("Energy", "J / token", first="ascending"),
        Column("Kernel", numeric=False, first="ascending"),
        Column("Measured in", numeric=False, first="ascending"),
    ]
    rows = [_sweep_row(comparison, profile) for profile in comparison.profiles.sweep]
    return table("profiles", columns, rows, caption="Each model in each setting, raw times.")


def _sweep_row(comparison: Comparison, profile: Profile) -> list[Cell]:
    threads = "" if profile.threads is None else f", {profile.threads} threads"
    start = [
        named(comparison, profile.model),
        Cell(f"{profile.device}, {profile.dtype}{threads}", role="label-cell"),
        _whole(profile.batch),
        _whole(profile.prompt_tokens),
        _whole(profile.new_tokens),
    ]
    end = [Cell(profile.backend, role="label-cell"), Cell(f"environment {profile.environment}")]
    if profile.status != "ok":
        return [*start, Cell(profile.status, "", role="wrap"), *[ABSENT] * 7, *end]
    energy = profile.energy_j_per_token
    return [
        *start,
        _speed(profile.prefill_tokens_per_s),
        _speed(profile.decode_tokens_per_s),
        _percentiles(profile.prefill),
        _percentiles(profile.decode),
        _percentiles(profile.first_token),
        _time(profile.load),
        _size(profile.peak_bytes),
        ABSENT if energy is None else Cell(figures(energy), energy),
        *end,
    ]


def _memory(comparison: Comparison) -> Markup:
    shown = [
        profile for _, profile in comparison.profiles.rows if profile and profile.status == "ok"
    ]
    names = list(dict.fromkeys(name for profile in shown for name, _ in profile.memory))
    columns = [Column("Model", numeric=False, first="ascending")]
    columns += [Column(MEMORY_NAMES.get(name, name), first="ascending") for name in names]
    rows = [
        [named(comparison, profile.model), *(_size(dict(profile.memory).get(n)) for n in names)]
        for profile in shown
    ]
    caption = "Decimal units: 1 MB is 1,000,000 bytes. A dash: the device does not say."
    return table("memory", columns, rows, caption=caption)


def _notices(comparison: Comparison) -> list[str]:
    found: dict[str, list[str]] = {}
    for profile in comparison.profiles.sweep:
        for notice in profile.notices:
            models = found.setdefault(notice, [])
            if profile.model not in models:
                models.append(profile.model)
    return [f"{', '.join(models)}: {notice}" for notice, models in found.items()]


def _text(text: str | None) -> Cell:
    return ABSENT if text is None else Cell(text)


def _whole(value: int | None) -> Cell:
    return ABSENT if value is None else Cell(f"{value:,}", float(value))


def _size(num_bytes: int | None) -> Cell:
    return ABSENT if num_bytes is None else Cell(size_text(num_bytes), float(num_bytes))


def _speed(value: float | None) -> Cell:
    return ABSENT if value is None else Cell(figures(value), value)


def _time(latency: Latency | None) -> Cell:
    return ABSENT if latency is None else Cell(seconds(latency.median), latency.median)


def _percentiles(latency: Latency | None) -> Cell:
    if latency is None:
        return ABSENT
    times = " · ".join(seconds(value) for value in (latency.median, latency.p90, latency.p99))
    count = element("small", None, f"{latency.num_samples} samples")
    return Cell(join((times, count)), latency.median)

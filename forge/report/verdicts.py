"""A verdict on each model, in words, from the paired interval of its difference.

    better       the interval lies above zero
    not worse    it lies above the margin
    worse        it lies below zero, and reaches beyond the margin
    undecided    anything else: the items do not suffice, and the verdict says how many would

Reasons say what was measured; what speaks against a release says where the reader should look
before trusting them. Thresholds of the latter are judgement, so they are named here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from forge.core.enumeration import listed
from forge.report import figures
from forge.report.comparison import Model, Pareto, Verdict, VerdictKind
from forge.report.comparison.differences import Difference, Divergence, Pair
from forge.report.comparison.profiles import Profile, TimeRatio
from forge.report.comparison.scores import ScoreRow, ScoreTable
from forge.report.words import chance

MANY_FLIPS: Final = 0.05
"""Share of changed answers that is worth saying, even where gains and losses cancel."""
LARGE_P99: Final = 1.0
"""Nats: one prediction in a hundred is another one altogether."""
LITTLE_MASS: Final = 0.5
"""Option mass below which a model is not answering the question that was put."""
MANY_MISSING: Final = 0.01
"""Share of missing answers that is worth saying."""
_MOST_ITEMS: Final = 10_000_000


def verdict_kind(difference: Difference, *, margin: float) -> VerdictKind:
    """Return what a paired difference says.

    Args:
        difference: Over all items.
        margin: Loss that does not matter, a share.
    """
    if difference.verdict == "superior":
        return "better"
    if difference.verdict == "non-inferior":
        return "not worse"
    # Also an interval from within the margin to beyond it, if a loss of some size is certain.
    if difference.verdict == "inferior" or difference.interval.high < 0:
        return "worse"
    return "undecided"


def items_to_decide(difference: Difference, *, margin: float) -> int | None:
    """Say how many items would decide, if the difference stayed what it is.

    An interval's half width falls with the square root of the number of items; it must become
    smaller than the distance of the difference from the margin.

    Args:
        difference: An undecided one.
        margin: Loss that does not matter, a share.

    Returns:
        Items, rounded up to two digits; ``None`` where the difference lies at the margin.
    """
    distance = difference.difference + margin
    interval = difference.interval
    half = difference.difference - interval.low
    if distance < 0:
        half = interval.high - difference.difference
    if distance == 0:
        return None
    needed = difference.num_items * (half / distance) ** 2
    if needed > _MOST_ITEMS:
        return None
    step: int = 10 ** max(0, math.floor(math.log10(max(needed, 1))) - 1)
    return math.ceil(needed / step) * step


def verdicts(
    models: Sequence[Model],
    *,
    pairs: Sequence[Pair],
    margin: float,
    table: ScoreTable | None,
    profiles: Mapping[str, Profile | None],
    divergences: Sequence[Divergence],
    pareto: Pareto | None,
    recommended: str | None,
) -> tuple[Verdict, ...]:
    """Judge every model.

    Args:
        models: In the order of the report.
        pairs: Variants against baselines.
        margin: Loss that does not matter, a share.
        table: The primary table, or ``None``.
        profiles: Table 1 by label.
        divergences: By variant.
        pareto: Who dominates whom, or ``None``.
        recommended: Label of the model to release, or ``None``.

    Returns:
        One verdict for each.
    """
    by_variant = {pair.variant: pair for pair in pairs}
    dominated = {point.model: point.dominated_by for point in pareto.points} if pareto else {}
    rows = {row.model: row for row in table.rows} if table else {}
    found = []
    for model in models:
        pair = by_variant.get(model.label)
        kind: VerdictKind = "source" if model.baseline is None else "unmeasured"
        needed = None
        if pair is not None:
            kind = verdict_kind(pair.overall, margin=margin)
            if kind == "undecided":
                needed = items_to_decide(pair.overall, margin=margin)
        profile = profiles.get(model.label)
        own = [each for each in divergences if each.variant == model.label]
        row = rows.get(model.label)
        reasons = [
            *_about_accuracy(model, pair, row, needed=needed, kind=kind),
            *_about_cost(profile),
            *_about_divergence(own),
        ]
        against = [
            *_dominations(dominated.get(model.label, ())),
            *_losses(pair),
            *_doubts(row, table),
            *_shifts(model, pair, own),
            *_noise(profile),
            *_licence(model),
        ]
        found.append(
            Verdict(
                model=model.label,
                kind=kind,
                headline=_headline(model, pair, kind, margin=margin),
                reasons=tuple(reasons),
                against=tuple(against),
                dominated_by=dominated.get(model.label, ()),
                recommended=model.label == recommended,
                items_to_decide=needed,
            )
        )
    return tuple(found)


def _headline(model: Model, pair: Pair | None, kind: VerdictKind, *, margin: float) -> str:
    if kind == "source":
        return "The source that others are compared with"
    if pair is None:
        return f"Not measured against {model.baseline}: they share no question"
    overall = pair.overall
    amount = figures.percent(abs(overall.difference))
    allowed = figures.percent(margin)
    interval = f"{figures.points_interval(overall.interval)} points"
    if kind == "better":
        return f"Better than {pair.baseline} by {amount} points ({interval})"
    if kind == "not worse":
        return f"Not worse than {pair.baseline} by more than {allowed} points ({interval})"
    if kind == "undecided":
        return (
            f"Undecided: a loss of more than {allowed} points against {pair.baseline} is neither "
            f"shown nor excluded ({interval})"
        )
    if overall.verdict == "inferior":
        return f"Worse than {pair.baseline} by {amount} points ({interval})"
    return (
        f"Worse than {pair.baseline} by {amount} points ({interval}); whether by more than "
        f"{allowed} is open"
    )


def _about_accuracy(
    model: Model, pair: Pair | None, row: ScoreRow | None, *, needed: int | None, kind: VerdictKind
) -> Iterator[str]:
    if pair is None:
        if row is not None and row.micro is not None:
            yield f"Accuracy {figures.percent(row.micro.value)} % over all items."
        return
    overall = pair.overall
    seeds = f", mean of {overall.num_seeds} sets of examples" if overall.num_seeds > 1 else ""
    yield (
        f"Accuracy {figures.percent(overall.variant)} % against "
        f"{figures.percent(overall.baseline)} % on the same "
        f"{figures.plural(overall.num_items, 'item')}{seeds}: {overall.gained:,} gained, "
        f"{overall.lost:,} lost, McNemar p {chance(overall.p_value)}, after Holm "
        f"{chance(overall.p_holm)}."
    )
    if kind == "undecided":
        yield (
            "The difference lies at the margin, where no number of items decides."
            if needed is None
            else f"About {needed:,} items would decide, if the difference stays what it is."
        )
    if overall.num_clusters < overall.num_items:
        yield f"The items are {overall.num_clusters:,} independent passages or questions."


def _about_cost(profile: Profile | None) -> Iterator[str]:
    if profile is None:
        return
    if profile.status != "ok":
        yield f"No profile: {profile.status}."
        return
    parts = []
    if profile.peak_bytes is not None:
        parts.append(f"peak memory {figures.size(profile.peak_bytes)}")
    if profile.decode_tokens_per_s is not None:
        parts.append(f"decodes {figures.number(profile.decode_tokens_per_s)} tokens/s")
    if parts:
        yield f"{parts[0][0].upper()}{', '.join(parts)[1:]}."
    for what, found in (("Prefill", profile.prefill_ratio), ("Decoding", profile.decode_ratio)):
        if found is not None:
            yield _ratio_sentence(what, found, profile.baseline)


def _ratio_sentence(what: str, found: TimeRatio, baseline: str | None) -> str:
    interval = f"{found.interval.low:.2f} to {found.interval.high:.2f}"
    if found.covered:
        return f"{what} takes about as long as {baseline}'s, as far as the noise allows to say."
    return f"{what} takes {found.ratio:.2f} times as long as {baseline}'s ({interval})."


def _about_divergence(divergences: Sequence[Divergence]) -> Iterator[str]:
    for found in divergences:
        yield (
            f"KL divergence from {found.reference} on {found.text}: mean "
            f"{figures.number(found.mean)} nats, same likeliest token at "
            f"{figures.percent(found.same_top_share)} % of positions, perplexity times "
            f"{found.perplexity_ratio:.3f}."
        )


def _dominations(better: Sequence[str]) -> Iterator[str]:
    if better:
        yield (
            f"Dominated: {listed(better)} "
            f"{'is' if len(better) == 1 else 'are'} at least as good in accuracy, memory and "
            "decoding speed, and better in one."
        )


def _losses(pair: Pair | None) -> Iterator[str]:
    for task in pair.tasks if pair else ():
        if task.significant and task.difference < 0:
            yield (
                f"Loses {figures.percent(-task.difference)} points on {task.task} (after Holm "
                f"p {chance(task.p_holm)})."
            )


def _doubts(row: ScoreRow | None, table: ScoreTable | None) -> Iterator[str]:
    if row is None or table is None:
        return
    found = [
        (task, score) for task, score in zip(table.tasks, row.scores, strict=True) if score
    ]  # fmt: skip
    below = [task.name for task, score in found if task.majority and score.value <= task.majority]
    if below:
        yield (
            f"No better than always giving the commonest answer on {listed(below)}: such "
            "a figure says little of knowledge."
        )
    little = [t.name for t, s in found if s.option_mass is not None and s.option_mass < LITTLE_MASS]
    if little:
        yield (
            f"Gives the options together less than {figures.percent(LITTLE_MASS, 0)} % of the "
            f"probability on {listed(little)}."
        )
    missing = [t.name for t, s in found if s.missing is not None and s.missing > MANY_MISSING]
    if missing:
        yield f"Answers without choosing an option on {listed(missing)}."


def _shifts(model: Model, pair: Pair | None, divergences: Sequence[Divergence]) -> Iterator[str]:
    # A quantization is to leave answers alone; a merge or another model is not.
    if model.format is not None and pair is not None and pair.flips.changed_share > MANY_FLIPS:
        yield f"Changes {figures.percent(pair.flips.changed_share)} % of the answers."
    for found in divergences:
        if found.p99 > LARGE_P99:
            yield (
                f"One prediction in a hundred differs from {found.reference}'s by more than "
                f"{figures.number(found.p99)} nats."
            )


def _noise(profile: Profile | None) -> Iterator[str]:
    if profile is None:
        return
    for what, found in (("prefill", profile.prefill_ratio), ("decoding", profile.decode_ratio)):
        if found is not None and found.covered and not _holds_one(found):
            yield f"Its {what} time is uncertain: {found.why}."


def _holds_one(found: TimeRatio) -> bool:
    return found.interval.low <= 1 <= found.interval.high


def _licence(model: Model) -> Iterator[str]:
    if model.kind == "local" and model.licence is None:
        yield "Its licence is unknown: its card names none."

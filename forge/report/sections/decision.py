"""The top of the page: which model to release and why, then a verdict for each."""

from __future__ import annotations

from collections.abc import Iterable

from forge.report.comparison import Comparison, Verdict
from forge.report.comparison.profiles import Profile
from forge.report.markup import EMPTY, Markup, element, join
from forge.report.sections.parts import (
    Section,
    bullets,
    paragraph,
    pill,
    swatch,
)
from forge.report.words import MEMORY_NAMES, VERDICT_STATUS, figures, percent, points, size_text


def opening(comparison: Comparison) -> Markup:
    """Lay out the title, what was compared, and the recommendation."""
    settings = comparison.settings
    kinds = [model.kind for model in comparison.models]
    facts = [f"{len(kinds)} models"]
    if settings.suite is not None:
        facts.append(f"suite {settings.suite}, {settings.mode} scoring")
    facts += [
        f"margin {percent(settings.margin)} points",
        f"{percent(settings.confidence, 0)} % intervals",
        f"forge {comparison.forge_version}",
        f"from {comparison.results_file}",
    ]
    return join(
        (
            element("p", {"class": "eyebrow"}, "Comparison report"),
            element("h1", None, comparison.title),
            element("ul", {"class": "facts"}, *(element("li", None, fact) for fact in facts)),
            _choice(comparison),
            _notices(comparison),
        )
    )


def verdicts(comparison: Comparison) -> Section:
    """Lay out a verdict for each model."""
    lead = (
        "Each model against the one that it was made from, on the same questions. Not worse: the "
        f"interval lies above a loss of {percent(comparison.settings.margin)} points. Undecided: "
        "the questions do not suffice."
    )
    rows = element(
        "ul",
        {"class": "verdicts"},
        *(_verdict(comparison, verdict) for verdict in comparison.verdicts),
    )
    return Section("verdicts", "Verdicts", join((paragraph(lead, role="lead"), rows)))


def _choice(comparison: Comparison) -> Markup:
    found = comparison.recommendation
    status = pill("good", "release") if found.model is not None else pill("warn", "no choice yet")
    steps = element("ol", None, *(element("li", None, reason) for reason in found.reasons))
    return element(
        "section",
        {
            "class": "choice" if found.model is not None else "choice none",
            "id": "choice",
            "aria-labelledby": "choice-heading",
        },
        status,
        element("h2", {"id": "choice-heading"}, f"{found.headline.rstrip('.')}."),
        _tiles(comparison, found.model),
        steps if found.reasons else EMPTY,
    )


def _tiles(comparison: Comparison, label: str | None) -> Markup:
    if label is None:
        return EMPTY
    tiles = [*_accuracy_tiles(comparison, label), *_profile_tiles(comparison, label)]
    divergence = next((found for found in comparison.divergences if found.variant == label), None)
    if divergence is not None:
        note = f"nats, mean, from {divergence.reference}"
        tiles.append(("KL divergence", f"{divergence.mean:.3g}", note))
    parts = [
        element(
            "div",
            {"class": "tile"},
            element("dt", None, title),
            element("dd", None, figure, element("small", None, note)),
        )
        for title, figure, note in tiles
    ]
    return element("dl", {"class": "tiles"}, *parts) if parts else EMPTY


def _accuracy_tiles(comparison: Comparison, label: str) -> Iterable[tuple[str, str, str]]:
    for table in comparison.tables:
        row = next((row for row in table.rows if row.model == label), None)
        if table.primary and row is not None and row.micro is not None:
            yield "Accuracy", f"{percent(row.micro.value)} %", "micro average over all questions"
    for pair in comparison.pairs:
        if pair.variant == label:
            ends = pair.overall.interval
            interval = f"[{points(ends.low)}, {points(ends.high)}]"
            yield (
                "Difference",
                points(pair.overall.difference),
                f"points {interval} against {pair.baseline}",
            )


def _profile_tiles(comparison: Comparison, label: str) -> Iterable[tuple[str, str, str]]:
    profile = _profile(comparison, label)
    if profile is None:
        return
    if profile.peak_bytes is not None:
        name = MEMORY_NAMES.get(profile.peak_is or "", profile.peak_is or "")
        yield "Memory", size_text(profile.peak_bytes), name.lower()
    if profile.decode_tokens_per_s is not None:
        note = "tokens/s"
        ratio = profile.decode_ratio
        if ratio is not None:
            note = (
                "tokens/s; noise covers the difference"
                if ratio.covered
                else f"tokens/s, {ratio.ratio:.2f} × the time of {profile.baseline}"
            )
        yield "Decoding", f"{profile.decode_tokens_per_s:.1f}", note


def _profile(comparison: Comparison, label: str) -> Profile | None:
    found = dict(comparison.profiles.rows).get(label)
    return None if found is None or found.status != "ok" else found


def _verdict(comparison: Comparison, verdict: Verdict) -> Markup:
    chosen = element("span", {"class": "chosen"}, " · to release") if verdict.recommended else EMPTY
    name = element("span", {"class": "name"}, swatch(comparison, verdict.model), verdict.model)
    body = element(
        "div",
        None,
        element("p", None, name, chosen),
        element("p", None, f"{verdict.headline.rstrip('.')}."),
        _reasons(verdict),
    )
    state = element("div", None, pill(VERDICT_STATUS[verdict.kind], verdict.kind))
    return element("li", None, state, body, _key(comparison, verdict.model))


def _reasons(verdict: Verdict) -> Markup:
    """Fold the reasons, so that all verdicts are seen at once; open those of the choice."""
    counts = [
        f"{len(sentences)} {noun if len(sentences) == 1 else noun + 's'}"
        for sentences, noun in ((verdict.reasons, "reason"), (verdict.against, "objection"))
        if sentences
    ]
    if not counts:
        return EMPTY
    return element(
        "details",
        {"class": "reasons", "open": verdict.recommended},
        element("summary", None, " · ".join(counts)),
        bullets(verdict.reasons),
        bullets(verdict.against, role="against"),
    )


def _key(comparison: Comparison, label: str) -> Markup:
    """Lay out the three figures that one weighs against one another."""
    accuracy = next(
        (
            row.micro or row.macro
            for table in comparison.tables
            if table.primary
            for row in table.rows
            if row.model == label
        ),
        None,
    )
    profile = _profile(comparison, label)
    size = None if profile is None else profile.peak_bytes
    speed = None if profile is None else profile.decode_tokens_per_s
    facts = (
        ("accuracy", "–" if accuracy is None else f"{percent(accuracy.value)} %"),
        ("memory", "–" if size is None else size_text(size)),
        ("decode", "–" if speed is None else f"{figures(speed)} tok/s"),
    )
    pairs = (join((element("dt", None, name), element("dd", None, value))) for name, value in facts)
    return element("dl", {"class": "key"}, *pairs)


def _notices(comparison: Comparison) -> Markup:
    if not comparison.notices:
        return EMPTY
    return element("aside", {"aria-label": "Notices"}, bullets(comparison.notices, role="legend"))

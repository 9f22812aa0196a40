"""Which model to release: the smallest that is not worse than the most accurate.

1. The leader is the local model with the highest accuracy over all items.
2. Candidates are the leader, and every local model that was asked the same questions and that the
   paired interval shows to be not worse than the leader by more than the margin. The leader was
   chosen on the same items, so its figure flatters it, and being close to it is harder than it
   should be, never easier.
3. Of the candidates the one that needs least memory is released; of those within a percent of it,
   the fastest; then the most accurate.

A model that is undecided is no candidate: absence of evidence is not evidence of equality. That
holds for the leader too: a variant that happens to be ahead, and is not shown to be as good as what
it was made from, is luck until more items say otherwise, and then nothing is recommended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from forge.core.enumeration import listed
from forge.report import figures
from forge.report.comparison import Pareto, Recommendation
from forge.report.comparison.differences import Difference
from forge.report.comparison.scores import ScoreTable
from forge.report.lineup import Lineup

Against = Callable[[str, str], Difference | None]
"""The difference of two models, by label, over all items that they share."""

_SAME_MEMORY: Final = 0.01


def recommend(
    lineup: Lineup,
    *,
    table: ScoreTable | None,
    pareto: Pareto | None,
    against: Against,
    margin: float,
) -> Recommendation:
    """Choose the model to release.

    Args:
        lineup: The models.
        table: The primary table, or ``None``.
        pareto: Memory and speed of the local models, or ``None``.
        against: Compares two models.
        margin: Loss that does not matter, a share.

    Returns:
        The choice, and how it was made.
    """
    local = [entry.label for entry in lineup.entries if entry.record.kind == "local"]
    rows = table.rows if table is not None else ()
    scores = {row.model: row.micro.value for row in rows if row.micro and row.model in local}
    if len(scores) < 2:
        return Recommendation(
            None,
            "No recommendation: fewer than two models have answered all questions",
            ("Evaluate the models on the same questions with 'forge eval'.",),
            None,
        )
    leader = max(scores, key=lambda label: scores[label])
    differences = {label: against(label, leader) for label in local if label != leader}
    close = [
        label
        for label, found in differences.items()
        if label in scores and found is not None and found.verdict in ("superior", "non-inferior")
    ]
    source = _source_of(leader, lineup)
    doubted = None if source is None else against(leader, source)
    if source is not None and doubted is not None and doubted.verdict == "inconclusive":
        return _undecided(leader, source, scores, differences, margin=margin)
    candidates = [label for label in local if label == leader or label in close]
    chosen = _smallest(candidates, scores, lineup, pareto)
    return Recommendation(
        model=chosen,
        headline=_headline(chosen, leader, margin=margin),
        reasons=(
            f"{leader} is the most accurate: {figures.percent(scores[leader])} % over all items.",
            _about_candidates(close, leader, margin=margin),
            *_about_others(differences, scores, margin=margin),
            *_about_choice(chosen, candidates, lineup, pareto),
        ),
        leader=leader,
    )


def _source_of(label: str, lineup: Lineup) -> str | None:
    baseline = next(entry.baseline for entry in lineup.entries if entry.label == label)
    return None if baseline is None else lineup.label_of(baseline)


def _undecided(
    leader: str,
    source: str,
    scores: Mapping[str, float],
    differences: Mapping[str, Difference | None],
    *,
    margin: float,
) -> Recommendation:
    return Recommendation(
        model=None,
        headline="No recommendation: the items do not suffice to choose",
        reasons=(
            f"{leader} is ahead with {figures.percent(scores[leader])} % over all items, but is "
            f"not shown to be within {figures.percent(margin)} points of {source}, which it was "
            "made from.",
            *_about_others(differences, scores, margin=margin),
            "Evaluate on more items; the verdicts below say about how many would decide.",
        ),
        leader=leader,
    )


def _headline(chosen: str, leader: str, *, margin: float) -> str:
    if chosen == leader:
        return f"Release {chosen}: the most accurate, and nothing smaller is shown to be as good"
    return (
        f"Release {chosen}: the smallest that is not worse than {leader} by more than "
        f"{figures.percent(margin)} points"
    )


def _about_candidates(close: Sequence[str], leader: str, *, margin: float) -> str:
    allowed = figures.percent(margin)
    if not close:
        return f"No other model is shown to be within {allowed} points of it."
    return f"Shown to be within {allowed} points of it: {listed(close)}."


def _about_others(
    differences: Mapping[str, Difference | None], scores: Mapping[str, float], *, margin: float
) -> list[str]:
    worse = [
        f"{label} ({figures.points(found.difference)})"
        for label, found in differences.items()
        if label in scores and found is not None and found.verdict == "inferior"
    ]
    undecided = [
        label
        for label, found in differences.items()
        if label in scores and found is not None and found.verdict == "inconclusive"
    ]
    partial = [label for label in differences if label not in scores]
    sentences = []
    if worse:
        allowed = figures.percent(margin)
        sentences.append(f"Worse than it by more than {allowed} points: {', '.join(worse)}.")
    if undecided:
        sentences.append(f"Undecided against it: {', '.join(undecided)}.")
    if partial:
        sentences.append(f"Not asked all questions: {', '.join(partial)}.")
    return sentences


def _about_choice(
    chosen: str, candidates: Sequence[str], lineup: Lineup, pareto: Pareto | None
) -> list[str]:
    if len(candidates) < 2:
        return []
    memory, what = _memory(candidates, lineup, pareto)
    known = memory.get(chosen)
    if known is None:
        return ["Memory is not known, so the most accurate candidate is taken."]
    return [f"Of these, {chosen} needs the least memory: {figures.size(known)} ({what})."]


def _smallest(
    candidates: Sequence[str],
    scores: Mapping[str, float],
    lineup: Lineup,
    pareto: Pareto | None,
) -> str:
    memory, _ = _memory(candidates, lineup, pareto)
    known = [label for label in candidates if memory.get(label) is not None]
    speeds = {point.model: point.decode_tokens_per_s for point in pareto.points} if pareto else {}
    if not known:
        return max(candidates, key=lambda label: scores.get(label, 0.0))
    least = min(memory[label] for label in known)
    smallest = [label for label in known if memory[label] <= least * (1 + _SAME_MEMORY)]
    return max(smallest, key=lambda label: (speeds.get(label) or 0.0, scores.get(label, 0.0)))


def _memory(
    candidates: Sequence[str], lineup: Lineup, pareto: Pareto | None
) -> tuple[dict[str, int], str]:
    """Return the same measure of memory for all candidates, and its name."""
    points = {point.model: point.memory_bytes for point in pareto.points} if pareto else {}
    if pareto is not None and all(label in points for label in candidates):
        return points, pareto.memory_is.replace("_", " ")
    sizes = {
        entry.label: entry.record.weight_bytes
        for entry in lineup.entries
        if entry.record.weight_bytes is not None
    }
    return sizes, "weight files"

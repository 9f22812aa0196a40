"""Accuracy against memory, with decoding speed: who is at least as good in all and better in one.

Memory within a percent counts as equal, and so do speeds whose difference noise covers. Speeds that
were not measured in turns are not compared, so nobody is dominated by a figure of another day.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from forge.report.comparison import Pareto, ParetoPoint
from forge.report.comparison.profiles import Profile, ProfileTable
from forge.report.comparison.scores import ScoreTable
from forge.report.lineup import Lineup

Slower = Callable[[str, str], int | None]
"""Whether the first decodes slower (1) or faster (-1) than the second, or alike (0)."""

_SAME_MEMORY: Final = 0.01


@dataclass(frozen=True, slots=True)
class _Place:
    label: str
    accuracy: float
    memory: int
    speed: float | None


def pareto(
    lineup: Lineup, table: ScoreTable | None, profiles: ProfileTable, slower: Slower
) -> Pareto | None:
    """Place the local models.

    Args:
        lineup: The models.
        table: The primary table of accuracies, or ``None``.
        profiles: Table 1.
        slower: Compares two models' decoding, by label.

    Returns:
        The points; ``None`` with fewer than two.
    """
    local = [entry for entry in lineup.entries if entry.record.kind == "local"]
    accuracies = {row.model: row.micro.value for row in table.rows if row.micro} if table else {}
    scored = [entry for entry in local if entry.label in accuracies]
    rows = dict(profiles.rows)
    memory_is, memory = _memory(
        {entry.label: entry.record.weight_bytes for entry in scored},
        {entry.label: rows.get(entry.label) for entry in scored},
    )
    places = []
    for entry in scored:
        known, profile = memory.get(entry.label), rows.get(entry.label)
        if known is not None:
            speed = None if profile is None else profile.decode_tokens_per_s
            places.append(_Place(entry.label, accuracies[entry.label], known, speed))
    if len(places) < 2:
        return None
    points = tuple(_point(place, places, slower) for place in places)
    placed = {point.model for point in points}
    return Pareto(
        memory_is=memory_is,
        points=points,
        missing=tuple(entry.label for entry in local if entry.label not in placed),
    )


def _memory(
    weights: Mapping[str, int | None], profiles: Mapping[str, Profile | None]
) -> tuple[str, Mapping[str, int | None]]:
    """Return the peak of all models where it is the same quantity, else the weights' size."""
    found = {label: profile for label, profile in profiles.items() if profile is not None}
    kinds = {profile.peak_is for profile in found.values()}
    if len(found) == len(weights) and len(kinds) == 1 and None not in kinds:
        (kind,) = kinds
        return str(kind), {label: profile.peak_bytes for label, profile in found.items()}
    return "weight_bytes", weights


def _point(place: _Place, places: Sequence[_Place], slower: Slower) -> ParetoPoint:
    better = tuple(other.label for other in places if _dominates(other, place, slower))
    return ParetoPoint(
        model=place.label,
        accuracy=place.accuracy,
        memory_bytes=place.memory,
        decode_tokens_per_s=place.speed,
        on_front=not better,
        dominated_by=better,
    )


def _dominates(one: _Place, other: _Place, slower: Slower) -> bool:
    """Return whether one is at least as good as another in everything, and better in something."""
    if one.label == other.label or one.accuracy < other.accuracy:
        return False
    smaller = one.memory < other.memory * (1 - _SAME_MEMORY)
    if not smaller and one.memory > other.memory * (1 + _SAME_MEMORY):
        return False
    speed = 0 if one.speed is None and other.speed is None else slower(one.label, other.label)
    if speed is None or speed > 0:
        return False
    return one.accuracy > other.accuracy or smaller or speed < 0

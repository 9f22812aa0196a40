"""Each variant against its baseline, item by item.

An item that several sets of examples were put before counts once, with its mean over the sets that
both models have, so that three seeds do not pretend to be three times the items. Items that share
a passage, and the same question under several tasks, are one cluster.

Two families are corrected after Holm by themselves: one test for each pair, on all items together,
and one for each pair and task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from forge.report.boards import AnswerReader, Basis
from forge.report.comparison import Family
from forge.report.comparison.differences import Difference, Interval
from forge.statistics.inferiority import non_inferiority
from forge.statistics.multiplicity import holm
from forge.statistics.paired import paired_difference

ALPHA: Final = 0.05
CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class SharedItems:
    """What two models answered both.

    Attributes:
        variant_N: Score of each item: share of the shared seeds in which it is right.
        baseline_N: Likewise.
        clusters: What each item belongs to.
        seeds: Shared seeds.
    """

    variant_N: NDArray[np.float64]
    baseline_N: NDArray[np.float64]
    clusters: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PairDifferences:
    """A variant against its baseline; see ``Pair``."""

    variant: str
    baseline: str
    overall: Difference
    tasks: tuple[Difference, ...]


def shared_items(basis: Basis, *, variant: str, baseline: str, task: str) -> SharedItems | None:
    """Line up the items that two models answered both.

    Args:
        basis: Evaluations and scoring mode.
        variant: Fingerprint.
        baseline: Fingerprint.
        task: Name.

    Returns:
        Their scores, or ``None`` where the two share no seed or no item.
    """
    known = basis.board.seeds(baseline, task)
    seeds = [seed for seed in basis.board.seeds(variant, task) if seed in known]
    scores: dict[str, list[tuple[float, float]]] = {}
    for seed in seeds:
        ours, theirs = _right(basis, variant, task, seed), _right(basis, baseline, task, seed)
        for digest, right in ours.items():
            if digest in theirs:
                scores.setdefault(digest, []).append((right, theirs[digest]))
    if not scores:
        return None
    means_N2 = np.array([np.mean(pairs, axis=0) for pairs in scores.values()], np.float64)
    return SharedItems(
        variant_N=means_N2[:, 0],
        baseline_N=means_N2[:, 1],
        clusters=tuple(_cluster(basis.reader, digest) for digest in scores),
        seeds=tuple(seeds),
    )


def overall_difference(basis: Basis, *, variant: str, baseline: str) -> Difference | None:
    """Compare two models on all items that they share, of all tasks.

    Args:
        basis: Evaluations, scoring mode and margin.
        variant: Fingerprint.
        baseline: Fingerprint.

    Returns:
        The difference, not corrected for others; ``None`` where they share no item.
    """
    parts = _parts(basis, variant, baseline)
    return difference_of(tuple(parts.values()), task=None, margin=basis.margin)


def difference_of(
    parts: Sequence[SharedItems], *, task: str | None, margin: float
) -> Difference | None:
    """Compare two models on the items that they share.

    Args:
        parts: Items of one task, or of several to be taken together.
        task: Name of the task, or ``None`` for several.
        margin: Loss that does not matter, a share.

    Returns:
        The difference, not corrected for others; ``None`` without items.
    """
    if not parts:
        return None
    variant_N = np.concatenate([part.variant_N for part in parts])
    baseline_N = np.concatenate([part.baseline_N for part in parts])
    clusters = [cluster for part in parts for cluster in part.clusters]
    found = paired_difference(variant_N, baseline_N, clusters=clusters, confidence=CONFIDENCE)
    return Difference(
        task=task,
        num_items=found.num_items,
        num_clusters=found.num_clusters,
        num_seeds=len({seed for part in parts for seed in part.seeds}),
        variant=float(variant_N.mean()),
        baseline=float(baseline_N.mean()),
        difference=found.difference,
        interval=Interval(found.low, found.high),
        p_value=found.p_value,
        p_holm=found.p_value,
        significant=False,
        gained=found.gained,
        lost=found.lost,
        verdict=non_inferiority(found, margin=margin),
    )


def pair_differences(
    basis: Basis, baselines: Mapping[str, str | None]
) -> tuple[tuple[PairDifferences, ...], tuple[Family, ...]]:
    """Compare every model with its baseline.

    Args:
        basis: Evaluations, scoring mode and margin.
        baselines: Fingerprint of each model's baseline, in the order of the report.

    Returns:
        The pairs that share items, corrected for one another, and the families of tests.
    """
    found: list[PairDifferences] = []
    for variant, baseline in baselines.items():
        parts = _parts(basis, variant, baseline) if baseline is not None else {}
        overall = difference_of(tuple(parts.values()), task=None, margin=basis.margin)
        if baseline is None or overall is None:
            continue
        tasks = [
            each
            for task, part in parts.items()
            if (each := difference_of((part,), task=task, margin=basis.margin))
        ]
        found.append(PairDifferences(variant, baseline, overall, tuple(tasks)))
    corrected = _corrected([pair.overall for pair in found])
    by_task = iter(_corrected([task for pair in found for task in pair.tasks]))
    families = (
        Family("overall", len(found), ALPHA),
        Family("tasks", sum(len(pair.tasks) for pair in found), ALPHA),
    )
    return (
        tuple(
            replace(pair, overall=overall, tasks=tuple(next(by_task) for _ in pair.tasks))
            for pair, overall in zip(found, corrected, strict=True)
        ),
        families,
    )


def _parts(basis: Basis, variant: str, baseline: str) -> dict[str, SharedItems]:
    return {
        task: part
        for task in basis.board.tasks
        if (part := shared_items(basis, variant=variant, baseline=baseline, task=task))
    }


def _right(basis: Basis, model: str, task: str, seed: int) -> dict[str, float]:
    read = basis.read(model, task, seed)
    return dict(zip(read.items, read.right_N.astype(float).tolist(), strict=True))


def _cluster(reader: AnswerReader, digest: str) -> str:
    item = reader.items[digest]
    if item.cluster is not None:
        return f"{item.task} {item.cluster}"
    # The same question stands under several tasks, as MedQA's with four and with five options;
    # "Which of these is true?" alone does not make two questions the same.
    gold = item.options[item.gold] if isinstance(item.gold, int) else item.gold
    return f"{item.question}\n{gold}"


def _corrected(differences: Sequence[Difference]) -> list[Difference]:
    adjusted = holm([difference.p_value for difference in differences])
    return [
        replace(difference, p_holm=p_holm, significant=p_holm <= ALPHA)
        for difference, p_holm in zip(differences, adjusted, strict=True)
    ]

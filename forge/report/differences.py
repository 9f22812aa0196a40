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

from forge.report.boards import AnswerReader, Board
from forge.report.comparison import Difference, Family, Interval
from forge.results.answers import Mode
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


def shared_items(
    board: Board, reader: AnswerReader, *, variant: str, baseline: str, task: str, mode: Mode
) -> SharedItems | None:
    """Line up the items that two models answered both.

    Args:
        board: Evaluations.
        reader: Reads their answers.
        variant: Fingerprint.
        baseline: Fingerprint.
        task: Name.
        mode: Scoring mode.

    Returns:
        Their scores, or ``None`` where the two share no seed or no item.
    """
    seeds = [s for s in board.seeds(variant, task) if s in board.seeds(baseline, task)]
    scores: dict[str, list[tuple[float, float]]] = {}
    for seed in seeds:
        ours = _right(board, reader, variant, task, seed, mode)
        theirs = _right(board, reader, baseline, task, seed, mode)
        for digest, right in ours.items():
            if digest in theirs:
                scores.setdefault(digest, []).append((right, theirs[digest]))
    if not scores:
        return None
    means_N2 = np.array([np.mean(pairs, axis=0) for pairs in scores.values()], np.float64)
    return SharedItems(
        variant_N=means_N2[:, 0],
        baseline_N=means_N2[:, 1],
        clusters=tuple(_cluster(reader, digest) for digest in scores),
        seeds=tuple(seeds),
    )


def difference_of(
    parts: Sequence[SharedItems], *, task: str | None, margin: float
) -> Difference | None:
    """Compare two models on the items that they share.

    Args:
        parts: Items of one task, or of several to be taken together.
        task: Name of the task, or ``None`` for several.
        margin: Loss that does not matter, a share.

    Returns:
        The difference, not yet corrected for others; ``None`` without items.
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
    board: Board,
    reader: AnswerReader,
    baselines: Mapping[str, str | None],
    *,
    mode: Mode,
    margin: float,
) -> tuple[tuple[PairDifferences, ...], tuple[Family, ...]]:
    """Compare every model with its baseline.

    Args:
        board: Evaluations.
        reader: Reads their answers.
        baselines: Fingerprint of each model's baseline, in the order of the report.
        mode: Scoring mode.
        margin: Loss that does not matter, a share.

    Returns:
        The pairs that share items, corrected for one another, and the families of tests.
    """
    found: list[PairDifferences] = []
    for variant, baseline in baselines.items():
        if baseline is None:
            continue
        parts = {
            task: part
            for task in board.tasks
            if (part := shared_items(
                board, reader, variant=variant, baseline=baseline, task=task, mode=mode
            ))
        }  # fmt: skip
        overall = difference_of(tuple(parts.values()), task=None, margin=margin)
        if overall is None:
            continue
        tasks = [difference_of((part,), task=task, margin=margin) for task, part in parts.items()]
        found.append(
            PairDifferences(
                variant, baseline, overall, tuple(task for task in tasks if task is not None)
            )
        )
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


def _right(
    board: Board, reader: AnswerReader, model: str, task: str, seed: int, mode: Mode
) -> dict[str, float]:
    read = reader.read(board.evaluations[model, task, seed], mode)
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

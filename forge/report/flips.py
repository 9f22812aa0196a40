"""Answers that changed from a baseline to its variant, with the questions behind them.

Equal accuracies hide changed answers: gains and losses cancel in one and not in the other. Every
question of every seed that both answered is counted; those printed are the ones whose right
option lost or gained most probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from forge.report.boards import Basis
from forge.report.comparison.differences import FlippedItem, Flips
from forge.results.answers import Answer, ChoiceAnswer

SHOWN_OF_EACH: Final = 10
_MAX_QUESTION: Final = 1200
"""Characters of a question; an abstract is longer, and its end is what is asked."""
_MAX_OPTION: Final = 300

Kind = Literal["lost", "gained", "moved"]
_KINDS: Final[tuple[Kind, ...]] = ("lost", "gained", "moved")


@dataclass(frozen=True, slots=True)
class _Change:
    task: str
    seed: int
    item: str
    baseline_key: str
    variant_key: str
    moved_probability: float


def flips_of(basis: Basis, *, variant: str, baseline: str) -> Flips:
    """Count and show how answers changed.

    Args:
        basis: Evaluations and scoring mode.
        variant: Fingerprint.
        baseline: Fingerprint.

    Returns:
        The counts, and some items of each kind.
    """
    counts = {"both_right": 0, "both_wrong": 0, "lost": 0, "gained": 0, "moved": 0}
    changes: dict[Kind, list[_Change]] = {kind: [] for kind in _KINDS}
    for task in basis.board.tasks:
        for seed in basis.board.seeds(variant, task):
            if (baseline, task, seed) not in basis.board.evaluations:
                continue
            theirs = basis.read(baseline, task, seed)
            ours = basis.read(variant, task, seed)
            places = {digest: place for place, digest in enumerate(theirs.items)}
            for here, digest in enumerate(ours.items):
                there = places.get(digest)
                if there is None:
                    continue
                now, before = bool(ours.right_N[here]), bool(theirs.right_N[there])
                same = bool(ours.chosen_N[here] == theirs.chosen_N[there])
                kind = _kind(before, now, same)
                counts[kind] += 1
                if kind == "lost" or kind == "gained" or kind == "moved":
                    difference = ours.gold_probability_N[here] - theirs.gold_probability_N[there]
                    changes[kind].append(
                        _Change(
                            task, seed, digest, theirs.keys[there], ours.keys[here],
                            abs(float(difference)),
                        )
                    )  # fmt: skip
    return Flips(**counts, items=_shown(changes, basis), shown_of_each=SHOWN_OF_EACH)


def _kind(
    before: bool, now: bool, same: bool
) -> Literal["both_right", "both_wrong", "lost", "gained", "moved"]:
    if before:
        return "both_right" if now else "lost"
    if now:
        return "gained"
    return "both_wrong" if same else "moved"


def _shown(changes: dict[Kind, list[_Change]], basis: Basis) -> tuple[FlippedItem, ...]:
    chosen = [
        (kind, change)
        for kind in _KINDS
        for change in sorted(
            changes[kind], key=lambda one: (-one.moved_probability, one.task, one.item, one.seed)
        )[:SHOWN_OF_EACH]
    ]
    answers = basis.reader.store.answers(
        key for _, change in chosen for key in (change.baseline_key, change.variant_key)
    )
    return tuple(
        _item(kind, change, basis, answers[change.baseline_key], answers[change.variant_key])
        for kind, change in chosen
    )


def _item(kind: Kind, change: _Change, basis: Basis, before: Answer, now: Answer) -> FlippedItem:
    item = basis.reader.items[change.item]
    assert isinstance(before, ChoiceAnswer)
    assert isinstance(now, ChoiceAnswer)
    assert isinstance(item.gold, int)
    return FlippedItem(
        kind=kind,
        task=change.task,
        item_id=item.item_id,
        seed=change.seed,
        question=_cut_start(item.question),
        options=tuple(_cut_end(option) for option in item.options),
        gold=item.gold,
        baseline_answer=before.chosen(basis.mode),
        variant_answer=now.chosen(basis.mode),
        baseline_probabilities=before.probabilities,
        variant_probabilities=now.probabilities,
    )


def _cut_start(text: str) -> str:
    return text if len(text) <= _MAX_QUESTION else "…" + text[-_MAX_QUESTION:]


def _cut_end(text: str) -> str:
    return text if len(text) <= _MAX_OPTION else text[:_MAX_OPTION] + "…"

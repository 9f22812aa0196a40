"""Answers that changed from a baseline to its variant, with the questions behind them.

Equal accuracies hide changed answers: gains and losses cancel in one and not in the other. Every
question of every seed that both answered is counted; those printed are the ones whose right
option lost or gained most probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from forge.report.boards import AnswerReader, Board
from forge.report.comparison import FlippedItem, Flips
from forge.results.answers import Answer, ChoiceAnswer, Mode

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


def flips_of(
    board: Board, reader: AnswerReader, *, variant: str, baseline: str, mode: Mode
) -> Flips:
    """Count and show how answers changed.

    Args:
        board: Evaluations.
        reader: Reads their answers.
        variant: Fingerprint.
        baseline: Fingerprint.
        mode: Scoring mode.

    Returns:
        The counts, and some items of each kind.
    """
    counts = {"both_right": 0, "both_wrong": 0, "lost": 0, "gained": 0, "moved": 0}
    changes: dict[Kind, list[_Change]] = {kind: [] for kind in _KINDS}
    for task in board.tasks:
        for seed in board.seeds(variant, task):
            if (baseline, task, seed) not in board.evaluations:
                continue
            theirs = reader.read(board.evaluations[baseline, task, seed], mode)
            ours = reader.read(board.evaluations[variant, task, seed], mode)
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
    return Flips(
        **counts, items=_shown(changes, reader, mode=mode), shown_of_each=SHOWN_OF_EACH
    )  # fmt: skip


def _kind(
    before: bool, now: bool, same: bool
) -> Literal["both_right", "both_wrong", "lost", "gained", "moved"]:
    if before:
        return "both_right" if now else "lost"
    if now:
        return "gained"
    return "both_wrong" if same else "moved"


def _shown(
    changes: dict[Kind, list[_Change]], reader: AnswerReader, *, mode: Mode
) -> tuple[FlippedItem, ...]:
    chosen = [
        (kind, change)
        for kind in _KINDS
        for change in sorted(
            changes[kind], key=lambda one: (-one.moved_probability, one.task, one.item, one.seed)
        )[:SHOWN_OF_EACH]
    ]
    answers = reader.store.answers(
        key for _, change in chosen for key in (change.baseline_key, change.variant_key)
    )
    return tuple(
        _item(kind, change, reader, answers[change.baseline_key], answers[change.variant_key], mode)
        for kind, change in chosen
    )


def _item(
    kind: Kind, change: _Change, reader: AnswerReader, before: Answer, now: Answer, mode: Mode
) -> FlippedItem:
    item = reader.items[change.item]
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
        baseline_answer=before.chosen(mode),
        variant_answer=now.chosen(mode),
        baseline_probabilities=before.probabilities,
        variant_probabilities=now.probabilities,
    )


def _cut_start(text: str) -> str:
    return text if len(text) <= _MAX_QUESTION else "…" + text[-_MAX_QUESTION:]


def _cut_end(text: str) -> str:
    return text if len(text) <= _MAX_OPTION else text[:_MAX_OPTION] + "…"

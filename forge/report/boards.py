"""Sort evaluations into boards, on each of which like is compared with like.

A board is one suite, with or without chat templates, answered by choice or in words. On each task
of it one version of data, prompts and scoring counts, the one that most models have; evaluations
of another version are left out, with a notice. Where a model answered a task twice, on a sample and
on the whole say, the evaluation with more items counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from forge.core.catalog import did_you_mean
from forge.core.errors import ResultsError
from forge.report.answered import Answered, answered
from forge.report.lineup import Lineup
from forge.results.answers import Mode
from forge.results.records import EvaluationRecord, ItemRecord
from forge.results.store import ResultsStore

Condition = tuple[str, int, int]
"""Suite digest, shots and scoring version."""


@dataclass(frozen=True, slots=True)
class BoardKey:
    """What all evaluations of a board share.

    Attributes:
        suite: Name.
        kind: ``choice`` or ``text``.
        chat: Whether prompts went through chat templates.
    """

    suite: str
    kind: Literal["choice", "text"]
    chat: bool


@dataclass(frozen=True, slots=True)
class Board:
    """Evaluations that may be compared.

    Attributes:
        key: What they share.
        tasks: Names, sorted.
        evaluations: By fingerprint, task and seed.
        notices: What was left out.
    """

    key: BoardKey
    tasks: tuple[str, ...]
    evaluations: Mapping[tuple[str, str, int], EvaluationRecord]
    notices: tuple[str, ...]

    def seeds(self, model: str, task: str) -> tuple[int, ...]:
        """Return the seeds with which a model answered a task, in order."""
        return tuple(sorted(s for m, t, s in self.evaluations if (m, t) == (model, task)))

    def scored_in(self, mode: Mode) -> Board:
        """Return the evaluations whose answers carry a mode.

        An ensemble's sum of letter probabilities says nothing of other tokens, so its metrics of
        the unconstrained mode are ``None``.
        """
        kept = {
            place: evaluation
            for place, evaluation in self.evaluations.items()
            if evaluation.metrics.get(f"{mode}/accuracy", 0.0) is not None
        }
        asked = {task for _, task, _ in kept}
        return replace(
            self, tasks=tuple(task for task in self.tasks if task in asked), evaluations=kept
        )

    def any_shared(self) -> bool:
        """Return whether two models were asked the same question with the same examples."""
        asked: set[tuple[int, str]] = set()
        for (_, _, seed), evaluation in self.evaluations.items():
            questions = {(seed, digest) for digest, _ in evaluation.items}
            if asked & questions:
                return True
            asked |= questions
        return False

    def models(self) -> frozenset[str]:
        """Return the fingerprints of the models that answered anything."""
        return frozenset(model for model, _, _ in self.evaluations)


@dataclass(slots=True)
class AnswerReader:
    """Reads evaluations as arrays, each once.

    Attributes:
        store: Where answers are.
        items: All questions by digest.
    """

    store: ResultsStore
    items: Mapping[str, ItemRecord]
    _known: dict[tuple[str, Mode], Answered] = field(default_factory=dict)

    def read(self, evaluation: EvaluationRecord, mode: Mode) -> Answered:
        """Return an evaluation's answers, scored in a mode."""
        found = self._known.get((evaluation.key, mode))
        if found is None:
            answers = self.store.answers(key for _, key in evaluation.items)
            for each in ("constrained", "unconstrained"):
                self._known[evaluation.key, each] = answered(
                    evaluation, self.items, answers, mode=each
                )
            found = self._known[evaluation.key, mode]
        return found


@dataclass(frozen=True, slots=True)
class Basis:
    """What verdicts rest on.

    Attributes:
        board: Evaluations by choice.
        reader: Reads their answers.
        mode: Scoring mode.
        margin: Loss of accuracy that does not matter, a share.
    """

    board: Board
    reader: AnswerReader
    mode: Mode
    margin: float

    def read(self, model: str, task: str, seed: int) -> Answered:
        """Return the answers of a model to a task with a seed."""
        return self.reader.read(self.board.evaluations[model, task, seed], self.mode)

    def read_all(self, model: str) -> tuple[Answered, ...]:
        """Return all answers of a model, by task and seed."""
        keys = [key for key in self.board.evaluations if key[0] == model]
        return tuple(self.read(*key) for key in sorted(keys))


def boards(
    evaluations: Sequence[EvaluationRecord], lineup: Lineup, *, suite: str | None = None
) -> tuple[Board, ...]:
    """Sort evaluations into boards.

    Args:
        evaluations: All of the results file.
        lineup: The models of the report; evaluations of others are not looked at.
        suite: Name of the only suite to show.

    Returns:
        The boards; if any is by choice, the one that verdicts rest on first: the one with most
        models, then most answers, then the first name.

    Raises:
        ResultsError: There is no such suite.
    """
    if suite is not None and all(evaluation.suite != suite for evaluation in evaluations):
        known = sorted({evaluation.suite for evaluation in evaluations})
        raise ResultsError(
            f"No model was evaluated on a suite '{suite}'.{did_you_mean(suite, known)} "
            + (f"Known: {', '.join(known)}." if known else "Run 'forge eval' first.")
        )
    shown = {entry.record.fingerprint for entry in lineup.entries}
    groups: dict[BoardKey, list[EvaluationRecord]] = {}
    for evaluation in evaluations:
        if evaluation.model in shown and suite in (None, evaluation.suite) and evaluation.items:
            key = BoardKey(evaluation.suite, evaluation.kind, evaluation.chat)
            groups.setdefault(key, []).append(evaluation)
    found = [_board(key, group) for key, group in groups.items()]

    def rank(board: Board) -> tuple[bool, int, int, str, bool]:
        num_answers = sum(len(evaluation.items) for evaluation in board.evaluations.values())
        key = board.key
        return (
            key.kind != "choice", -len(board.models()), -num_answers, key.suite, key.chat,
        )  # fmt: skip

    return tuple(sorted(found, key=rank))


def _board(key: BoardKey, evaluations: Sequence[EvaluationRecord]) -> Board:
    tasks = tuple(sorted({evaluation.task for evaluation in evaluations}))
    chosen: dict[tuple[str, str, int], EvaluationRecord] = {}
    notices: list[str] = []
    for task in tasks:
        of_task = [evaluation for evaluation in evaluations if evaluation.task == task]
        condition = _commonest(of_task)
        for evaluation in of_task:
            if _condition(evaluation) != condition:
                continue
            place = (evaluation.model, task, evaluation.seed)
            before = chosen.get(place)
            # Of equal ones the later record counts, which a store returns later.
            if before is None or len(evaluation.items) >= len(before.items):
                chosen[place] = evaluation
        others = sum(_condition(evaluation) != condition for evaluation in of_task)
        if others:
            notices.append(
                f"Left out of {key.suite}: {others} evaluations of '{task}' with other data, "
                "prompts, number of examples or scoring than most models have."
            )
    return Board(key, tasks, chosen, tuple(notices))


def _condition(evaluation: EvaluationRecord) -> Condition:
    return evaluation.suite_digest, evaluation.shots, evaluation.scoring_version


def _commonest(evaluations: Sequence[EvaluationRecord]) -> Condition:
    models: dict[Condition, set[str]] = {}
    num_items: dict[Condition, int] = {}
    for evaluation in evaluations:
        condition = _condition(evaluation)
        models.setdefault(condition, set()).add(evaluation.model)
        num_items[condition] = num_items.get(condition, 0) + len(evaluation.items)
    return max(models, key=lambda each: (len(models[each]), num_items[each], each[2], each))

"""What of a suite is run, and who hears how far the run is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from forge.core.catalog import did_you_mean
from forge.core.errors import EvaluationError
from forge.evaluate.prepare import PreparedTask, prepare_task
from forge.evaluate.prompts import Chat
from forge.evaluate.task_data import Availability, check_data
from forge.evaluate.task_spec import Suite, TaskSpec


class Progress(Protocol):
    """Hears how far a run is; its numbers are answers."""

    def stage(self, name: str) -> None:
        """Hear what begins now."""

    def start(self, total: int, done: int) -> None:
        """Hear how many answers there are, and how many are stored."""

    def advance(self, amount: int) -> None:
        """Hear that so many more are done."""

    def status(self, text: str) -> None:
        """Hear what is at work now."""

    def notice(self, text: str) -> None:
        """Hear something that the user should know."""


class Silence:
    """Hears nothing."""

    def stage(self, name: str) -> None:
        """Hear nothing."""

    def start(self, total: int, done: int) -> None:
        """Hear nothing."""

    def advance(self, amount: int) -> None:
        """Hear nothing."""

    def status(self, text: str) -> None:
        """Hear nothing."""

    def notice(self, text: str) -> None:
        """Hear nothing."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a suite is run.

    Attributes:
        suite: The suite.
        tasks: Names of tasks; ``None`` for all.
        seeds: Sets of examples; ``None`` for all.
        quick: Items of each task; ``None`` for all.
        data_dir: Folder with the files that replace the Hub, or ``None``.
        skip_missing: Whether tasks whose file is not in that folder are left out.
    """

    suite: Suite
    tasks: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    quick: int | None = None
    data_dir: Path | None = None
    skip_missing: bool = False

    def chosen_tasks(self) -> tuple[TaskSpec, ...]:
        """Return the tasks, in the suite's order.

        Raises:
            EvaluationError: A name is none of the suite's.
        """
        names = [task.name for task in self.suite.tasks]
        for name in self.tasks or ():
            if name not in names:
                raise EvaluationError(
                    f"The suite '{self.suite.name}' has no task '{name}'."
                    f"{did_you_mean(name, names)} Tasks: {', '.join(names)}."
                )
        return tuple(
            task for task in self.suite.tasks if self.tasks is None or task.name in self.tasks
        )

    def available(self) -> Availability:
        """Return the chosen tasks for which there is data, and what the others lack.

        Raises:
            EvaluationError: A name is none of the suite's; there is no such folder; files are
                missing and may not be.
        """
        chosen = replace(self.suite, tasks=self.chosen_tasks())
        return check_data(chosen, data_dir=self.data_dir, skip_missing=self.skip_missing)

    def prepare(self, chat: Chat | None) -> tuple[PreparedTask, ...]:
        """Return the tasks ready to be asked, each with each set of examples.

        Args:
            chat: A model's chat template, or ``None`` for plain prompts.
        """
        return tuple(
            prepare_task(task, seed=seed, data_dir=self.data_dir, quick=self.quick, chat=chat)
            for task in self.available().tasks
            for seed in self._seeds()
        )

    def _seeds(self) -> tuple[int, ...]:
        if self.seeds is not None:
            return tuple(dict.fromkeys(self.seeds))
        # Where no task shows examples, the sets of them do not differ. Where some do, all tasks
        # have all sets, or there would be no average; what is the same is computed once.
        has_shots = any(task.shots for task in self.chosen_tasks())
        return self.suite.seeds if has_shots else self.suite.seeds[:1]

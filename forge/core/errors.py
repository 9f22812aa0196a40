"""Every error that forge raises on purpose, drawn as one tree.

    ForgeError                   exit code 2 unless stated
    ├── RecipeError              the YAML is wrong; carries every problem found
    ├── CheckpointError          bytes on disk or from the Hub are missing, corrupt or hostile
    ├── IncompatibleError        the models cannot be combined as asked
    ├── NonFiniteError           a NaN or Inf in an input or in a result
    ├── OutputError              the output exists, is locked, is read-only, or the disk is full
    ├── MissingExtraError        an optional package is not installed
    ├── ResultsError             a results file is missing, foreign, damaged or of another version
    ├── EvaluationError          a suite, its data or a model behind an API is not as it should be
    └── VerificationError        exit code 1: a file is not what its manifest says

An error says what is wrong, where, and what to do next. The CLI prints it without
a traceback; ``--debug`` brings the traceback back. This module imports nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


class ForgeError(Exception):
    """Base of all errors caused by input, environment or state rather than by a defect in forge."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding in a recipe.

    Attributes:
        message: What is wrong and what to do, without the location.
        file: Path of the recipe as the user typed it, or ``None`` for a recipe built in memory.
        line: Line counted from 1, or ``None`` when the file has no such line.
        key: Dotted path of the key, such as ``models[1].parameters.density``.
    """

    message: str
    file: str | None = None
    line: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        place = self.file or "<recipe>"
        if self.line is not None:
            place += f":{self.line}"
        return f"{place} {self.key}: {self.message}" if self.key else f"{place} {self.message}"


class RecipeError(ForgeError):
    """A recipe is wrong. ``problems`` holds all findings, in the order of their lines."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class CheckpointError(ForgeError):
    """A checkpoint is missing, truncated, inconsistent or hostile."""


class IncompatibleError(ForgeError):
    """The models cannot be merged as the recipe asks."""


class NonFiniteError(ForgeError):
    """A NaN or an infinity was read or produced."""


class OutputError(ForgeError):
    """The output cannot be written, or would damage something that exists."""


class MissingExtraError(ForgeError):
    """An optional dependency is not installed; the message names the extra."""


class ResultsError(ForgeError):
    """A results file is missing, is no results file, is damaged, or has another schema."""


class EvaluationError(ForgeError):
    """A suite, its data, or a model behind an API is not as it should be."""


class VerificationError(ForgeError):
    """A checkpoint differs from its manifest."""

    exit_code = 1

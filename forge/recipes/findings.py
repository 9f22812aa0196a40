"""Collect every problem of one document, each with its place and in the reader's words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches

from forge.core.errors import Problem, RecipeError
from forge.recipes.document import Document
from forge.recipes.place import KeyPath, Place
from forge.recipes.reference import ModelReference


@dataclass(slots=True)
class Findings:
    """Problems and notices found so far in a document.

    Attributes:
        document: What is read.
        problems: Problems found.
        misspelt: Keys that stand there under a name that is nearly right.
        notices: What the recipe says but the merge does not use.
    """

    document: Document
    problems: list[Problem] = field(default_factory=list)
    misspelt: set[KeyPath] = field(default_factory=set)
    notices: list[str] = field(default_factory=list)

    def add(self, path: KeyPath, message: str, *, at: KeyPath | None = None) -> None:
        """Add a problem.

        Args:
            path: The key that is wrong or missing.
            message: What is wrong and what to do.
            at: The key whose line to name, where it is not that of ``path``.
        """
        line = self.place(path if at is None else at).line
        problem = Place(self.place(path).file, line, path).problem(message)
        if problem not in self.problems:
            self.problems.append(problem)

    def guess(self, path: KeyPath, known: Iterable[str]) -> str:
        """Return `` Did you mean 'x'?`` for the last word of a path, or an empty string.

        The key that was probably meant is from then on not reported as missing.
        """
        word = str(path[-1]).lower()
        nearest = get_close_matches(word, list(known), n=1, cutoff=0.6)
        if not nearest:
            return ""
        self.misspelt.add((*path[:-1], nearest[0]))
        return f" Did you mean '{nearest[0]}'?"

    def missing(self, path: KeyPath, message: str, *, at: KeyPath | None = None) -> None:
        """Add a problem about an absent key, unless it or what should hold it is misspelt."""
        if not any(path[:end] in self.misspelt for end in range(1, len(path) + 1)):
            self.add(path, message, at=at)

    def place(self, path: KeyPath) -> Place:
        """Return the place of a key."""
        return self.document.place(path)

    def reference(self, text: str | None, path: KeyPath) -> ModelReference | None:
        """Read a model reference, or report it and return ``None`` when it is malformed."""
        if text is None:
            return None
        try:
            return ModelReference.parse(text)
        except RecipeError as error:
            self.add(path, error.problems[0].message)
            return None


def shown(value: object) -> str:
    """Write a value as a message quotes it: as YAML would, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "A mapping"
    if isinstance(value, list):
        return "A list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"

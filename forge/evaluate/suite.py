"""Find and load suites: the ones that come with forge, or a YAML file of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from forge.core.catalog import did_you_mean
from forge.core.errors import EvaluationError, RecipeError
from forge.evaluate.suite_reader import read_suite
from forge.evaluate.task_spec import Suite, TaskSpec
from forge.recipes.document import read_document

__all__ = ["SUITES", "Suite", "TaskSpec", "load_suite"]

SUITES: Final = (
    "medical",
    "open-medical-llm",
    "medical-generative",
    "medical-multilingual",
    "truthfulqa-medical",
    "demo",
)
"""The suites that come with forge."""
_SUFFIXES: Final = (".yaml", ".yml")


def load_suite(name_or_path: str) -> Suite:
    """Load a suite.

    Args:
        name_or_path: A name of :data:`SUITES`, or a YAML file; what has a suffix or a folder is a
            file.

    Returns:
        The suite.

    Raises:
        EvaluationError: There is no such suite, or its file is wrong; the message has every
            problem with its line.
    """
    path = _find(name_or_path)
    try:
        return read_suite(read_document(path), name=path.stem, folder=path.parent)
    except RecipeError as error:
        raise EvaluationError(str(error)) from error


def _find(text: str) -> Path:
    if text in SUITES:
        return Path(__file__).parent / "suites" / f"{text}.yaml"
    path = Path(text).expanduser()
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        if not path.is_file():
            raise EvaluationError(
                f"There is no suite file '{text}'. Name a YAML file, or one of the suites of "
                f"forge: {', '.join(SUITES)}."
            )
        return path
    raise EvaluationError(
        f"There is no suite '{text}'.{did_you_mean(text, SUITES)} Known: {', '.join(SUITES)}; or "
        "name a YAML file of your own."
    )

"""The rows that describe merge methods and their parameters, as plain data.

``forge/merge/catalog.py`` fills the table; recipes are validated against it and
``forge methods`` prints it. Nothing here imports anything but ``core``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ParameterValue = float | bool | str
"""A resolved scalar value. Whole numbers arrive as float; ``kind`` says how to read them."""


@dataclass(frozen=True, slots=True)
class ParameterRow:
    """One parameter of a merge method.

    Attributes:
        name: The key in the YAML.
        scope: ``model`` when each model has its own value, ``global`` when the method has one.
            A model parameter may also be written globally; it then holds for every model.
        kind: ``number``, ``integer``, ``boolean`` or ``choice``.
        meaning: One sentence for ``forge methods`` and for error messages.
        default: Value when the recipe is silent; ``None`` when the parameter is required
            (see ``required``) or when absence has a meaning of its own.
        required: Whether the recipe must give it.
        low: Least permitted number, or ``None``.
        high: Greatest permitted number, or ``None``.
        gradient: Whether a list over the layers is permitted.
        choices: Permitted words of a ``choice``.
        advice: What to try instead, for a value out of range.
    """

    name: str
    scope: Literal["model", "global"]
    kind: Literal["number", "integer", "boolean", "choice"]
    meaning: str
    default: ParameterValue | None = None
    required: bool = False
    low: float | None = None
    high: float | None = None
    gradient: bool = True
    choices: tuple[str, ...] = ()
    advice: str = ""


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One merge method.

    Attributes:
        name: The word after ``merge_method:``.
        title: Full name.
        formula: The arithmetic in one line of plain text.
        reference: Paper or source, with its arXiv id where there is one.
        min_models: Fewest models, the base not counted when ``base`` is not ``forbidden``.
        max_models: Most models, or ``None``.
        base: Whether ``base_model`` is ``required``, ``optional`` or ``forbidden``.
        base_is_merged: Whether a base is one model among the others; otherwise it is what task
            vectors are differences to.
        parameters: The parameters, in the order in which they are listed.
        symmetric: Whether the order of the models cannot change the result.
        random: Whether the seed matters.
        statistics: Kind of the statistics of each model that it needs, or an empty string.
        differs: Where forge departs from the paper or from mergekit, and why.
    """

    name: str
    title: str
    formula: str
    reference: str
    min_models: int
    max_models: int | None
    base: Literal["required", "optional", "forbidden"]
    parameters: tuple[ParameterRow, ...]
    symmetric: bool = True
    random: bool = False
    base_is_merged: bool = False
    differs: str = ""
    statistics: str = ""

    def parameter(self, name: str) -> ParameterRow | None:
        """Return the row of one parameter, or ``None``."""
        return next((row for row in self.parameters if row.name == name), None)

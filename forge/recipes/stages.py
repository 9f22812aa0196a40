"""Recipes of several stages: a merge that takes another merge for a model, without writing it.

A stage is written in one of three ways, which mean the same:

- as a document of its own before the one that uses it, with a ``name`` (``---`` between them);
- as a file of its own, named where a model would be: ``model: {recipe: other.yaml}``, from the
  folder of the file that says so; its stage is called like the file;
- under ``stages``, by name, as a resolved recipe is dumped.

A stage's name then stands wherever a model may. Stages are one flat list in the order in which they
are computed, and a recipe may use those before it, so that nothing can run in a circle.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from forge.core.catalog import Catalog
from forge.core.errors import Problem, RecipeError
from forge.recipes.document import Document, read_documents
from forge.recipes.findings import shown
from forge.recipes.merge_reader import read_merge_recipe
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.parameters import MethodRow
from forge.recipes.place import KeyPath
from forge.recipes.reference import ModelReference

MAX_STAGES: Final = 32
MAX_FILES: Final = 8
"""Files that name each other in a row."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_MODEL_KEYS: Final = ("model", "base_model")


def read_staged_recipe(documents: Sequence[Document], methods: Catalog[MethodRow]) -> MergeRecipe:
    """Read a merge recipe with all its stages.

    Args:
        documents: The documents of one file, or values built in memory; the last one is the
            recipe and those before it are stages.
        methods: The merge methods to choose from.

    Returns:
        The recipe; its ``stages`` hold all that it names, in the order in which they are computed.

    Raises:
        RecipeError: Carries every problem of every document.
    """
    reader = _Reader(methods)
    recipe = reader.read(documents, ())
    if recipe is None or reader.problems:
        raise RecipeError(list(dict.fromkeys(reader.problems)))
    unused = sorted(set(reader.stages) - set(reader.used))
    notices = tuple(f"The stage '{name}' is used by nothing, and not computed." for name in unused)
    stages = tuple(reader.stages.items())
    return replace(recipe, stages=stages, notices=(*recipe.notices, *notices))


@dataclass(slots=True)
class _Reader:
    """Reads documents one after the other, each of which may use the stages before it."""

    methods: Catalog[MethodRow]
    stages: dict[str, MergeRecipe] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    used: dict[str, None] = field(default_factory=dict)

    def read(self, documents: Sequence[Document], trail: tuple[str, ...]) -> MergeRecipe | None:
        """Read the documents of one file; return the recipe of the last, ``None`` if it is wrong.

        Args:
            documents: The documents.
            trail: Real paths of the files that led here, for cycles.
        """
        names = [_name_of(document) for document in documents]
        for index, document in enumerate(documents[:-1]):
            name = names[index]
            self._check_later(document, [later for later in names[index:] if later])
            recipe = self._one(document, trail)
            if name is None:
                self._add(
                    document,
                    (),
                    "Only the last document of a recipe may be without a name: it is the result, "
                    "and the ones before it are stages. Add 'name: ...' here.",
                )
            elif recipe is not None:
                self._register(name, recipe, document, ("name",))
        return self._one(documents[-1], trail)

    def _one(self, document: Document, trail: tuple[str, ...]) -> MergeRecipe | None:
        value = document.value
        if isinstance(value, dict):
            if "stages" in value:
                self._listed(document, value["stages"], trail)
                value = {key: item for key, item in value.items() if key != "stages"}
            named = self._with_names(value, (), document, trail)
            document = replace(document, value=named)
        try:
            recipe = read_merge_recipe(document, self.methods)
        except RecipeError as error:
            self.problems += error.problems
            return None
        wanted = [
            *recipe.references(),
            *(recipe.tokenizer.references() if recipe.tokenizer else ()),
        ]
        for model in wanted:
            if model.path not in self.stages:
                continue
            self.used[model.path] = None
            if model != ModelReference(model.path):
                self._add(
                    document,
                    (),
                    f"'{model}' puts a revision or an adapter on the stage '{model.path}'. A stage "
                    "has no revisions; merge the adapter into one of the stage's own models.",
                )
        return recipe

    def _listed(self, document: Document, value: object, trail: tuple[str, ...]) -> None:
        """Read what stands under ``stages``."""
        if not isinstance(value, dict):
            self._add(
                document, ("stages",), f"{shown(value)} must be a mapping from names to recipes."
            )
            return
        names = list(value)
        for index, name in enumerate(names):
            part = _part(document, ("stages", name))
            if isinstance(part.value, dict) and "stages" in part.value:
                self._add(
                    document,
                    ("stages", name, "stages"),
                    "Stages do not nest. List all of them in the outermost 'stages', each before "
                    "the one that uses it.",
                )
                continue
            self._check_later(part, names[index:])
            recipe = self._one(part, trail)
            if recipe is not None:
                self._register(name, recipe, document, ("stages", name))

    def _with_names(
        self, value: object, path: KeyPath, document: Document, trail: tuple[str, ...]
    ) -> object:
        """Return a value in which every ``{recipe: file}`` is the name of its stage."""
        if isinstance(value, list):
            return [
                self._with_names(item, (*path, index), document, trail)
                for index, item in enumerate(value)
            ]
        if not isinstance(value, dict):
            return value
        return {
            key: self._file(item, (*path, key), document, trail)
            if key in _MODEL_KEYS and isinstance(item, dict) and "recipe" in item
            else self._with_names(item, (*path, key), document, trail)
            for key, item in value.items()
        }

    def _file(
        self, value: Mapping[str, object], path: KeyPath, document: Document, trail: tuple[str, ...]
    ) -> str:
        """Read the file of a stage, and return the stage's name."""
        written = value["recipe"]
        if not isinstance(written, str) or not written or set(value) != {"recipe"}:
            self._add(document, path, "A stage is written {recipe: file.yaml}, and nothing else.")
            return "stage"
        if any(ord(character) < 32 for character in written):
            self._add(document, path, "The path of a recipe holds a control character.")
            return "stage"
        file = Path(written)
        if document.path is not None:
            file = document.path.parent / file
        here = trail or ((os.path.realpath(document.path),) if document.path is not None else ())
        real = os.path.realpath(file)
        name = file.stem
        if real in here:
            chain = " → ".join(Path(step).name for step in (*here[here.index(real) :], real))
            self._add(document, path, f"The recipes name each other in a circle: {chain}.")
            return name
        if len(here) >= MAX_FILES:
            self._add(document, path, f"More than {MAX_FILES} recipes name each other in a row.")
            return name
        try:
            documents = read_documents(file)
        except RecipeError as error:
            self.problems += error.problems
            return name
        except OSError as error:
            self._add(document, path, f"The recipe cannot be read: {error.strerror}.")
            return name
        recipe = self.read(documents, (*here, real))
        if recipe is None:
            return name
        self._register(name, recipe, document, path)
        return name

    def _register(self, name: str, recipe: MergeRecipe, document: Document, path: KeyPath) -> None:
        if not _NAME.fullmatch(name):
            self._add(
                document,
                path,
                f"{name[:60]!r} cannot name a stage. Use letters, digits, '_', '.' and '-'.",
            )
        elif name in self.stages:
            if self.stages[name] != recipe:
                self._add(document, path, f"Two stages are called '{name}'. Give one another name.")
        elif len(self.stages) >= MAX_STAGES:
            self._add(document, path, f"The recipe has more than {MAX_STAGES} stages.")
        else:
            self.stages[name] = recipe

    def _check_later(self, document: Document, later: Sequence[str]) -> None:
        """Report a stage that uses itself or one behind it."""
        for path, text in _models(document.value, ()):
            if text in later and text not in self.stages:
                self._add(
                    document,
                    path,
                    f"'{text}' is this stage itself, or stands behind it. A stage can use those "
                    "before it.",
                )

    def _add(self, document: Document, path: KeyPath, message: str) -> None:
        self.problems.append(document.place(path).problem(message))


def _name_of(document: Document) -> str | None:
    name = document.value.get("name") if isinstance(document.value, dict) else None
    return name if isinstance(name, str) else None


def _part(document: Document, path: KeyPath) -> Document:
    """Return what stands at a path as a document of its own, its lines included."""
    value = document.value
    for key in path:
        value = value[key]  # type: ignore[index]
    length = len(path)
    lines = {
        place[length:]: line for place, line in document.lines.items() if place[:length] == path
    }
    return Document(value, lines, document.path)


def _models(value: object, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Yield every text that stands for a model, with its place."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _models(item, (*path, index))
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in _MODEL_KEYS and isinstance(item, str):
                yield (*path, key), item
            elif key != "stages":
                yield from _models(item, (*path, key))

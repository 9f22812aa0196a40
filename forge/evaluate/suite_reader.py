"""Turn a document into a suite, reporting everything that is wrong with it at once.

As for recipes, reading goes on after each problem, and only a document without any becomes a suite.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar

from forge.core.catalog import did_you_mean
from forge.core.errors import RecipeError
from forge.evaluate.suite_shapes import (
    ColumnsShape,
    PromptShape,
    SourceShape,
    SuiteShape,
    TaskShape,
)
from forge.evaluate.task_spec import Columns, Kind, PromptForm, Source, Suite, TaskSpec
from forge.recipes.document import Document
from forge.recipes.findings import Findings, shown
from forge.recipes.place import KeyPath
from forge.recipes.shapes import fit
from forge.results.records import digest_of

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_BRACES: Final = re.compile(r"\{(\w+)\}")
_SLOTS: Final = {
    "instruction": ("subject",),
    "question": ("context", "question", "options"),
    "context": ("text",),
    "option": ("letter", "text"),
    "answer": ("letter", "text", "reference", "decision"),
}
"""Words in braces that a piece of a prompt may hold; all other pieces hold none."""
_DEFAULT_SEEDS: Final = (1,)
Value = TypeVar("Value")


def read_suite(document: Document, *, name: str, folder: Path) -> Suite:
    """Read a suite.

    Args:
        document: The YAML.
        name: Its name: that of the file.
        folder: Where the files beside it are.

    Returns:
        The suite with all defaults filled in.

    Raises:
        RecipeError: Carries every problem of the document.
    """
    findings = Findings(document, list(document.problems))
    shape = fit(SuiteShape, document.value, (), findings)
    if not isinstance(document.value, dict):
        raise RecipeError(findings.problems)
    reader = _Reader(findings, name, folder, shape)
    tasks = reader.tasks()
    if findings.problems:
        raise RecipeError(findings.problems)
    seeds = tuple(shape.seeds or _DEFAULT_SEEDS)
    return Suite(
        name=name,
        title=shape.title or name,
        digest=digest_of("suite", name, list(seeds), [task.digest for task in tasks]),
        tasks=tasks,
        seeds=seeds,
        description=shape.description or "",
        reference=shape.reference or "",
    )


class _Reader:
    """Reads the parts of one suite that refer to each other."""

    def __init__(self, findings: Findings, name: str, folder: Path, shape: SuiteShape) -> None:
        self._findings = findings
        self._name = name
        self._folder = folder
        self._shape = shape
        self._examples = self._file(shape.examples, ("examples",))
        self._prompts = {
            key: self._prompt(value, ("prompts", key))
            for key, value in (shape.prompts or {}).items()
        }
        self._columns = {
            key: self._columns_of(value, ("columns", key))
            for key, value in (shape.columns or {}).items()
        }
        seeds = shape.seeds
        if seeds is not None and (not seeds or len(set(seeds)) != len(seeds)):
            findings.add(("seeds",), "List each seed once, and at least one.")

    def tasks(self) -> tuple[TaskSpec, ...]:
        """Return the tasks; with problems, those that could be read."""
        if not self._shape.tasks:
            self._findings.missing(("tasks",), "A suite needs tasks: a list of '- name: ...'.")
        read = [
            self._task(value, ("tasks", index))
            for index, value in enumerate(self._shape.tasks or [])
        ]
        first: dict[str, int] = {}
        for index, task in enumerate(read):
            if task is not None and first.setdefault(task.name, index) != index:
                self._findings.add(("tasks", index, "name"), f"'{task.name}' is there already.")
        return tuple(task for task in read if task is not None)

    def _task(self, value: object, path: KeyPath) -> TaskSpec | None:
        findings = self._findings
        shape = fit(TaskShape, value, path, findings)
        if not isinstance(value, dict):
            return None
        name = shape.name or ""
        if not _NAME.fullmatch(name):
            message = "A task needs a 'name' of letters, digits, '_', '-' and '.'."
            findings.missing((*path, "name"), message)
        prompt = self._named(shape.prompt, self._prompts, (*path, "prompt"), "prompts")
        columns = self._named(shape.columns, self._columns, (*path, "columns"), "columns")
        pool_columns = columns
        if shape.pool_columns is not None:
            where = (*path, "pool_columns")
            pool_columns = self._named(shape.pool_columns, self._columns, where, "columns")
        data = self._source(shape.data, (*path, "data"))
        if shape.data is None and "data" not in value:
            findings.missing((*path, "data"), "Say where its questions are: 'data: {hub: ...}'.")
        pool = None if shape.pool is None else self._source(shape.pool, (*path, "pool"))
        if prompt is None or columns is None or pool_columns is None or data is None:
            return None
        if "{subject}" in prompt.instruction and shape.subject is None:
            findings.missing((*path, "subject"), "Its prompt's instruction names a {subject}.")
        self._check_kind(shape.kind, prompt, columns, path)
        return TaskSpec(
            name=name,
            title=shape.title or name,
            kind=shape.kind,
            shots=shape.shots,
            seeds=tuple(self._shape.seeds or _DEFAULT_SEEDS),
            group=shape.group or "",
            subject=shape.subject or "",
            prompt=prompt,
            columns=columns,
            data=data,
            pool=pool,
            pool_columns=pool_columns,
            examples=self._examples if shape.shots else None,
            examples_of=shape.examples_of or name,
            sample_seed=self._shape.sample_seed,
            max_new_tokens=shape.max_new_tokens,
            stop=tuple(shape.stop or ()),
            licence=shape.licence or "",
            suite=self._name,
            folder=self._folder,
        )

    def _named(
        self, word: str | None, table: Mapping[str, Value], path: KeyPath, section: str
    ) -> Value | None:
        known = ", ".join(table)
        if word is None:
            self._findings.missing(path, f"Name one of '{section}': {known or 'there are none'}.")
            return None
        if word not in table:
            guess = did_you_mean(word, table)
            where = f"Under '{section}': {known}." if known else f"There is no '{section}'."
            self._findings.add(path, f"{shown(word)} is not there.{guess} {where}")
        return table.get(word)

    def _prompt(self, value: object, path: KeyPath) -> PromptForm | None:
        findings = self._findings
        shape = fit(PromptShape, value, path, findings)
        if not isinstance(value, dict):
            return None
        said = {key: text for key in PromptShape.model_fields if (text := getattr(shape, key))}
        for key, text in said.items():
            slots = _SLOTS.get(key, ())
            for slot in _BRACES.findall(text):
                if slot not in slots:
                    known = " or ".join(f"{{{word}}}" for word in slots) or "no words in braces"
                    guess = did_you_mean(slot, slots)
                    findings.add(
                        (*path, key), f"{{{slot}}} means nothing here.{guess} Use {known}."
                    )
        if "{question}" not in said.get("question", ""):
            findings.missing((*path, "question"), "A prompt needs a 'question' with {question}.")
            return None
        if "answer" not in said:
            findings.missing((*path, "answer"), "A prompt needs an 'answer', such as '{letter}'.")
            return None
        return PromptForm(**{key: text for key, text in said.items() if text is not None})

    def _columns_of(self, value: object, path: KeyPath) -> Columns | None:
        findings = self._findings
        shape = fit(ColumnsShape, value, path, findings)
        if not isinstance(value, dict):
            return None
        if shape.question is None:
            findings.missing((*path, "question"), "Name the column of the 'question'.")
            return None
        options = (shape.options,) if isinstance(shape.options, str) else shape.options or ()
        columns = Columns(
            question=shape.question,
            context=shape.context,
            options=tuple(options),
            fixed_options=tuple(shape.fixed_options or ()),
            answer=shape.answer,
            answer_is=shape.answer_is,
            right=shape.right,
            wrong=shape.wrong,
            reference=shape.reference,
            id=shape.id,
            label=shape.label,
            cluster=shape.cluster,
        )
        ways = (bool(columns.options), bool(columns.fixed_options), columns.right is not None)
        if sum(ways) > 1 or (columns.right is None) != (columns.wrong is None):
            findings.add(
                path, "Say what the options are in one way: 'options', 'fixed_options', or 'right' "
                "with 'wrong'.",
            )  # fmt: skip
        if columns.right is None and any(ways) != (columns.answer is not None):
            findings.add(path, "Options need an 'answer' column, and an answer needs options.")
        return columns

    def _check_kind(self, kind: Kind, prompt: PromptForm, columns: Columns, path: KeyPath) -> None:
        findings = self._findings
        has_options = bool(columns.options or columns.fixed_options or columns.right)
        slots = set(_BRACES.findall(prompt.answer))
        if kind == "text":
            if columns.reference is None:
                findings.add(
                    (*path, "columns"), "A task of kind 'text' needs columns with a 'reference'."
                )
            if slots & {"letter", "text"}:
                findings.add(
                    (*path, "prompt"),
                    "Its 'answer' is in words here: use {reference} and {decision}.",
                )
        elif not has_options:
            findings.add((*path, "columns"), "A task of kind 'choice' needs columns with options.")
        elif len(slots) != 1 or not slots <= {"letter", "text"}:
            findings.add(
                (*path, "prompt"),
                "Its 'answer' must have {letter} or {text}: what is scored is its first token.",
            )

    def _source(self, value: dict[str, object] | None, path: KeyPath) -> Source | None:
        if value is None:
            return None
        findings = self._findings
        shape = fit(SourceShape, value, path, findings)
        if not any((shape.hub, shape.file, shape.beside)):
            findings.missing((*path, "hub"), "Name a data set ('hub'), or a file ('beside').")
        if shape.beside is not None and (shape.hub or shape.file):
            findings.add((*path, "beside"), "A file beside the suite is the only place; keep one.")
        if (shape.archive is None) != (shape.member is None):
            findings.add(path, "'archive' and 'member' go together.")
        if shape.file is not None and not _is_inside(shape.file):
            findings.add((*path, "file"), f"{shown(shape.file)} leads out of the folder.")
        return Source(
            hub=shape.hub,
            config=shape.config,
            split=shape.split,
            archive=shape.archive,
            member=shape.member,
            file=shape.file,
            beside=self._file(shape.beside, (*path, "beside")),
            where={key: self._values(item, (*path, "where", key))
                   for key, item in (shape.where or {}).items()},
            only_ids=self._file(shape.only_ids, (*path, "only_ids")),
            except_ids=self._file(shape.except_ids, (*path, "except_ids")),
        )  # fmt: skip

    def _values(self, value: object, path: KeyPath) -> tuple[str, ...]:
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(item, str) for item in values):
            self._findings.add(path, f"{shown(value)} must be a text or a list of texts.")
            return ()
        return tuple(values)

    def _file(self, name: str | None, path: KeyPath) -> str | None:
        """Return the name of a file beside the suite, which must be there."""
        if name is None:
            return None
        if not _is_inside(name):
            self._findings.add(path, f"{shown(name)} leads out of the suite's folder.")
        elif not (self._folder / name).is_file():
            self._findings.add(path, f"There is no file '{name}' in '{self._folder}'.")
        return name


def _is_inside(name: str) -> bool:
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name

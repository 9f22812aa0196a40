"""Turn rows into questions, reporting everything that is wrong with a file at once."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from forge.evaluate.rows import Row, refuse
from forge.evaluate.task_spec import Columns, TaskSpec
from forge.evaluate.values import ABSENT, as_name, find_value
from forge.results.records import ItemRecord, digest_of

LETTERS: Final = string.ascii_uppercase
"""Names of options."""
_ID_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class TaskItem:
    """A question, in the parts that a prompt is made of.

    Attributes:
        record: What is stored of it.
        question: The question alone.
        passages: What it is about; empty if it stands alone.
        decision: The right option in words; ``None`` where a task in words has no options.
    """

    record: ItemRecord
    question: str
    passages: tuple[str, ...]
    decision: str | None

    @property
    def content(self) -> str:
        """Digest of what is asked, the same wherever the question stands."""
        return digest_of(
            "content", list(self.passages), self.question, list(self.record.options)
        )  # fmt: skip


class _WrongRowError(Exception):
    """A row is not as it should be."""


def read_items(
    task: TaskSpec,
    files: Sequence[tuple[str, Sequence[Row]]],
    columns: Columns,
    *,
    lenient: bool = False,
) -> list[TaskItem]:
    """Read questions.

    Args:
        task: The task.
        files: Names of files and their rows.
        columns: What the columns mean.
        lenient: Whether rows that are not as they should be are passed over, as in a pool of
            examples, of which a few are drawn.

    Returns:
        Questions in the order of the files. Where no column names them, they are named by their
        content, and a second one with the same content by ``-2`` behind it.

    Raises:
        EvaluationError: Lists the wrong rows of a file, its columns, and repeated names.
    """
    items: list[TaskItem] = []
    seen: dict[str, str] = {}
    for name, rows in files:
        problems: list[str] = []
        before = len(items)
        for row in rows:
            try:
                item = _item(task, row.values, columns)
            except _WrongRowError as wrong:
                problems.append(f"{row.place}: {wrong}")
                continue
            item_id = item.record.item_id
            if item_id in seen and columns.id is not None:
                problems.append(f"{row.place}: the id '{item_id}' is that of {seen[item_id]}.")
                continue
            if item_id in seen:
                item = _renamed(item, seen)
            seen[item.record.item_id] = row.place
            items.append(item)
        if problems and (not lenient or len(items) == before):
            raise refuse(name, problems)
    return items


def _renamed(item: TaskItem, seen: Mapping[str, str]) -> TaskItem:
    number = 2
    while (name := f"{item.record.item_id}-{number}") in seen:
        number += 1
    old = item.record
    record = ItemRecord.of(
        old.task, name, question=old.question, options=old.options, gold=old.gold,
        label=old.label, cluster=old.cluster,
    )  # fmt: skip
    return replace(item, record=record)


def _item(task: TaskSpec, row: Mapping[str, object], columns: Columns) -> TaskItem:
    question = _text(row, columns.question)
    passages = () if columns.context is None else _passages(row, columns.context)
    options, right = _options(row, columns, question)
    decision = None if right is None else options[right]
    gold: int | str
    if task.kind == "text":
        gold = _text(row, columns.reference or "")
    elif right is None:
        raise _WrongRowError("there is no right option.")
    else:
        gold = right
    content = [list(passages), question, list(options), gold]
    item_id = (
        digest_of("item", *content)[:_ID_DIGITS]
        if columns.id is None
        else _name(row, columns.id)
    )  # fmt: skip
    record = ItemRecord.of(
        task.name,
        item_id,
        question="\n\n".join([*passages, question]),
        options=options,
        gold=gold,
        label=_label(task, row, columns, right, decision),
        cluster=None if columns.cluster is None else _name(row, columns.cluster),
    )
    return TaskItem(record, question, passages, decision)


def _label(
    task: TaskSpec,
    row: Mapping[str, object],
    columns: Columns,
    right: int | None,
    decision: str | None,
) -> str:
    if task.kind == "text" and decision is not None:
        return decision
    if columns.label is not None:
        return _name(row, columns.label)
    if right is not None and not columns.fixed_options:
        return LETTERS[right]
    return decision or ""


def _options(
    row: Mapping[str, object], columns: Columns, question: str
) -> tuple[tuple[str, ...], int | None]:
    """Return the options and the index of the right one; none and ``None`` without options."""
    if columns.right is not None and columns.wrong is not None:
        return _shuffled(row, columns.right, columns.wrong, question)
    if columns.fixed_options:
        names, options = list(LETTERS), list(columns.fixed_options)
    elif len(columns.options) > 1:
        names = list(LETTERS)
        options = [_text(row, column) for column in columns.options]
    elif columns.options:
        names, options = _listed(row, columns.options[0])
    else:
        return (), None
    if not 2 <= len(options) <= len(LETTERS):
        raise _WrongRowError(f"{len(options)} options are not 2 to {len(LETTERS)}.")
    return tuple(options), _right(row, columns, names[: len(options)], options)


def _listed(row: Mapping[str, object], column: str) -> tuple[list[str], list[str]]:
    """Return the letters and texts of options in one column."""
    value = _value(row, column)
    if isinstance(value, Mapping):
        # In Parquet, rows of four and of five options share a record with an empty fifth.
        held = {str(key): item for key, item in value.items() if item is not None}
        names = sorted(held)
        texts = [held[name] for name in names]
    elif isinstance(value, list):
        names, texts = list(LETTERS), value
    else:
        raise _WrongRowError(
            f"'{column}' must be a list of options, or a mapping from letters to them."
        )
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise _WrongRowError(f"'{column}' holds an option that is no text, or an empty one.")
    return names, texts


def _right(
    row: Mapping[str, object], columns: Columns, names: list[str], options: list[str]
) -> int:
    column = columns.answer or ""
    value, form = _value(row, column), columns.answer_is
    if form in ("index", "index_from_1"):
        first = 1 if form == "index_from_1" else 0
        last = first + len(options) - 1
        if isinstance(value, bool) or not isinstance(value, int) or not first <= value <= last:
            raise _WrongRowError(
                f"'{column}' = {_shown(value)} is not a whole number {first} to {last}."
            )
        return value - first
    if not isinstance(value, str):
        raise _WrongRowError(f"'{column}' = {_shown(value)} is no text.")
    known = names if form == "letter" else options
    if value.strip() not in known:
        raise _WrongRowError(f"'{column}' = {_shown(value)} is none of {', '.join(known)}.")
    return known.index(value.strip())


def _shuffled(
    row: Mapping[str, object], right: str, wrong: str, question: str
) -> tuple[tuple[str, ...], int]:
    correct = _text(row, right)
    others = _value(row, wrong)
    if not isinstance(others, list) or not others:
        raise _WrongRowError(f"'{wrong}' must be a list of wrong options.")
    if not all(isinstance(text, str) and text.strip() for text in others):
        raise _WrongRowError(f"'{wrong}' holds an option that is no text, or an empty one.")
    options = list(dict.fromkeys([correct, *others]))
    if correct in others or len(options) > len(LETTERS):
        raise _WrongRowError(
            f"'{wrong}' holds the right option too, or more than {len(LETTERS) - 1}."
        )
    options.sort(key=lambda text: digest_of("order", question, text))
    return tuple(options), options.index(correct)


def _value(row: Mapping[str, object], column: str) -> object:
    value = find_value(row, column)
    if value is ABSENT:
        there = ", ".join(list(row)[:12]) or "none"
        raise _WrongRowError(f"there is no column '{column}'; the columns are {there}.")
    return value


def _text(row: Mapping[str, object], column: str) -> str:
    text = _value(row, column)
    if not isinstance(text, str) or not text.strip():
        raise _WrongRowError(f"'{column}' is no text, or an empty one.")
    return text.strip()


def _passages(row: Mapping[str, object], column: str) -> tuple[str, ...]:
    value = _value(row, column)
    passages = [value] if isinstance(value, str) else value
    if not isinstance(passages, list) or not passages:
        raise _WrongRowError(f"'{column}' must be a text or a list of texts.")
    if not all(isinstance(text, str) and text.strip() for text in passages):
        raise _WrongRowError(f"'{column}' holds a passage that is no text, or an empty one.")
    return tuple(text.strip() for text in passages)


def _name(row: Mapping[str, object], column: str) -> str:
    name = as_name(_value(row, column))
    if name is None:
        raise _WrongRowError(f"'{column}' is neither a text nor a whole number.")
    return name


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]}...{text[-1]}"

"""YAML files as plain values with the line of every key: read with limits, and written.

Only this file opens recipes; ``forge/recipes/yaml_reader.py`` says what the text may hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

from forge.core.errors import Problem, RecipeError
from forge.recipes.place import KeyPath, Place
from forge.recipes.yaml_reader import parse_yaml, parse_yaml_stream, plain_value

MAX_FILE_BYTES: Final = 1 << 20
MAX_DOCUMENTS: Final = 32
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML file as plain values.

    Attributes:
        value: Dicts with text keys, lists, text, numbers, booleans and ``None``.
        lines: Line of every value, counted from 1, by its path; a mapping's value has the
            line of its key.
        path: The file, as the user typed it; ``None`` for values built in memory.
        problems: Findings that did not stop the reading: keys written twice.
    """

    value: object
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    path: Path | None = None
    problems: tuple[Problem, ...] = ()

    def place(self, path: KeyPath) -> Place:
        """Return the place of a path; a missing key stands on the line of what should hold it."""
        ends = range(len(path), -1, -1)
        line = next((self.lines[path[:end]] for end in ends if path[:end] in self.lines), None)
        return Place(None if self.path is None else str(self.path), line, path)


def load_document(path: Path) -> Document:
    """Read a YAML file.

    Args:
        path: The file, as the user typed it; messages repeat it.

    Returns:
        The document; its ``problems`` is empty.

    Raises:
        RecipeError: The file is missing, larger than 1 MiB, not UTF-8, not YAML, uses a tag,
            nests or expands without bound, or writes a key twice. Messages carry the line.
    """
    document = read_document(path)
    if document.problems:
        raise RecipeError(list(document.problems))
    return document


def read_document(path: Path) -> Document:
    """Read a YAML file as :func:`load_document` does, but return repeated keys as problems.

    Args:
        path: The file, as the user typed it.

    Returns:
        The document. Of a key written twice the first value is kept.

    Raises:
        RecipeError: As for :func:`load_document`, repeated keys aside.
    """
    parsed = parse_yaml(_read_text(path), str(path))
    return Document(parsed.value, parsed.lines, path, parsed.problems)


def read_documents(path: Path) -> list[Document]:
    """Read a YAML file of one or several documents, ``---`` between them.

    Args:
        path: The file, as the user typed it.

    Returns:
        The documents, at least one. Of a key written twice the first value is kept.

    Raises:
        RecipeError: As for :func:`load_document`, repeated keys aside; or there are too many.
    """
    parsed = parse_yaml_stream(_read_text(path), str(path), limit=MAX_DOCUMENTS)
    return [Document(item.value, item.lines, path, item.problems) for item in parsed]


def dump_yaml(value: object) -> str:
    """Write plain values as YAML that :func:`load_document` reads back as the same values.

    Args:
        value: Dicts with text keys, lists, text, finite numbers, booleans and ``None``.

    Returns:
        The text, keys in their order.
    """
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=100,
    )
    return str(text)


class _Dumper(yaml.SafeDumper):
    """Writes values out in full, never as aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # '1e5' is text to PyYAML and a number to our reader, so it needs quotes of our own.
    style = None if isinstance(plain_value(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _read_text(path: Path) -> str:
    def refusal(message: str, line: int | None = None) -> RecipeError:
        return RecipeError([Problem(message, str(path), line)])

    if not path.is_file():
        raise refusal(f"The recipe {'is not a file' if path.exists() else 'does not exist'}.")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise refusal(f"The recipe cannot be read: {error.strerror or error}.") from error
    if len(data) > MAX_FILE_BYTES:
        raise refusal("The recipe is larger than 1 MiB. Is it the YAML file that you meant?")
    if control := _CONTROL.search(data):
        line = data.count(b"\n", 0, control.start()) + 1
        raise refusal("This is a binary file, not YAML text in UTF-8.", line)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise refusal(f"Byte {byte:#04x} is not UTF-8. Save the file as UTF-8.", line) from error

"""Turn YAML text from a stranger into plain values and the line of each, within limits.

Values are built straight from PyYAML's event stream, so that every limit is enforced while
reading: a 200-byte file that expands to a billion values, a thousand nested lists and a key
written twice are refused where they stand. What plain words mean follows YAML 1.1 as
mergekit's users know it (``yes`` is true), but for its traps: ``1e-5`` is a number, and
``12:30``, ``0o17`` and ``2024-01-01`` are text. No tag is honoured, so nothing is ever
constructed but dicts, lists, text, numbers, booleans and null.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn

import yaml

from forge.core.errors import Problem, RecipeError
from forge.recipes.place import KeyPath, Place

MAX_DEPTH: Final = 32
MAX_VALUES: Final = 20_000

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE: Final = frozenset({"true", "yes", "on"})
_FALSE: Final = frozenset({"false", "no", "off"})
_INTEGER: Final = re.compile(r"[-+]?(0|[1-9][0-9]{0,19})")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL: Final = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NO_TAGS: Final = "is not allowed. Recipes are plain values; remove it."


@dataclass(frozen=True, slots=True)
class YamlValue:
    """What one YAML document says.

    Attributes:
        value: Dicts with text keys, lists, text, numbers, booleans and ``None``.
        lines: Line of every value by its path; a mapping's value has the line of its key.
        problems: Keys written twice; the first value was kept.
    """

    value: object
    lines: Mapping[KeyPath, int]
    problems: tuple[Problem, ...]


def parse_yaml(text: str, file: str) -> YamlValue:
    """Parse one YAML document.

    Args:
        text: The document.
        file: Its name, for messages.

    Returns:
        The value and its lines.

    Raises:
        RecipeError: The text is not one YAML document, uses a tag, or passes a limit.
    """
    builder = _Builder(file, _events(text, file))
    return builder.read()


def parse_yaml_stream(text: str, file: str, *, limit: int) -> list[YamlValue]:
    """Parse the YAML documents of one file, ``---`` between them.

    Args:
        text: The documents.
        file: Its name, for messages.
        limit: Most documents.

    Returns:
        The value and the lines of each, at least one.

    Raises:
        RecipeError: The text is not YAML, uses a tag, or passes a limit.
    """
    builder = _Builder(file, _events(text, file))
    return builder.read_all(limit)


def plain_value(text: str) -> object:
    """Return what an unquoted word means: null, a boolean, a number or the text itself."""
    if text in _NULL:
        return None
    word = text.lower()
    if text in {word, word.upper(), word.capitalize()}:
        if word in _TRUE:
            return True
        if word in _FALSE:
            return False
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if special := _SPECIAL.fullmatch(text):
        return float("nan") if special[3] else float(f"{special[1]}inf")
    return text


def _events(text: str, file: str) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        raise RecipeError([_syntax_problem(error, text, file)]) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        fault = f"This is not YAML: {error.reason}."
        raise RecipeError([Problem(fault, file, line)]) from error


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, file: str) -> Problem:
    lines = text.splitlines() or [""]
    mark = error.problem_mark or error.context_mark
    index = 0 if mark is None else min(mark.line, len(lines) - 1)
    indent = lines[index][: len(lines[index]) - len(lines[index].lstrip())]
    if "\t" in indent:
        return Problem("A tab indents this line. Indent with spaces.", file, index + 1)
    fault = ", ".join(part for part in (error.context, error.problem) if part)
    advice = "Look at this line and the one before it."
    return Problem(f"This is not YAML: {fault}. {advice}", file, index + 1)


@dataclass(slots=True)
class _Node:
    """A value with the lines of all it holds, so that an alias can be placed anywhere."""

    value: object
    line: int
    size: int = 1
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def adopt(self, key: str | int, child: _Node, line: int) -> None:
        """Count and place a child's values below ``key``."""
        self.size += child.size
        self.lines[(key,)] = line
        for path, inner in child.lines.items():
            self.lines[(key, *path)] = inner

    def items(self) -> list[_Node]:
        """Return the nodes of a list's items, or this node alone."""
        if not isinstance(self.value, list):
            return [self]
        return [
            _Node(value, self.line, 1, {p[1:]: n for p, n in self.lines.items() if p[0] == index})
            for index, value in enumerate(self.value)
        ]


class _Builder:
    """Builds values from events, within the limits."""

    def __init__(self, file: str, events: Iterator[yaml.Event]) -> None:
        self._file = file
        self._events = events
        self._problems: list[Problem] = []
        self._anchors: dict[str, _Node | None] = {}
        self._line = 1

    def read(self) -> YamlValue:
        """Return the one document."""
        (found,) = self.read_all(1)
        return found

    def read_all(self, limit: int) -> list[YamlValue]:
        """Return all documents, at least one."""
        self._next()
        if isinstance(self._next(), yaml.StreamEndEvent):
            self._line = 1
            self._stop("The recipe is empty.")
        found: list[YamlValue] = []
        while True:
            root = self._node(self._next(), ())
            self._next()
            problems, self._problems = tuple(self._problems), []
            found.append(YamlValue(root.value, {(): root.line, **root.lines}, problems))
            if isinstance(self._next(), yaml.StreamEndEvent):
                return found
            if limit == 1:
                self._stop("A second document begins here ('---'). Write one recipe per file.")
            if len(found) == limit:
                self._stop(f"More than {limit} documents. Write fewer stages.")
            # An anchor holds within its document.
            self._anchors = {}

    def _next(self) -> yaml.Event:
        event = next(self._events)
        if event.start_mark is not None:
            self._line = event.start_mark.line + 1
        return event

    def _stop(self, message: str) -> NoReturn:
        raise RecipeError([Problem(message, self._file, self._line)])

    def _node(self, event: yaml.Event, path: KeyPath) -> _Node:
        line = self._line
        if isinstance(event, yaml.AliasEvent):
            return self._alias(str(event.anchor))
        if not isinstance(
            event, (yaml.ScalarEvent, yaml.SequenceStartEvent, yaml.MappingStartEvent)
        ):
            self._stop("A value is missing here.")
        if event.tag is not None:
            self._stop(f"The tag {event.tag!r} {_NO_TAGS}")
        if len(path) > MAX_DEPTH:
            self._stop(f"Values nest deeper than {MAX_DEPTH} levels.")
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node = _Node(plain_value(event.value) if event.implicit[0] else event.value, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(path, line)
        else:
            node = self._mapping(path, line)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, anchor: str) -> _Node:
        if anchor not in self._anchors:
            self._stop(f"The alias '*{anchor}' names no anchor before it.")
        node = self._anchors[anchor]
        if node is None:
            self._stop(f"The alias '*{anchor}' stands inside its own anchor.")
        return node

    def _adopt(self, parent: _Node, key: str | int, child: _Node, line: int) -> None:
        if parent.size + child.size > MAX_VALUES:
            self._stop(f"The recipe expands to more than {MAX_VALUES:,} values.")
        if any(len(path) >= MAX_DEPTH for path in child.lines):
            self._stop(f"Values nest deeper than {MAX_DEPTH} levels.")
        parent.adopt(key, child, line)

    def _sequence(self, path: KeyPath, line: int) -> _Node:
        items: list[object] = []
        node = _Node(items, line)
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            item_line = self._line
            child = self._node(event, (*path, len(items)))
            self._adopt(node, len(items), child, item_line)
            items.append(child.value)
        return node

    def _mapping(self, path: KeyPath, line: int) -> _Node:
        items: dict[str, object] = {}
        node = _Node(items, line)
        inherited: list[_Node] = []
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key_line = self._line
            key, is_merge = self._key(event)
            child = self._node(self._next(), (*path, key))
            if is_merge:
                inherited += child.items()
                if not all(isinstance(parent.value, dict) for parent in inherited):
                    self._line = key_line
                    self._stop("'<<' takes an alias of a mapping, such as '<<: *defaults'.")
            elif key in items:
                before = f"It stands on line {node.lines[(key,)]} already; keep one."
                place = Place(self._file, key_line, (*path, key))
                self._problems.append(place.problem(f"This key is written twice. {before}"))
            else:
                self._adopt(node, key, child, key_line)
                items[key] = child.value
        for parent in inherited:
            self._inherit(node, items, parent)
        return node

    def _key(self, event: yaml.Event) -> tuple[str, bool]:
        if not isinstance(event, yaml.ScalarEvent):
            self._stop("A key must be text, not a list, a mapping or an alias.")
        if event.tag is not None:
            self._stop(f"The tag {event.tag!r} {_NO_TAGS}")
        if event.anchor is not None:
            self._stop("An anchor on a key is not allowed; put it on a value.")
        return event.value, event.value == "<<" and event.implicit[0]

    def _inherit(self, node: _Node, items: dict[str, object], parent: _Node) -> None:
        held = parent.value if isinstance(parent.value, dict) else {}
        node.size += len(parent.lines)
        if node.size > MAX_VALUES:
            self._stop(f"The recipe expands to more than {MAX_VALUES:,} values.")
        for key in [key for key in held if key not in items]:
            items[key] = held[key]
            node.lines.update({path: n for path, n in parent.lines.items() if path[:1] == (key,)})

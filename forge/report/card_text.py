"""A model card as lines, without what is no prose and no table.

A card is a stranger's file. It is read with a limit, and what could hide from a reader (front
matter, fenced code, comments) is blanked in place, so that line numbers stay those of the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge.core.errors import EvaluationError

MAX_BYTES: Final = 2 << 20
"""A card of a hundred tables has a tenth of that."""
_FENCE: Final = re.compile(r"[ >]{0,8}(`{3,}|~{3,})")
_HEADING: Final = re.compile(r"\s{0,3}(#{1,6})\s")


@dataclass(frozen=True, slots=True)
class CardText:
    """A card's lines.

    Attributes:
        lines: Without front matter, fenced code and comments, which are empty lines here. The
            first is line 1 of the file.
    """

    lines: tuple[str, ...]

    def sections(self) -> tuple[range, ...]:
        """Return the numbers of the lines of each section, which a heading begins."""
        starts = [at for at, line in enumerate(self.lines, start=1) if _HEADING.match(line)]
        starts = starts if starts[:1] == [1] else [1, *starts]
        ends = [*starts[1:], len(self.lines) + 1]
        return tuple(range(first, last) for first, last in zip(starts, ends, strict=True))


def read_card(path: Path) -> CardText:
    """Read a model card.

    Args:
        path: A Markdown file, such as ``README.md`` of a model.

    Returns:
        Its lines.

    Raises:
        EvaluationError: It cannot be read, is too large, or is not UTF-8 text.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise EvaluationError(f"'{path}' cannot be read: {error.strerror}.") from error
    if len(data) > MAX_BYTES:
        raise EvaluationError(f"'{path}' is larger than {MAX_BYTES >> 20} MiB; that is no card.")
    try:
        return card_text(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"'{path}' is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}."
        ) from error


def card_text(text: str) -> CardText:
    """Return the lines of a card's text; see ``CardText``."""
    # Not splitlines(): its form feeds and line separators are no new line to any editor.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    _blank_front_matter(lines)
    _blank_code(lines)
    _blank_comments(lines)
    return CardText(tuple(lines))


def _blank_front_matter(lines: list[str]) -> None:
    if lines[0].rstrip() != "---":
        return
    end = next((at for at in range(1, len(lines)) if lines[at].rstrip() in ("---", "...")), None)
    if end is not None:
        lines[: end + 1] = [""] * (end + 1)


def _blank_code(lines: list[str]) -> None:
    fence = ""
    for at, line in enumerate(lines):
        match = _FENCE.match(line)
        if not fence:
            if match:
                fence = match[1]
                lines[at] = ""
            continue
        lines[at] = ""
        closes = match is not None and match[1].startswith(fence)
        if closes and not line.strip(" >").strip(fence[0]):
            fence = ""


def _blank_comments(lines: list[str]) -> None:
    inside = False
    for number, line in enumerate(lines):
        kept, at = [], 0
        while at < len(line):
            found = line.find("-->" if inside else "<!--", at)
            end = len(line) if found < 0 else found
            if not inside:
                kept.append(line[at:end])
            at = end if found < 0 else end + (3 if inside else 4)
            inside = inside != (found >= 0)
        lines[number] = "".join(kept)

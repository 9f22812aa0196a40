"""One cell of a card's table: what it says, the number in it, and how it is marked.

Markdown, HTML and LaTeX mark alike: ``**x**``, ``<b>x</b>``, ``<u>x</u>``,
``\\mathbf{x}``. ``__x__`` is bold in Markdown, but many authors mean underlined; which of the two
is decided for a whole table, by whether it has another kind of bold. Daggers, footnotes, links,
percent signs, units and deviations stand around the number and are no part of it; superscripts
would be, as digits, and are dropped.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Final

MAX_CELL: Final = 2000
"""Characters of a cell that are looked at; no number stands behind so many."""

_LATEX_BOLD: Final = re.compile(r"\\(?:mathbf|textbf|boldsymbol|bm|bf)\s?\{([^{}\\]{0,80})\}")
_LATEX_UNDER: Final = re.compile(r"\\(?:underline|uline)\s?\{([^{}\\]{0,80})\}")
_LATEX_LOW: Final = re.compile(r"[_^]\{([^{}]{0,40})\}")
_IMAGE: Final = re.compile(r"!\[[^\[\]]{0,200}\]\([^()\s]{0,500}\)")
_LINK: Final = re.compile(r"\[([^\[\]]{1,300})\]\([^()]{0,500}\)")
_FOOTNOTE: Final = re.compile(r"\[\^[^\[\]]{1,40}\]")
_SMALL: Final = re.compile(r"<(su[pb])\b[^<>]{0,100}>([^<>]{0,60})</\1\s?>", re.IGNORECASE)
_TAG: Final = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]{0,20})\b([^<>]{0,300})>")
_RAISED: Final = str.maketrans("", "", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_BOLD_TAGS: Final = frozenset({"b", "strong"})
_UNDERLINE_TAGS: Final = frozenset({"u", "ins"})

_SPACES: Final = " \u2009\u202f\u00a0"
# One way to match each digit: a number of many digits must not be tried in many ways.
_NUMBER: Final = (
    rf"[-+−–]?(?:\d{{1,3}}(?:[{_SPACES}']\d{{3}}){{1,5}}(?:[.,]\d+)?|\d+(?:[.,]\d+){{0,6}}|\.\d+)"
)
_UNIT: Final = (
    r"(?:%|x|×|pp|pts?|points?|[KMGT]i?B|[KMBT]|ms|s|sec|h|min|J|W|kWh|bits?|bpw|nats?"
    r"|tok(?:en)?s?/s(?:ec)?|it/s)"
)
_VALUE: Final = re.compile(
    rf"(?P<lead>[~≈≤≥<>x×≃↑↓▲▼\s]{{0,6}})(?P<number>{_NUMBER})\s?(?P<unit>{_UNIT})?"
    rf"(?P<deviation>\s?(?:±|\+/-|\+-)\s?{_NUMBER}\s?%?)?"
    r"(?P<note>\s?(?:\([^()]{0,80}\)|\[[^\[\]]{0,80}\]))?"
    r"[\s†‡§¶#^*↑↓▲▼⭐🥇🥈🥉🏆✓✅]{0,8}"
)
_INTERVAL: Final = re.compile(
    rf"±|\+/-|\bCI\b|{_NUMBER}\s?%?\s?(?:[,;]|\bto\b|–|—|-)\s?{_NUMBER}", re.IGNORECASE
)
_MISSING: Final = frozenset({
    "", "-", "--", "---", "–", "—", "/", "?", "x", "✗", "✘", "❌", "n/a", "na", "n.a.", "nan",
    "none", "null", "tbd", "tba", "todo", "oom", "...", "…", ".",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it is printed.

    Attributes:
        text: As it is printed, without marks.
        value: What it means.
        decimals: Digits behind the decimal point.
        has_interval: Whether a deviation or an interval stands beside it.
        is_percent: Whether a percent sign does.
    """

    text: str
    value: float
    decimals: int
    has_interval: bool = False
    is_percent: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell.

    Attributes:
        text: What a reader sees, marks apart.
        line: Where it stands in the file, counted from 1.
        number: The number that it consists of, or ``None`` for text and for nothing.
        is_bold: Whether the number, or else all of the text, is bold.
        is_underlined: Whether it is underlined.
    """

    text: str
    line: int
    number: Number | None = None
    is_bold: bool = False
    is_underlined: bool = False

    @property
    def is_missing(self) -> bool:
        """Whether it says that there is nothing."""
        return self.text.strip().casefold() in _MISSING


@dataclass(frozen=True, slots=True)
class RawCell:
    """A cell as it was written.

    Attributes:
        source: Markdown, with inline HTML.
        line: Where it stands.
    """

    source: str
    line: int

    @property
    def has_bold(self) -> bool:
        """Whether it has bold of a kind that is bold beyond doubt."""
        return "**" in self.source or bool(
            _LATEX_BOLD.search(self.source)
            or any(tag[2].lower() in _BOLD_TAGS for tag in _TAG.finditer(self.source[:MAX_CELL]))
        )


def read_cell(raw: RawCell, *, decimal_comma: bool, underscores_underline: bool) -> Cell:
    """Read a cell.

    Args:
        raw: The cell as it was written.
        decimal_comma: Whether commas of its table are decimal points.
        underscores_underline: Whether ``__x__`` of its table means underlined, and not bold.
    """
    text, bold, under = _unmarked(_plain(raw.source), underscores_underline)
    stripped = text.strip()
    match = _VALUE.fullmatch(stripped)
    number = _number(match, decimal_comma=decimal_comma) if match else None
    if match and number:
        offset = len(text) - len(text.lstrip())
        places: list[int] = [at + offset for at in range(*match.span("number"))]
    else:
        places = [at for at, character in enumerate(text) if not character.isspace()]
    return Cell(
        text=" ".join(stripped.split()),
        line=raw.line,
        number=number,
        is_bold=bool(places) and all(bold[at] for at in places),
        is_underlined=bool(places) and all(under[at] for at in places),
    )


def uses_decimal_comma(cells: list[RawCell]) -> bool:
    """Tell whether numbers of a table have decimal commas: one cannot be read otherwise."""
    texts = [_unmarked(_plain(cell.source), True)[0].strip() for cell in cells]
    numbers = [match["number"] for text in texts if (match := _VALUE.fullmatch(text))]
    if any(re.search(r"\.\d+$", number) and "," not in number for number in numbers):
        return False
    return any(
        re.fullmatch(r"[-+−–]?(?:\d+,(?:\d{1,2}|\d{4,})|0,\d+|\d{1,3}(?:\.\d{3})+,\d+)", number)
        for number in numbers
    )


def _plain(source: str) -> str:
    """Return a cell without links, footnotes and LaTeX, its marks left in."""
    text = source[:MAX_CELL]
    if "\\" in text or "$" in text:
        text = _LATEX_BOLD.sub(r"**\1**", text)
        text = _LATEX_UNDER.sub(r"<u>\1</u>", text)
        text = text.replace("\\pm", "±").replace("\\%", "%").replace("$", "")
        text = _LATEX_LOW.sub(lambda match: match[1] if "±" in match[1] else "", text)
    text = _IMAGE.sub("", text)
    text = _FOOTNOTE.sub("", text)
    text = _LINK.sub(r"\1", text)
    # A raised 1 is a footnote and would be a digit; a lowered ± 0.3 is a deviation.
    text = _SMALL.sub(lambda match: match[2] if re.search(r"±|\+/?-", match[2]) else "", text)
    return text.translate(_RAISED)


def _unmarked(source: str, underscores_underline: bool) -> tuple[str, list[bool], list[bool]]:
    """Return text without marks, and for each character whether it is bold and underlined."""
    characters: list[str] = []
    bold: list[bool] = []
    under: list[bool] = []
    stars = dunder = False
    depth = {"bold": 0, "under": 0}

    def add(text: str) -> None:
        is_bold = stars or depth["bold"] > 0 or (dunder and not underscores_underline)
        is_under = depth["under"] > 0 or (dunder and underscores_underline)
        characters.extend(text)
        bold.extend([is_bold] * len(text))
        under.extend([is_under] * len(text))

    at = 0
    while at < len(source):
        character = source[at]
        tag = _TAG.match(source, at) if character == "<" else None
        if tag is not None:
            _follow_tag(tag, depth)
            if tag[2].lower() == "br":
                add(" ")
            at = tag.end()
        elif character == "\\" and source[at + 1 : at + 2] in tuple("*_|`~[]()#<>%$&{}\\"):
            add(source[at + 1])
            at += 2
        elif source.startswith("**", at):
            stars = not stars
            at += 2
        elif source.startswith("__", at):
            dunder = not dunder
            at += 2
        elif character in "*`" or (character == "_" and not _inside_word(source, at)):
            at += 1
        elif character == "&":
            end = source.find(";", at, at + 12)
            piece = source[at : end + 1] if end > 0 else character
            add(html.unescape(piece))
            at += len(piece)
        else:
            add(character)
            at += 1
    return "".join(characters), bold, under


def _follow_tag(tag: re.Match[str], depth: dict[str, int]) -> None:
    name, style = tag[2].lower(), tag[3].lower().replace(" ", "")
    kinds = [
        kind
        for kind, names, words in (
            ("bold", _BOLD_TAGS, ("font-weight:bold", "font-weight:700")),
            ("under", _UNDERLINE_TAGS, ("text-decoration:underline",)),
        )
        if name in names or any(word in style for word in words)
    ]
    for kind in kinds:
        depth[kind] = max(0, depth[kind] + (-1 if tag[1] else 1))
    if tag[1] and name == "span":
        # Its opening tag said what it was for; what is open besides it has a tag of its own.
        depth["bold"] = max(0, depth["bold"] - 1)
        depth["under"] = max(0, depth["under"] - 1)


def _inside_word(source: str, at: int) -> bool:
    before, after = source[at - 1 : at], source[at + 1 : at + 2]
    return before.isalnum() and after.isalnum()


def _number(match: re.Match[str], *, decimal_comma: bool) -> Number | None:
    printed = match["number"]
    digits = re.sub(rf"[{_SPACES}']", "", printed).replace("−", "-").replace("–", "-")
    if decimal_comma:
        digits = digits.replace(".", "").replace(",", ".")
    elif re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", digits):
        digits = digits.replace(",", "")
    else:
        digits = digits.replace(",", ".")
    try:
        value = float(digits)
    except ValueError:
        # Such as 1.2.3, a version.
        return None
    note = match["note"] or ""
    return Number(
        text=printed,
        value=value,
        decimals=len(digits.partition(".")[2]),
        has_interval=match["deviation"] is not None or bool(_INTERVAL.search(note)),
        is_percent=match["unit"] == "%",
    )

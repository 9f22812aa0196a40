"""Write HTML and SVG so that nothing from a results file can be read as markup.

Everything that a report shows was written by others: questions, answers, names of models, recipes.
A plain ``str`` is therefore always escaped on its way in, and only ``Markup``, which ``element``
and ``join`` return, passes as it is. There is no third way to put text on the page.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Final

Value = str | int | float | bool | None
"""An attribute: ``True`` stands alone (``hidden``), ``False`` and ``None`` leave it out."""

_ENTITIES: Final = {
    ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord('"'): "&quot;", ord("'"): "&#39;",
}  # fmt: skip
_VOID: Final = frozenset({
    "br", "circle", "col", "hr", "input", "line", "meta", "path", "polygon", "polyline", "rect",
})  # fmt: skip
_REPLACEMENT: Final = "\ufffd"
_REORDERING: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
                               "\u2066\u2067\u2068\u2069")  # fmt: skip


class Markup(str):
    """Text that is markup already, and is not escaped again."""

    __slots__ = ()


EMPTY: Final = Markup("")


def visible(text: str) -> str:
    """Return text with a replacement character for each one that a page must not carry.

    XML forbids most control characters even when they are escaped, a lone surrogate has no UTF-8,
    and characters that reorder a line can make it say something else than its bytes do.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_REPLACEMENT if _is_unfit(character) else character for character in text)


def escape(text: str) -> Markup:
    """Return text as markup that shows it; ``Markup`` comes back as it is."""
    if isinstance(text, Markup):
        return text
    return Markup(visible(text).translate(_ENTITIES))


def element(name: str, attributes: Mapping[str, Value] | None = None, *children: str) -> Markup:
    """Return an element.

    Args:
        name: Its tag.
        attributes: Its attributes in order; numbers are written with two digits at most.
        children: Its content: ``Markup`` as it is, any other text escaped.

    Raises:
        ValueError: An element that is always empty was given content.
    """
    head = name
    for key, value in (attributes or {}).items():
        if value is True:
            head += f" {key}"
        elif value is not None and value is not False:
            text = number(value) if isinstance(value, int | float) else escape(value)
            head += f' {key}="{text}"'
    if name not in _VOID:
        return Markup(f"<{head}>{join(children)}</{name}>")
    if children:
        msg = f"<{name}> is always empty."
        raise ValueError(msg)
    return Markup(f"<{head}/>")


def join(parts: Iterable[str], separator: str = "") -> Markup:
    """Return parts one after the other, each escaped unless it is markup."""
    return Markup(escape(separator).join(escape(part) for part in parts))


def number(value: float) -> str:
    """Return a coordinate: two digits after the point at most, never ``-0``."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _is_unfit(character: str) -> bool:
    if character in "\n\t":
        return False
    category = unicodedata.category(character)
    code = ord(character)
    return (
        category in {"Cc", "Cs"}
        or character in _REORDERING
        or code & 0xFFFE == 0xFFFE
        or 0xFDD0 <= code <= 0xFDEF
    )

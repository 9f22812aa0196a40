r"""A comparison's tables as LaTeX with booktabs: a document that compiles, and tables to copy.

All text is escaped. Characters of European languages pass as they are; others have no glyph in
LaTeX's own fonts, and are written as their code point, ``(U+4E2D)``, instead of being lost.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Final

from forge.report.comparison import Comparison
from forge.report.tables import Cell, Grid, grids

_SPECIAL: Final = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "^": r"\textasciicircum{}", "_": r"\_", "~": r"\textasciitilde{}", "%": r"\%",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "\N{MINUS SIGN}": "$-$", "≈": r"$\approx$", "–": "--", "—": "---", "†": r"$^{\dagger}$",
    "×": r"$\times$", "±": r"$\pm$", "…": r"\dots{}", "‖": r"$\Vert$", "\N{NO-BREAK SPACE}": "~",
    # At the beginning of a row these would be read as an option of the line break before it.
    "[": "{[}", "]": "{]}", "*": "{*}",
    "“": "``", "”": "''", "‘": "`", "’": "'", "µ": r"$\mu$",
}  # fmt: skip
_LAST_LETTER: Final = 0x17F
"""End of Latin Extended-A, which the T1 encoding covers."""
_PREAMBLE: Final = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage[normalem]{ulem}
\usepackage[landscape,margin=1.5cm]{geometry}
\begin{document}
"""


def render_latex(comparison: Comparison) -> str:
    """Return a comparison's tables as a LaTeX document.

    Args:
        comparison: What to show.
    """
    advice = comparison.recommendation
    parts = [
        _PREAMBLE,
        rf"\section*{{{escape(comparison.title)}}}" + "\n",
        f"{escape(advice.headline)}. " + " ".join(escape(reason) for reason in advice.reasons),
        "\n",
        *(_table(grid) for grid in grids(comparison)),
        "\\end{document}\n",
    ]
    return "\n".join(parts)


def escape(text: str) -> str:
    """Return text that LaTeX sets as it is.

    Args:
        text: Any text.
    """
    return "".join(_letter(letter) for letter in unicodedata.normalize("NFC", text))


def _letter(letter: str) -> str:
    known = _SPECIAL.get(letter)
    if known is not None:
        return known
    if letter.isspace():
        return " "
    if letter.isprintable() and ord(letter) <= _LAST_LETTER:
        return letter
    return f"(U+{ord(letter):04X})"


def _table(grid: Grid) -> str:
    shape = "".join("r" if column.numeric else "l" for column in grid.columns)
    foot = [r"\midrule", *(_line(row) for row in grid.foot)] if grid.foot else []
    notes = [r"\par\footnotesize " + " ".join(escape(note) for note in grid.notes)]
    lines = [
        r"\begin{table}[p]",
        r"\centering",
        rf"\caption{{{escape(grid.caption)}}}",
        rf"\label{{tab:{grid.name}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{shape}}}",
        r"\toprule",
        " & ".join(escape(column.title) for column in grid.columns) + r" \\",
        r"\midrule",
        *(_line(row) for row in grid.rows),
        *foot,
        r"\bottomrule",
        r"\end{tabular}}",
        *(notes if grid.notes else []),
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _line(cells: Sequence[Cell]) -> str:
    return " & ".join(_cell(cell) for cell in cells) + r" \\"


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.standing == "best":
        return rf"\textbf{{{text}}}"
    return rf"\uline{{{text}}}" if cell.standing == "second" else text

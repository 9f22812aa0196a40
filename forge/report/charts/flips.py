"""How answers changed: a row for each pair, a column for each way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forge.report.charts.drawing import (
    BODY,
    SMALL,
    WIDTH,
    Drawing,
    box,
    fitted,
    pointed,
    text,
)  # fmt: skip
from forge.report.charts.palette import step_role
from forge.report.markup import Markup, join

_ROW: Final = 40.0
_COLUMNS: Final = (
    ("right", "right"), ("right", "wrong"), ("wrong", "right"), ("wrong", "other wrong"),
    ("wrong", "same wrong"),
)  # fmt: skip
_HEAD: Final = 64.0


@dataclass(frozen=True, slots=True)
class FlipRow:
    """A variant against its baseline.

    Attributes:
        label: The variant.
        against: The baseline.
        counts: Answers that were and are right, right then wrong, wrong then right, wrong then
            wrong in another way, and wrong in the same way.
    """

    label: str
    against: str
    counts: tuple[int, int, int, int, int]


def flip_matrix(rows: Sequence[FlipRow], *, width: float = WIDTH) -> Drawing:
    """Draw counts and shares; darker is a larger share of the pair's answers.

    Args:
        rows: At least one.
        width: In pixels.
    """
    names = 230.0 if width >= 700 else 120.0
    changed_width = 92.0
    cell = (width - names - changed_width - 4) / len(_COLUMNS)
    parts = [text(4, 18, "baseline's answer", size=SMALL, role="mute")]
    parts.append(text(4, 36, "variant's answer", size=SMALL, role="mute"))
    for column, (before, after) in enumerate(_COLUMNS):
        middle = names + cell * (column + 0.5)
        parts.append(text(middle, 18, before, size=SMALL, role="mute", anchor="middle"))
        parts.append(text(middle, 36, f"→ {after}", size=SMALL, anchor="middle", bold=True))
    last = names + cell * len(_COLUMNS) + changed_width
    parts.append(text(last, 36, "changed", size=SMALL, anchor="end", bold=True))
    highest = max((_shares(row)[column] for row in rows for column in (1, 2, 3)), default=0.0)
    for index, row in enumerate(rows):
        parts.append(_row(row, _HEAD - 12 + index * _ROW, names, cell, highest, last))
    described = "; ".join(f"{row.label}: {row.counts[1]} lost, {row.counts[2]} gained, "
                          f"{row.counts[3]} moved" for row in rows)  # fmt: skip
    return Drawing(
        "flips",
        "Changed answers",
        f"Answers of each variant against its baseline's. {described}.",
        width,
        _HEAD - 4 + _ROW * len(rows),
        join(parts),
    )


def _shares(row: FlipRow) -> tuple[float, ...]:
    total = sum(row.counts)
    return tuple(count / total if total else 0.0 for count in row.counts)


def _row(
    row: FlipRow, top: float, names: float, cell: float, highest: float, last: float
) -> Markup:
    parts = [
        fitted(4, top + 17, row.label, names - 14),
        fitted(4, top + 32, f"against {row.against}", names - 14, size=SMALL - 1, role="mute"),
    ]
    shares = _shares(row)
    for column, (count, share) in enumerate(zip(row.counts, shares, strict=True)):
        x = names + cell * column
        changed = column in (1, 2, 3)
        role = step_role(share / highest * 0.999 if highest else 0.0) if changed else "raised"
        ink = f"on-{role}" if changed else "mute"
        middle = x + cell / 2
        tip = f"{row.label}: {' → '.join(_COLUMNS[column])}, {count:,} answers, {100 * share:.1f} %"
        parts.append(
            pointed(
                tip,
                box(x + 1, top + 1, cell - 2, _ROW - 2, fill=role, corner=3),
                text(middle, top + 18, f"{count:,}", role=ink, anchor="middle", bold=changed),
                text(middle, top + 33, f"{100 * share:.1f} %", size=SMALL - 1, role=ink,
                     anchor="middle"),
            )
        )  # fmt: skip
    share = sum(shares[1:4])
    parts.append(text(last, top + 25, f"{100 * share:.1f} %", size=BODY, anchor="end", bold=True))
    return join(parts)

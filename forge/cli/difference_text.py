"""A difference of two checkpoints as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from forge.cli.series import bar
from forge.cli.tables import plural, table
from forge.verify.sidecars import ABSENT

if TYPE_CHECKING:
    from forge.verify.arithmetic import Sums
    from forge.verify.difference import CheckpointDifference, TensorDifference

_BAR: Final = 16
_MOST_NAMES: Final = 20
_LONGEST_VALUE: Final = 60
_HEADS: Final = ("|A|", "|B|", "|A-B|", "RELATIVE", "COSINE", "MAX ABS", "EQUAL")


def difference_text(difference: CheckpointDifference, *, top: int, width: int | None) -> str:
    """Return a difference for reading.

    Args:
        difference: What was found.
        top: How many of the most changed tensors to list.
        width: Columns of the terminal; ``None`` wraps nothing.

    Returns:
        Many lines.
    """
    parts = [f"A = {difference.labels[0]}\nB = {difference.labels[1]}", _verdict(difference)]
    parts += [
        _names("Only in A", difference.only_a),
        _names("Only in B", difference.only_b),
    ]
    if difference.tensors and not difference.has_equal_tensors:
        parts += [_layers(difference, width), _top(difference, top, width)]
    if difference.config:
        cells = [(row.key, _value(row.a), _value(row.b)) for row in difference.config]
        parts.append(table(("CONFIG.JSON", "A", "B"), cells, width=width))
    if difference.files:
        states = [(row.name, row.state) for row in difference.files]
        parts.append(table(("FILE", "STATE"), states, width=width))
    return "\n\n".join(filter(None, parts))


def _verdict(difference: CheckpointDifference) -> str:
    if difference.is_identical:
        return f"No difference: {plural(len(difference.tensors), 'tensor')} with equal values."
    changed = sum(not row.is_equal for row in difference.tensors)
    shapes = sum(row.shapes[0] != row.shapes[1] for row in difference.tensors)
    dtypes = sum(row.dtypes[0] != row.dtypes[1] for row in difference.tensors)
    pieces = [f"{changed:,} of {plural(len(difference.tensors), 'common tensor')} differ"]
    pieces += [f"{shapes:,} in shape"] if shapes else []
    pieces += [f"{dtypes:,} in dtype"] if dtypes else []
    pieces.append(f"{plural(len(difference.config), 'config key')} and")
    return ", ".join(pieces) + f" {plural(len(difference.files), 'file')} differ."


def _names(title: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = len(names) - _MOST_NAMES
    lines = [f"{title}: {plural(len(names), 'tensor')}"]
    lines += [f"  {name}" for name in names[:_MOST_NAMES]]
    lines += [f"  and {more:,} more"] if more > 0 else []
    return "\n".join(lines)


def _layers(difference: CheckpointDifference, width: int | None) -> str:
    largest = max((row.sums.relative or 0.0 for row in difference.layers), default=0.0) or 1.0
    cells = [
        (
            row.place.label,
            f"{row.num_changed} of {row.num_tensors}",
            *_figures(row.sums),
            bar((row.sums.relative or 0.0) / largest, _BAR),
        )
        for row in difference.layers
    ]
    heads, right = ("PLACE", "CHANGED", *_HEADS, ""), ("CHANGED", *_HEADS)
    return table(heads, cells, right=right, width=width, can_drop_last=True)


def _top(difference: CheckpointDifference, top: int, width: int | None) -> str:
    rows = difference.most_changed(top)
    if not rows:
        return ""
    cells = [(*_tensor(row), _name(row)) for row in rows]
    return table((*_HEADS, "MOST CHANGED TENSORS"), cells, right=_HEADS, width=width)


def _tensor(row: TensorDifference) -> tuple[str, ...]:
    if row.sums is None:
        return ("–",) * len(_HEADS)
    if not row.is_float:
        return (*("–",) * (len(_HEADS) - 1), f"{row.sums.equal_share:.2%}")
    return _figures(row.sums)


def _name(row: TensorDifference) -> str:
    pieces = [row.name]
    if row.shapes[0] != row.shapes[1]:
        pieces.append(f"{list(row.shapes[0])} in A, {list(row.shapes[1])} in B")
    if row.dtypes[0] != row.dtypes[1]:
        pieces.append(f"{row.dtypes[0]} in A, {row.dtypes[1]} in B")
    if row.sums is not None and (row.sums.num_nonfinite_a or row.sums.num_nonfinite_b):
        pieces.append(
            f"NaN or Inf: {row.sums.num_nonfinite_a:,} in A, {row.sums.num_nonfinite_b:,} in B"
        )
    return "; ".join(pieces)


def _figures(sums: Sums) -> tuple[str, ...]:
    if not sums.num_elements:
        return ("–",) * len(_HEADS)
    numbers = (sums.norm_a, sums.norm_b, sums.norm_difference)
    record = sums.as_json()
    return (
        *("–" if number is None else f"{number:.4g}" for number in numbers),
        "–" if sums.relative is None else f"{sums.relative:.3%}",
        "–" if sums.cosine is None else f"{sums.cosine:.6f}",
        "–" if record["max_abs"] is None else f"{sums.max_abs:.4g}",
        f"{sums.equal_share:.2%}",
    )


def _value(value: object) -> str:
    text = value if value == ABSENT else json.dumps(value, ensure_ascii=False)
    text = str(text)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."

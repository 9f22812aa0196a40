"""What a merge measured as text: a table by layer, and a picture of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from forge.cli.series import Panel, bar, panels_of, sparkline
from forge.cli.tables import table
from forge.merge.catalog import METHODS
from forge.merge.diagnose import pairs

if TYPE_CHECKING:
    from forge.merge.diagnose import LayerRow
    from forge.verify.inspection import Inspection

_MOST_PAIRS: Final = 3
"""Cosine columns of a table; of more pairs the mean is shown."""
_BAR: Final = 16
_FALLBACK: Final = "FALLBACK"
Cell = Callable[["LayerRow"], str]
"""How to fill a column."""


def _are_task_vectors(inspection: Inspection) -> bool:
    """Tell whether the norms are of differences to a base, or of the models themselves."""
    if inspection.manifest is None:
        return False
    recipe, models = inspection.manifest.table("recipe"), inspection.manifest.models
    method = str(recipe.get("merge_method"))
    if recipe.get("base_model") is None or (method in METHODS and METHODS[method].base_is_merged):
        return False
    # A method that interpolates between the base and a model measures both of them.
    return _num_measured(inspection) <= max(len(models), 1)


def _num_measured(inspection: Inspection) -> int:
    return max((len(row.norms) for row in inspection.statistics), default=0)


def legend(inspection: Inspection) -> list[str]:
    """Return which number stands for which model.

    Args:
        inspection: What was found.

    Returns:
        One line per model.
    """
    if inspection.manifest is None:
        return []
    models, count = inspection.manifest.models, _num_measured(inspection)
    base = inspection.manifest.table("recipe").get("base_model")
    if count == len(models) + 1 and base is not None:
        models = (str(base), *models)
    if len(models) != count:
        # A stack takes its layers from different models, so a number has no one meaning.
        return [f"Numbers 1 to {count} are the models of each slice, in the recipe's order."]
    return [f"{number} = {model}" for number, model in enumerate(models, start=1)]


def panels(inspection: Inspection) -> tuple[Panel, ...]:
    """Return what was measured over the layers.

    Args:
        inspection: What was found.

    Returns:
        The panels; none for a checkpoint without statistics.
    """
    rows = [row for row in inspection.statistics if row.place.layer >= 0]
    whose = "task vectors" if _are_task_vectors(inspection) else "models"
    return panels_of(rows, norm_title=f"norm of the {whose}")


def statistics_table(inspection: Inspection, *, width: int | None) -> str:
    """Return what was measured as a table, one row per place.

    Args:
        inspection: Of a checkpoint that has statistics.
        width: Columns of the terminal; ``None`` wraps nothing.

    Returns:
        The legend and the table.
    """
    rows = inspection.statistics
    columns = _columns(inspection)
    cells = [[cell(row) for _, cell in columns] for row in rows]
    heads = [head for head, _ in columns]
    is_bar = heads[-1] != _FALLBACK
    text = table(heads, cells, right=heads[1:-1], width=width, can_drop_last=is_bar)
    return "\n".join([*legend(inspection), "", text])


def _columns(inspection: Inspection) -> list[tuple[str, Cell]]:
    """Return the columns that have something to show: their titles, and how to fill them."""
    rows = inspection.statistics
    num_models = _num_measured(inspection)
    num_kept = max(len(row.kept_shares) for row in rows)
    sign = "|δ|" if _are_task_vectors(inspection) else "|x|"
    columns: list[tuple[str, Cell]] = [
        ("PLACE", lambda row: row.place.label),
        ("TENSORS", lambda row: str(row.num_tensors)),
    ]
    columns += [
        (f"{sign} {number + 1}", _nth(lambda row: row.norms, number, _short))
        for number in range(num_models)
    ]
    couples = pairs(num_models)
    if len(couples) <= _MOST_PAIRS:
        columns += [
            (f"COS {b + 1}·{a + 1}", _nth(lambda row: row.cosines, number, _short))
            for number, (a, b) in enumerate(couples)
        ]
    else:
        columns.append(("MEAN COS", lambda row: _mean(row.cosines)))
    if any(row.conflict_share is not None for row in rows):
        columns.append(("CONFLICT", lambda row: _percent(row.conflict_share)))
    columns += [
        (f"KEPT {number + 1}", _nth(lambda row: row.kept_shares, number, _percent))
        for number in range(num_kept)
    ]
    if any(row.angle_degrees is not None for row in rows):
        columns.append(
            ("ANGLE", lambda row: "–" if row.angle_degrees is None else f"{row.angle_degrees:.2f}°")
        )
    columns += [
        (name.upper(), _note(name))
        for name in dict.fromkeys(name for row in rows for name in row.notes)
    ]
    if any(row.num_fallbacks for row in rows):
        return [*columns, (_FALLBACK, _fallback)]
    longest = max((row.norms[0] for row in rows if row.norms), default=0.0) or 1.0
    columns.append((sign, lambda row: bar(row.norms[0] / longest, _BAR) if row.norms else ""))
    return columns


def _nth(
    pick: Callable[[LayerRow], tuple[float, ...]],
    number: int,
    show: Callable[[float | None], str],
) -> Cell:
    def cell(row: LayerRow) -> str:
        values = pick(row)
        return show(values[number] if number < len(values) else None)

    return cell


def _note(name: str) -> Cell:
    return lambda row: _short(row.notes.get(name))


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _mean(values: tuple[float, ...]) -> str:
    return f"{sum(values) / len(values):.4g}" if values else "–"


def _fallback(row: LayerRow) -> str:
    if not row.num_fallbacks:
        return ""
    return f"{row.num_fallbacks} of {row.num_tensors}: {row.fallback}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def picture(inspection: Inspection) -> str:
    """Return what was measured as sparklines over the layers.

    Args:
        inspection: Of a checkpoint.

    Returns:
        One line per curve; empty when there is none.
    """
    drawn = panels(inspection)
    if not drawn:
        return ""
    layers = [row.place.layer for row in inspection.statistics if row.place.layer >= 0]
    lines = [f"Layers {layers[0]} to {layers[-1]}"]
    for panel in drawn:
        lines.append(f"  {panel.title}, from {panel.low:.3g} to {panel.high:.3g}")
        lines += [
            f"    {curve.label:>3}  {sparkline(curve, low=panel.low, high=panel.high)}"
            for curve in panel.curves
        ]
    return "\n".join(lines)

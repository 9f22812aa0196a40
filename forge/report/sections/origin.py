"""Where each model comes from, and the exact commands that make and measure it again."""

from __future__ import annotations

from forge.report.comparison import Comparison, Model
from forge.report.comparison.origin import Lineage, Parent
from forge.report.markup import EMPTY, Markup, element, join
from forge.report.sections.parts import (
    ABSENT,
    Cell,
    Column,
    Section,
    bullets,
    code,
    fold,
    named,
    paragraph,
    swatch,
    table,
)
from forge.report.words import size_text


def lineage(comparison: Comparison) -> Section:
    """Lay out an overview, then recipe, parents, hashes and commands of each model."""
    parts: list[Markup] = [_overview(comparison)]
    parts += [_one(comparison, found) for found in comparison.lineage]
    if comparison.commands:
        parts.append(element("h3", None, "Everything again"))
        parts.append(code("\n".join(comparison.commands)))
    return Section("lineage", "Lineage", join(parts))


def _overview(comparison: Comparison) -> Markup:
    columns = [
        Column("Model", numeric=False, first="ascending"),
        Column("Made by", numeric=False, first="ascending"),
        Column("From", numeric=False, first="ascending"),
        Column("Licence", numeric=False, first="ascending"),
        Column("Parameters"),
        Column("Fingerprint", numeric=False, first=None),
    ]
    made = {found.model: found for found in comparison.lineage}
    rows = [_row(comparison, model, made.get(model.label)) for model in comparison.models]
    return table("lineage-table", columns, rows, caption="All models of this report.")


def _row(comparison: Comparison, model: Model, found: Lineage | None) -> list[Cell]:
    parents = model.members if found is None else tuple(_name(parent) for parent in found.parents)
    licence = model.licence if found is None else found.licence
    count = model.num_parameters
    made_by = {"api": "behind an API", "ensemble": "ensemble"}.get(model.kind)
    if found is not None and found.made_by is not None:
        made_by = f"forge {found.made_by}"
    fingerprint = element("code", {"title": model.fingerprint}, model.fingerprint[:12])
    return [
        named(comparison, model.label),
        Cell(made_by or "elsewhere"),
        Cell(", ".join(parents) or "–", role="label-cell"),
        Cell(licence or "unknown"),
        ABSENT if count is None else Cell(f"{count:,}", float(count)),
        Cell(fingerprint, model.fingerprint),
    ]


def _one(comparison: Comparison, found: Lineage) -> Markup:
    title = join((swatch(comparison, found.model), found.model))
    body: list[Markup] = []
    if found.commands:
        body += [element("h3", None, "Commands"), code("\n".join(found.commands))]
    if found.recipe is not None:
        name = (
            f"Recipe, resolved ({found.recipe_file})" if found.recipe_file else "Recipe, resolved"
        )
        body += [element("h3", None, name), code(found.recipe)]
    if found.parents:
        body += [element("h3", None, "Parents"), *(_parent(parent) for parent in found.parents)]
    facts = [*found.versions]
    if found.content_digest is not None:
        facts.append(("digest of all tensors", found.content_digest))
    if facts:
        body += [element("h3", None, "Versions and digest"), pairs(facts)]
    if found.notices:
        body += [element("h3", None, "Notices"), bullets(found.notices)]
    if not body:
        body.append(paragraph("It was not made by forge; nothing is recorded.", role="mute"))
    return fold(title, *body)


def _parent(parent: Parent) -> Markup:
    facts = [
        ("name", _name(parent)),
        ("role", parent.role),
        ("licence", parent.licence or "unknown"),
    ]
    if parent.revision is not None:
        facts.append(("revision", parent.revision))
    facts += [(file.name, f"{size_text(file.num_bytes)}, {file.digest}") for file in parent.files]
    return pairs(facts)


def _name(parent: Parent) -> str:
    if parent.label is None or parent.label == parent.name:
        return parent.name
    return f"{parent.label} ({parent.name})"


def pairs(facts: list[tuple[str, str]]) -> Markup:
    """Lay out names and values."""
    parts = [join((element("dt", None, name), element("dd", None, value))) for name, value in facts]
    return element("dl", {"class": "pairs"}, *parts) if parts else EMPTY

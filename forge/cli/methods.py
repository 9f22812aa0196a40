"""``forge methods``: what the catalog says. Loads nothing but the catalog."""

from __future__ import annotations

import dataclasses

import click

from forge import api
from forge.cli import console
from forge.cli.options import debug_option, json_option
from forge.cli.tables import table
from forge.recipes.parameters import MethodRow, ParameterRow


@click.command("methods")
@click.argument("name", required=False)
@json_option
@debug_option
def command(name: str | None, as_json: bool) -> None:
    """List the merge methods, or explain one.

    NAME is a method, such as dare_ties. Without it all methods are listed.
    """
    catalog = api.methods()
    if name is not None and name not in catalog:
        guess = catalog.suggest(name) or f" Known: {', '.join(catalog.names())}."
        raise click.UsageError(f"There is no merge method '{name}'.{guess}")
    rows = list(catalog) if name is None else [catalog[name]]
    if as_json:
        records = [dataclasses.asdict(row) for row in rows]
        console.result_json(records if name is None else records[0])
    elif name is None:
        console.result(_listing(rows))
    else:
        console.result(_explanation(rows[0]))


def _listing(rows: list[MethodRow]) -> str:
    cells = [
        (row.name, _models(row), ", ".join(item.name for item in row.parameters), row.title)
        for row in rows
    ]
    heads = ("METHOD", "MODELS", "PARAMETERS", "TITLE")
    text = table(heads, cells, width=console.width(), can_drop_last=True)
    return f"{text}\n\n'forge methods NAME' shows formula, source, defaults and ranges."


def _explanation(row: MethodRow) -> str:
    lines = [
        f"{row.name} – {row.title}",
        "",
        f"  formula    {row.formula}",
        f"  reference  {row.reference}",
        f"  models     {_models(row)}",
        f"  symmetric  {'yes' if row.symmetric else 'no: the order of the models matters'}",
    ]
    if row.random:
        lines.append("  random     yes: 'seed' in the recipe or --seed chooses the drops")
    if row.statistics:
        lines.append(f"  needs      'forge calibrate MODEL --statistics {row.statistics}' of each")
    if row.differs:
        lines.append(f"  differs    {row.differs}")
    if not row.parameters:
        return "\n".join([*lines, "", "No parameters."])
    cells = [
        (item.name, "each model" if item.scope == "model" else "whole merge", _default(item),
         _range(item), "yes" if item.gradient else "no", item.meaning)
        for item in row.parameters
    ]  # fmt: skip
    heads = ("PARAMETER", "FOR", "DEFAULT", "VALUES", "GRADIENT", "MEANING")
    return "\n".join([*lines, "", table(heads, cells, width=console.width())])


def _models(row: MethodRow) -> str:
    if row.max_models is None:
        count = f"{row.min_models} or more"
    elif row.max_models == row.min_models:
        count = str(row.min_models)
    else:
        count = f"{row.min_models} to {row.max_models}"
    bases = {"required": f"base + {count}", "optional": f"{count}, base optional"}
    return bases.get(row.base, count)


def _default(item: ParameterRow) -> str:
    if item.required:
        return "required"
    return "–" if item.default is None else _value(item.default)


def _range(item: ParameterRow) -> str:
    if item.kind == "choice":
        return " | ".join(item.choices)
    if item.kind == "boolean":
        return "true | false"
    if item.low is None and item.high is None:
        return f"any {item.kind}"
    low = "-∞" if item.low is None else _value(item.low)
    high = "∞" if item.high is None else _value(item.high)
    kind = "whole number " if item.kind == "integer" else ""
    return f"{kind}{low} to {high}"


def _value(value: float | bool | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else f"{value:g}"

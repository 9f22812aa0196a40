"""Read a ``parameters`` mapping against a method: which names it may hold, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from forge.core.catalog import Catalog
from forge.recipes.findings import Findings
from forge.recipes.parameters import MethodRow
from forge.recipes.place import KeyPath
from forge.recipes.setting_reader import read_setting
from forge.recipes.settings import Setting

Level = Literal["global", "slice", "model"]
"""Where parameters stand: at the top or in the module, in an output slice, or in a model."""


def read_parameters(
    value: Mapping[str, object] | None,
    path: KeyPath,
    level: Level,
    *,
    method: MethodRow | None,
    methods: Catalog[MethodRow],
    findings: Findings,
) -> dict[str, Setting]:
    """Read one ``parameters`` mapping.

    Args:
        value: The mapping, or ``None`` when it is absent.
        path: Where it stands.
        level: At which level it stands.
        method: The merge method; ``None`` while it is unknown, when only names are judged.
        methods: All methods, to say whose parameter a wrong name is.
        findings: Receives every problem.

    Returns:
        The settings that could be read, by name.
    """
    settings: dict[str, Setting] = {}
    for name, item in (value or {}).items():
        at = (*path, name)
        owners = [row.name for row in methods if row.parameter(name) is not None]
        if method is None:
            if not owners:
                every = [known.name for row in methods for known in row.parameters]
                guess = findings.guess(at, every)
                findings.add(at, f"No merge method has this parameter.{guess}")
            continue
        row = method.parameter(name)
        if row is None:
            findings.add(at, _foreign(at, owners, method, findings))
        elif row.scope == "global" and level == "model":
            findings.add(
                at,
                f"{method.name} has one '{name}' for the whole merge, not one for each model. "
                "Move it to the top-level 'parameters'.",
            )
        elif (setting := read_setting(item, row, at, findings)) is not None:
            settings[name] = setting
    return settings


def with_defaults(parameters: Mapping[str, Setting], method: MethodRow) -> dict[str, Setting]:
    """End every parameter in its default, so that a recipe says all that it means.

    Args:
        parameters: What is written.
        method: Whose defaults.
    """
    filled: dict[str, Setting] = {}
    for row in method.parameters:
        setting = parameters.get(row.name, Setting())
        if row.default is not None:
            setting = setting.then(Setting.constant(row.default))
        if setting.rules:
            filled[row.name] = setting
    return filled


def _foreign(path: KeyPath, owners: list[str], method: MethodRow, findings: Findings) -> str:
    own = [row.name for row in method.parameters]
    takes = f"takes {', '.join(own)}" if own else "takes no parameters"
    if not owners:
        return f"{method.name} has no such parameter; it {takes}.{findings.guess(path, own)}"
    return (
        f"{method.name} has no such parameter; it {takes}. '{path[-1]}' is for {', '.join(owners)}."
    )

"""Read a parameter's value against its row: scalar, gradient, or values behind filters."""

from __future__ import annotations

import math

from forge.core.catalog import did_you_mean
from forge.recipes.findings import Findings, shown
from forge.recipes.parameters import ParameterRow, ParameterValue
from forge.recipes.place import KeyPath
from forge.recipes.settings import Rule, Setting
from forge.recipes.shapes import ConditionShape, fit


def read_setting(
    value: object, row: ParameterRow, path: KeyPath, findings: Findings
) -> Setting | None:
    """Read one parameter.

    Args:
        value: A scalar, a list of scalars over the layers, ``{filter, value}`` or a list of
            such.
        row: What the parameter may be.
        path: Where it stands.
        findings: Receives every problem.

    Returns:
        The setting, or ``None`` when a problem was found.
    """
    before = len(findings.problems)
    if isinstance(value, dict):
        rules = [_read_condition(value, row, path, findings)]
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        rules = [
            _read_condition(item, row, (*path, index), findings) for index, item in enumerate(value)
        ]
        _report_unreached(rules, findings)
    else:
        rules = [Rule(None, _read_anchors(value, row, path, findings), findings.place(path))]
    return Setting(tuple(rules)) if len(findings.problems) == before else None


def _read_condition(value: object, row: ParameterRow, path: KeyPath, findings: Findings) -> Rule:
    if not isinstance(value, dict):
        findings.add(
            path,
            f"{shown(value)} stands in a list with filters. Write it as '- value: {shown(value)}'.",
        )
        return Rule(None, (), findings.place(path))
    before = len(findings.problems)
    shape = fit(ConditionShape, value, path, findings)
    anchors: tuple[ParameterValue, ...] = ()
    inner = shape.value
    if "value" not in value:
        findings.missing(
            (*path, "value"), "This item has no 'value'. Write '- filter: ...' and 'value: ...'."
        )
    elif isinstance(inner, dict) or (
        isinstance(inner, list) and any(isinstance(item, dict) for item in inner)
    ):
        findings.add((*path, "value"), "A filter stands inside a filter. Write one list of them.")
    else:
        anchors = _read_anchors(inner, row, (*path, "value"), findings)
    if len(findings.problems) > before:
        anchors = ()
    return Rule(None if shape.filter == "*" else shape.filter, anchors, findings.place(path))


def _report_unreached(rules: list[Rule], findings: Findings) -> None:
    for index, rule in enumerate(rules):
        for earlier in rules[:index]:
            if not earlier.anchors or not rule.anchors:
                continue
            if earlier.filter is None or earlier.filter in (rule.filter or ""):
                what = "every tensor" if earlier.filter is None else f"'{earlier.filter}'"
                findings.add(
                    rule.place.path,
                    f"This value is never reached: the first match wins, and the value for {what} "
                    "stands before it. Put the narrower filter first.",
                )
                break


def _read_anchors(
    value: object, row: ParameterRow, path: KeyPath, findings: Findings
) -> tuple[ParameterValue, ...]:
    if not isinstance(value, list):
        anchor = read_scalar(value, row, path, findings)
        return () if anchor is None else (anchor,)
    if not value:
        findings.add(path, "This list is empty. Write one value, or one for each of some layers.")
        return ()
    if not row.gradient:
        findings.add(path, f"'{row.name}' takes one value, not a list over the layers.")
        return ()
    read = [read_scalar(item, row, (*path, index), findings) for index, item in enumerate(value)]
    return tuple(anchor for anchor in read if anchor is not None)


def read_scalar(
    value: object, row: ParameterRow, path: KeyPath, findings: Findings
) -> ParameterValue | None:
    """Read one value of a parameter.

    Args:
        value: A plain value.
        row: What the parameter may be.
        path: Where it stands.
        findings: Receives a problem when the value is none that the row permits.

    Returns:
        A float for a number or integer, a bool, or a word of the choices; else ``None``.
    """
    fault, result = _judge(value, row)
    if fault:
        findings.add(path, fault)
    return result


def _judge(value: object, row: ParameterRow) -> tuple[str, ParameterValue | None]:
    if row.kind == "boolean":
        if isinstance(value, bool):
            return "", value
        return f"{shown(value)} is not a boolean. Write true or false.", None
    if row.kind == "choice":
        return _judge_choice(value, row)
    return _judge_number(value, row)


def _judge_choice(value: object, row: ParameterRow) -> tuple[str, ParameterValue | None]:
    if isinstance(value, bool) and "none" in row.choices:
        # mergekit's recipes switch with booleans what forge lets one choose by name.
        return "", row.choices[0] if value else "none"
    if isinstance(value, str) and value in row.choices:
        return "", value
    guess = did_you_mean(value, row.choices) if isinstance(value, str) else ""
    return f"{shown(value)} is none of {', '.join(row.choices)}.{guess}", None


def _judge_number(value: object, row: ParameterRow) -> tuple[str, ParameterValue | None]:
    wanted = "a whole number" if row.kind == "integer" else "a number"
    if isinstance(value, bool):
        return f"{shown(value)} is a boolean, but '{row.name}' is {wanted}: {row.meaning}.", None
    if isinstance(value, str):
        advice = "Remove the quotes" if _is_number(value) else f"Write {wanted}"
        return f"{shown(value)} is text, but '{row.name}' is {wanted}. {advice}.", None
    if value is None:
        return f"There is no value. '{row.name}' is {wanted}: {row.meaning}.", None
    if not isinstance(value, (int, float)):
        return f"{shown(value)} stands where '{row.name}' needs {wanted}.", None
    number = float(value) if abs(value) < 2**1000 else math.inf
    if not math.isfinite(number):
        return f"{value} is not finite. '{row.name}' is {wanted}: {row.meaning}.", None
    if row.kind == "integer" and not number.is_integer():
        return f"{value} is not a whole number. {row.name}: {row.meaning}.", None
    low, high = row.low, row.high
    if (low is not None and number < low) or (high is not None and number > high):
        return (
            f"{value} is {_outside(low, high)}. {row.advice or f'{row.name}: {row.meaning}.'}",
            None,
        )
    return "", number


def _outside(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"outside [{low:g}, {high:g}]"
    return f"below {low:g}" if low is not None else f"above {high:g}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

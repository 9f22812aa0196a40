"""What a merge method demands of the models that a recipe lists: how many, which base, which
parameters. Works on what was written, so that a value that is wrong is not called missing, too.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from forge.recipes.findings import Findings
from forge.recipes.parameters import MethodRow
from forge.recipes.place import KeyPath
from forge.recipes.reference import ModelReference


@dataclass(frozen=True, slots=True)
class Listed:
    """A model as an item of ``models`` or ``sources`` names it.

    Attributes:
        model: The model, or ``None`` when it could not be read.
        given: Names of the parameters written for it, right or wrong.
        path: Where the item stands.
    """

    model: ModelReference | None
    given: frozenset[str]
    path: KeyPath


@dataclass(frozen=True, slots=True)
class Group:
    """Models that are merged with each other: all of ``models``, or the sources of a slice.

    Attributes:
        listed: The models.
        base: The base that holds here, or ``None``.
        outer: Names of the parameters written at the outer levels.
        path: Where the group stands.
        is_slice: Whether it is a slice, to which the base is not added.
        method: How they are merged, or ``None`` when that could not be read.
        has_own_method: Whether it is a slice that names a method other than the recipe's.
    """

    listed: tuple[Listed, ...]
    base: ModelReference | None
    outer: frozenset[str]
    path: KeyPath
    is_slice: bool
    method: MethodRow | None
    has_own_method: bool = False

    @property
    def method_path(self) -> KeyPath:
        """Where its method is named."""
        return (*self.path, "merge_method") if self.has_own_method else ("merge_method",)

    @property
    def parameters_path(self) -> KeyPath:
        """Where parameters for all of its models are written."""
        return (*self.path, "parameters") if self.has_own_method else ("parameters",)


def check_group(group: Group, findings: Findings) -> None:
    """Report models listed twice, too few or many models, and missing parameters."""
    method = group.method
    if method is None:
        return
    are_distinct = _check_repeats(group.listed, findings)
    if any(item.model is None for item in group.listed):
        return
    if are_distinct and _check_base_present(method, group, findings):
        _check_count(method, group, findings)
    _check_required(method, group, findings)
    _note_unused(method, group, findings)


def has_own_values(method: MethodRow, model: ModelReference, base: ModelReference | None) -> bool:
    """Return whether a model takes part with parameters of its own, as the base mostly does not."""
    return model != base or method.base_is_merged


def check_base(groups: Sequence[Group], findings: Findings) -> None:
    """Report a base that a method needs or does not take, once for the whole recipe."""
    path: KeyPath = ("base_model",)
    for group in groups:
        method = group.method
        if method is None:
            continue
        if method.base == "forbidden" and group.base is not None:
            findings.add(path, f"{method.name} takes no base model. Remove 'base_model'.")
        elif method.base == "required" and group.base is None:
            findings.missing(
                path,
                f"{method.name} needs a base model. Add 'base_model: ...', the model from which "
                "the others were fine-tuned.",
                at=group.method_path,
            )


def _check_repeats(listed: Iterable[Listed], findings: Findings) -> bool:
    are_distinct = True
    seen: dict[ModelReference, Listed] = {}
    spelt: dict[tuple[object, ...], ModelReference] = {}
    for item in listed:
        if item.model is None:
            continue
        path = (*item.path, "model")
        if item.model in seen:
            line = findings.place(seen[item.model].path).line
            where = "" if line is None else f" on line {line}"
            findings.add(path, f"{item.model} is listed already{where}. List each model once.")
            are_distinct = False
            continue
        key = _spelling(item.model)
        if key in spelt:
            findings.add(path, f"{item.model} is the same as {spelt[key]}. List each model once.")
        seen[item.model] = item
        spelt.setdefault(key, item.model)
    return are_distinct


def _spelling(model: ModelReference) -> tuple[object, ...]:
    lora = None if model.lora is None else _spelling(model.lora)
    return (os.path.normpath(model.path), model.revision, lora)


def _check_count(method: MethodRow, group: Group, findings: Findings) -> None:
    if group.base is None and method.base == "required":
        return
    merged = [item for item in group.listed if item.model != group.base]
    beside = group.base is not None and not method.base_is_merged
    count = len(merged) if beside else len(group.listed)
    low, high = method.min_models, method.max_models
    if low <= count and (high is None or count <= high):
        return
    if high is None:
        wanted = f"at least {_models(low)}"
    elif low == high:
        wanted = f"exactly {_models(low)}"
    else:
        wanted = f"{low} to {_models(high)}"
    suffix = " beside the base model" if beside or method.base == "required" else ""
    verb = "is" if count == 1 else "are"
    path = (*group.path, "sources") if group.is_slice else group.path
    findings.add(path, f"{method.name} takes {wanted}{suffix}, but {count} {verb} listed.")


def _models(count: int) -> str:
    return f"{count} model" if count == 1 else f"{count} models"


def _check_base_present(method: MethodRow, group: Group, findings: Findings) -> bool:
    if not group.is_slice or method.base != "required" or group.base is None:
        return True
    is_absent = all(item.model != group.base for item in group.listed)
    if is_absent:
        findings.add(
            (*group.path, "sources"),
            f"The base model {group.base} is not among these sources, and {method.name} needs its "
            "layers here. Add '- model: ...' with the layer_range that matches.",
        )
    return not is_absent


def _check_required(method: MethodRow, group: Group, findings: Findings) -> None:
    for row in method.parameters:
        if not row.required or row.name in group.outer:
            continue
        if (*group.parameters_path, row.name) in findings.misspelt:
            continue
        whose = "this slice's" if group.has_own_method else "the top-level"
        needs = f"{method.name} needs it ({row.name}: {row.meaning})"
        if row.scope == "global":
            findings.missing(
                (*group.parameters_path, row.name),
                f"{needs}. Add it to {whose} 'parameters'.",
                at=group.method_path,
            )
            continue
        if group.base is None and method.base == "required":
            continue
        for item in group.listed:
            if item.model is None or not has_own_values(method, item.model, group.base):
                continue
            if row.name not in item.given:
                findings.missing(
                    (*item.path, "parameters", row.name),
                    f"{needs}. Write it here, or once for all in {whose} 'parameters'.",
                )
        listed = [item.model for item in group.listed]
        is_added = not group.is_slice and group.base is not None and group.base not in listed
        if is_added and method.base_is_merged:
            findings.add(
                ("base_model",),
                f"{method.name} merges the base model like the others, so it needs a "
                f"'{row.name}'. List {group.base} among 'models' with one, or remove 'base_model'.",
            )


def _note_unused(method: MethodRow, group: Group, findings: Findings) -> None:
    if method.base != "required":
        return
    for item in group.listed:
        if item.model is not None and item.model == group.base and item.given:
            names = ", ".join(f"'{name}'" for name in sorted(item.given))
            findings.notices.append(
                f"{names} of {item.model} is not used: it is the base model, and {method.name} "
                "merges the differences of the others to it."
            )

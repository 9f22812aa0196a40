"""Read ``slices``: runs of layers, each merged from ranges of layers of several models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from forge.recipes.findings import Findings
from forge.recipes.merge_entries import SliceEntry, SourceEntry
from forge.recipes.method_rules import Group, Listed
from forge.recipes.parameter_reader import Level, with_defaults
from forge.recipes.parameters import MethodRow
from forge.recipes.place import KeyPath
from forge.recipes.reference import ModelReference
from forge.recipes.settings import Setting
from forge.recipes.shapes import SliceShape, SourceShape, fit


class ParameterReader(Protocol):
    """Reads one ``parameters`` mapping at a level, against a method."""

    def __call__(
        self,
        raw: Mapping[str, object] | None,
        path: KeyPath,
        level: Level,
        method: MethodRow | None,
        /,
    ) -> dict[str, Setting]: ...


class MethodReader(Protocol):
    """Looks up the name of a method, and reports one that is not known."""

    def __call__(self, name: str, path: KeyPath, /) -> MethodRow | None: ...


@dataclass(frozen=True, slots=True)
class Outer:
    """What stands around the slices.

    Attributes:
        base: The recipe's base model.
        method: The recipe's method, or ``None`` when it could not be read.
        written: Names of the parameters written at the outer levels.
        read: Reads parameters.
        choose: Reads the name of a method.
        findings: Receives every problem.
        hints: What to do about parameters written outside ``parameters``.
    """

    base: ModelReference | None
    method: MethodRow | None
    written: frozenset[str]
    read: ParameterReader
    choose: MethodReader
    findings: Findings
    hints: dict[str, str]


def read_slices(
    items: list[object], path: KeyPath, outer: Outer
) -> tuple[tuple[SliceEntry, ...], list[Group]]:
    """Read ``slices``.

    A slice that names its own ``merge_method`` is on its own: parameters at the top are meant for
    the recipe's method and do not reach it, so that a name that both methods have is never read
    for the wrong one.

    Args:
        items: The list.
        path: Where it stands.
        outer: What stands around it.

    Returns:
        The slices that could be read, and the groups of models for the method's rules.
    """
    findings = outer.findings
    entries: list[SliceEntry] = []
    groups: list[Group] = []
    if not items:
        findings.add(path, "This list is empty. Add a slice: '- sources: ...'.")
    for index, item in enumerate(items):
        at = (*path, index)
        shape = fit(SliceShape, item, at, findings, hints=outer.hints)
        if shape.residual_weight is not None:
            findings.notices.append("'residual_weight' has no effect; mergekit ignores it as well.")
        own_base = findings.reference(shape.base_model, (*at, "base_model"))
        name = shape.merge_method
        method = outer.method if name is None else outer.choose(name, (*at, "merge_method"))
        is_own = name is not None and method != outer.method
        parameters = outer.read(shape.parameters, (*at, "parameters"), "slice", method)
        if isinstance(item, dict) and not item.get("sources"):
            findings.missing((*at, "sources"), "This slice has no sources. Add 'sources: ...'.")
            continue
        if shape.sources is None:
            continue
        sources, listed = _read_sources(shape.sources, (*at, "sources"), method, outer)
        written = frozenset(shape.parameters or ())
        if not is_own:
            written |= outer.written
        groups.append(
            Group(
                listed, own_base or outer.base, written, at,
                is_slice=True, method=method, has_own_method=is_own,
            )
        )  # fmt: skip
        if is_own and method is not None:
            parameters = with_defaults(parameters, method)
        entries.append(
            SliceEntry(
                sources, own_base, parameters, method if is_own else None, findings.place(at)
            )
        )
    return tuple(entries), groups


def _read_sources(
    items: list[object], path: KeyPath, method: MethodRow | None, outer: Outer
) -> tuple[tuple[SourceEntry, ...], tuple[Listed, ...]]:
    findings = outer.findings
    entries: list[SourceEntry] = []
    listed: list[Listed] = []
    for index, item in enumerate(items):
        at = (*path, index)
        shape = fit(SourceShape, item, at, findings, hints=outer.hints)
        parameters = outer.read(shape.parameters, (*at, "parameters"), "model", method)
        model = findings.reference(shape.model, (*at, "model"))
        if isinstance(item, dict):
            if item.get("model") is None:
                findings.missing((*at, "model"), "This item names no model. Add 'model: ...'.")
            if item.get("layer_range") is None:
                findings.missing(
                    (*at, "layer_range"),
                    "This source has no layer_range. Add, say, 'layer_range: [0, 32]'; the end is "
                    "not included.",
                )
        listed.append(Listed(model, frozenset(shape.parameters or ()), at))
        bounds = _read_range(shape.layer_range, (*at, "layer_range"), findings)
        if model is not None and bounds is not None:
            entries.append(SourceEntry(model, *bounds, parameters, findings.place(at)))
    _check_lengths(entries, findings)
    return tuple(entries), tuple(listed)


def _read_range(
    bounds: list[int] | None, path: KeyPath, findings: Findings
) -> tuple[int, int] | None:
    if bounds is None:
        return None
    start, end = bounds
    if start < 0 or end < 0:
        findings.add(path, f"{bounds} counts from below 0. Layers are counted from 0.")
        return None
    if start > end:
        findings.add(path, f"{bounds} runs backwards. Write [{end}, {start}].")
        return None
    if start == end:
        findings.add(path, f"{bounds} holds no layer: the end is not included.")
        return None
    return start, end


def _check_lengths(entries: list[SourceEntry], findings: Findings) -> None:
    for entry in entries[1:]:
        length, first = entry.end - entry.start, entries[0].end - entries[0].start
        if length != first:
            findings.add(
                (*entry.place.path, "layer_range"),
                f"[{entry.start}, {entry.end}] has {length} layers, but the first source of this "
                f"slice has {first}. Sources of a slice are merged layer by layer; give them the "
                "same length.",
            )

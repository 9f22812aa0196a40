"""Read ``slices``: runs of layers, each merged from ranges of layers of several models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from forge.recipes.findings import Findings
from forge.recipes.merge_entries import SliceEntry, SourceEntry
from forge.recipes.method_rules import Group, Listed
from forge.recipes.parameter_reader import Level
from forge.recipes.place import KeyPath
from forge.recipes.reference import ModelReference
from forge.recipes.settings import Setting
from forge.recipes.shapes import SliceShape, SourceShape, fit

_ONE_METHOD = "A recipe has one merge_method, at the top; make two recipes."


class ParameterReader(Protocol):
    """Reads one ``parameters`` mapping at a level."""

    def __call__(
        self, raw: Mapping[str, object] | None, path: KeyPath, level: Level, /
    ) -> dict[str, Setting]: ...


def read_slices(
    items: list[object],
    path: KeyPath,
    base: ModelReference | None,
    outer: frozenset[str],
    read: ParameterReader,
    findings: Findings,
    hints: dict[str, str],
) -> tuple[tuple[SliceEntry, ...], list[Group]]:
    """Read ``slices``.

    Args:
        items: The list.
        path: Where it stands.
        base: The recipe's base model.
        outer: Names of the parameters written at the outer levels.
        read: Reads parameters.
        findings: Receives every problem.
        hints: What to do about parameters written outside ``parameters``.

    Returns:
        The slices that could be read, and the groups of models for the method's rules.
    """
    entries: list[SliceEntry] = []
    groups: list[Group] = []
    if not items:
        findings.add(path, "This list is empty. Add a slice: '- sources: ...'.")
    for index, item in enumerate(items):
        at = (*path, index)
        shape = fit(SliceShape, item, at, findings, hints={**hints, "merge_method": _ONE_METHOD})
        if shape.residual_weight is not None:
            findings.notices.append("'residual_weight' has no effect; mergekit ignores it as well.")
        own_base = findings.reference(shape.base_model, (*at, "base_model"))
        parameters = read(shape.parameters, (*at, "parameters"), "slice")
        if isinstance(item, dict) and not item.get("sources"):
            findings.missing((*at, "sources"), "This slice has no sources. Add 'sources: ...'.")
            continue
        if shape.sources is None:
            continue
        sources, listed = _read_sources(shape.sources, (*at, "sources"), read, findings, hints)
        written = outer | frozenset(shape.parameters or ())
        groups.append(Group(listed, own_base or base, written, at, is_slice=True))
        entries.append(SliceEntry(sources, own_base, parameters, findings.place(at)))
    return tuple(entries), groups


def _read_sources(
    items: list[object],
    path: KeyPath,
    read: ParameterReader,
    findings: Findings,
    hints: dict[str, str],
) -> tuple[tuple[SourceEntry, ...], tuple[Listed, ...]]:
    entries: list[SourceEntry] = []
    listed: list[Listed] = []
    for index, item in enumerate(items):
        at = (*path, index)
        shape = fit(SourceShape, item, at, findings, hints=hints)
        parameters = read(shape.parameters, (*at, "parameters"), "model")
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

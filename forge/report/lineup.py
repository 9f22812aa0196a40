"""Which models a report shows, in what order, and what each is compared with.

A variant's baseline is what it was made from: the source of a quantization, the base of a merge,
found by the name that its manifest gives and the place where a measured model lay. Whatever has no
such parent here is compared with the first source, so that nobody is left without a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from forge.core.catalog import did_you_mean
from forge.core.errors import ResultsError
from forge.report.comparison import Model
from forge.results.records import ModelRecord

_SHORT: Final = 6
"""Digits of a fingerprint that tell models of one label apart."""
_PARENT_ROLES: Final = ("source", "base")


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the report.

    Attributes:
        label: Unique.
        record: What is stored of it.
        baseline: Fingerprint of what it is compared with, or ``None``.
    """

    label: str
    record: ModelRecord
    baseline: str | None


@dataclass(frozen=True, slots=True)
class Lineup:
    """The models of a report.

    Attributes:
        entries: Sources before their variants; APIs and ensembles last.
        notices: What the reader should know about the choice.
    """

    entries: tuple[Entry, ...]
    notices: tuple[str, ...]

    def label_of(self, fingerprint: str) -> str | None:
        """Return a model's label, or ``None`` where it is not in the report."""
        return next((e.label for e in self.entries if e.record.fingerprint == fingerprint), None)

    def models(self) -> tuple[Model, ...]:
        """Return what tables show of each model."""
        return tuple(_shown(entry, self) for entry in self.entries)


def line_up(
    records: Sequence[ModelRecord], *, wanted: Sequence[str] = (), baseline: str | None = None
) -> Lineup:
    """Choose, name and order the models.

    Args:
        records: All models of the results file, the oldest first.
        wanted: Labels of the models to show; empty for all.
        baseline: Label of the model that all others are compared with.

    Returns:
        The models.

    Raises:
        ResultsError: There are no models, or a label is not there.
    """
    if not records:
        raise ResultsError(
            "The results file holds no model. Measure one first, with 'forge eval' or "
            "'forge profile'."
        )
    current, notices = _current(records)
    labels = _labels(current)
    kept = _wanted(current, labels, (*wanted, *([baseline] if wanted and baseline else [])))
    against = None if baseline is None else _find(baseline, kept, labels).fingerprint
    parents = {record.fingerprint: _parent(record, kept) for record in kept}
    root = next((r for r in kept if r.kind == "local" and parents[r.fingerprint] is None), kept[0])
    baselines = _baselines(kept, parents, root.fingerprint if against is None else against, against)
    notices += [
        f"'{labels[r.fingerprint]}' is compared with '{labels[root.fingerprint]}', because what it "
        "was quantized from is not recorded or not measured; --baseline sets another."
        for r in kept
        if against is None and r.format is not None and parents[r.fingerprint] is None
        and r is not root
    ]  # fmt: skip
    entries = [
        Entry(labels[record.fingerprint], record, baselines[record.fingerprint])
        for record in _ordered(kept, baselines)
    ]
    return Lineup(tuple(entries), tuple(notices))


def _current(records: Sequence[ModelRecord]) -> tuple[list[ModelRecord], list[str]]:
    """Leave out what lay at the same place before and is there no more."""
    newest = {(record.label, record.location): record.fingerprint for record in records}
    kept = [r for r in records if newest[(r.label, r.location)] == r.fingerprint]
    notices = []
    for label in dict.fromkeys(r.label for r in records if r not in kept):
        count = sum(r.label == label for r in records if r not in kept)
        what = "an earlier model" if count == 1 else f"{count} earlier models"
        notices.append(f"Left out: {what} that lay where '{label}' lies now.")
    return kept, notices


def _labels(records: Sequence[ModelRecord]) -> dict[str, str]:
    labels = [record.label for record in records]
    return {
        record.fingerprint: record.label
        if labels.count(record.label) == 1
        else f"{record.label}@{record.fingerprint[:_SHORT]}"
        for record in records
    }


def _wanted(
    records: Sequence[ModelRecord], labels: Mapping[str, str], wanted: Sequence[str]
) -> list[ModelRecord]:
    if not wanted:
        return list(records)
    chosen = {_find(label, records, labels).fingerprint for label in wanted}
    return [record for record in records if record.fingerprint in chosen]


def _find(label: str, records: Sequence[ModelRecord], labels: Mapping[str, str]) -> ModelRecord:
    found = next((r for r in records if labels[r.fingerprint] == label), None)
    if found is None:
        known = [labels[record.fingerprint] for record in records]
        raise ResultsError(
            f"There is no model '{label}' among the results.{did_you_mean(label, known)} "
            f"Known: {', '.join(known)}."
        )
    return found


def _parent(record: ModelRecord, records: Sequence[ModelRecord]) -> str | None:
    """Return the fingerprint of what a model was made from, where that was measured."""
    manifest = record.manifest or {}
    origin = manifest.get("origin")
    # A conversion's input is another layout of the same codes; what counts is their source.
    for place in (origin if isinstance(origin, Mapping) else {}, manifest):
        inputs = place.get("inputs")
        rows = inputs if isinstance(inputs, list) else []
        entries = [each for each in rows if isinstance(each, Mapping)]
        entries.sort(key=lambda entry: entry.get("role") not in _PARENT_ROLES)
        for entry in entries[:1]:
            found = measured(str(entry.get("model")), records, but=record.fingerprint)
            if found is not None:
                return found.fingerprint
    return None


def measured(
    name: str, records: Sequence[ModelRecord], *, but: str | None = None
) -> ModelRecord | None:
    """Find the measured model that a manifest names.

    Args:
        name: A path, the last part of one, or a repository on the Hub.
        records: Measured models.
        but: Fingerprint of one that it cannot be.

    Returns:
        The model at that place; failing that, the last one whose label or folder has that name.
    """
    others = [r for r in records if r.fingerprint != but and r.kind == "local"]
    exact = [record for record in others if record.location == name]
    last = PurePath(name).name
    alike = [r for r in others if last in (r.label, PurePath(r.location).name)]
    return next(reversed(exact or alike), None)


def _baselines(
    records: Sequence[ModelRecord],
    parents: Mapping[str, str | None],
    default: str,
    against: str | None,
) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for record in records:
        parent = against or parents[record.fingerprint] or default
        found[record.fingerprint] = None if parent == record.fingerprint else parent
    # Names can be made to point in a circle; whoever would close one is a source.
    for record in records:
        seen, at = {record.fingerprint}, found[record.fingerprint]
        while at is not None and at not in seen:
            seen.add(at)
            at = found[at]
        if at is not None:
            found[record.fingerprint] = None
    return found


def _ordered(
    records: Sequence[ModelRecord], baselines: Mapping[str, str | None]
) -> list[ModelRecord]:
    local = [record for record in records if record.kind == "local"]
    present = {record.fingerprint for record in local}
    ordered: list[ModelRecord] = []

    def add(record: ModelRecord) -> None:
        ordered.append(record)
        for child in local:
            if baselines[child.fingerprint] == record.fingerprint:
                add(child)

    for record in local:
        if baselines[record.fingerprint] not in present:
            add(record)
    return [*ordered, *(record for record in records if record.kind != "local")]


def _shown(entry: Entry, lineup: Lineup) -> Model:
    record = entry.record
    size, count = record.weight_bytes, record.num_parameters
    return Model(
        label=entry.label,
        fingerprint=record.fingerprint,
        kind=record.kind,
        baseline=None if entry.baseline is None else lineup.label_of(entry.baseline),
        architecture=record.architecture,
        method=record.method,
        format=record.format,
        version=_version(record.format),
        bits=record.bits,
        group_size=record.group_size,
        dtype=record.dtype,
        num_parameters=count,
        weight_bytes=size,
        bits_per_weight=8 * size / count if size is not None and count else None,
        licence=record.licence,
        members=tuple(lineup.label_of(member) or member[:_SHORT] for member in record.members),
    )


def _version(format_name: str | None) -> str | None:
    """Return ``GEMM`` of ``awq-gemm``, as model cards say it."""
    family, _, version = (format_name or "").partition("-")
    return version.upper() if family in ("awq", "bnb") and version else None

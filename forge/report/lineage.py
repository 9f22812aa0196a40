"""Where a model comes from: recipe, parents, licences, hashes, and the commands that make it again.

Manifests are files of strangers when a model comes from elsewhere, so nothing of their shape is
taken for granted, and what is no recipe of forge's shows as text at most. Folders of a machine are
shortened to their last part: a report is made to be published.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Final

from forge.recipes.document import dump_yaml
from forge.report.comparison.origin import InputFile, Lineage, Parent
from forge.report.lineup import Entry, Lineup, measured
from forge.results.records import Json, ModelRecord

_PRIVATE: Final = re.compile(r"[/~\\]|[A-Za-z]:[/\\]")
_SEPARATORS: Final = re.compile(r"[/\\]")
_UNSAFE: Final = re.compile(r"[^\w.-]+", re.ASCII)
_MODEL_KEYS: Final = frozenset({"model", "base_model", "path"})
_DIGESTS: Final = ("xxh3_128_tree", "xxh3_128", "sha256")
_MAX_DEPTH: Final = 16


def public_name(location: str) -> str:
    """Return a model's name without folders of this machine; relative paths stay.

    Args:
        location: A path, a repository on the Hub, or either with an adapter behind ``+``.
    """
    return "+".join(
        _SEPARATORS.split(part.rstrip("/\\"))[-1] if _PRIVATE.match(part) else part
        for part in location.split("+")
    )


def lineages(lineup: Lineup) -> tuple[Lineage, ...]:
    """Say of every local model where it comes from.

    Args:
        lineup: The models.
    """
    taken: set[str] = set()
    found = []
    for entry in lineup.entries:
        if entry.record.kind != "local":
            continue
        name = _file_name(entry.label, taken)
        taken.add(name)
        found.append(_lineage(entry, lineup, name))
    return tuple(found)


def _lineage(entry: Entry, lineup: Lineup, file_name: str) -> Lineage:
    manifest = entry.record.manifest or {}
    kind, recipe = manifest.get("kind"), manifest.get("recipe")
    made_by = kind if isinstance(kind, str) else None
    text = None
    if isinstance(recipe, Mapping):
        text = dump_yaml(_plain(recipe))
    parents = _parents(manifest, lineup, of=entry)
    digest, notices = manifest.get("content_digest"), manifest.get("notices")
    versions = manifest.get("versions")
    return Lineage(
        model=entry.label,
        made_by=made_by,
        recipe=text,
        recipe_file=None if text is None else file_name,
        parents=parents,
        licence=entry.record.licence,
        content_digest=digest if isinstance(digest, str) else None,
        versions=_versions(manifest.get("forge"), versions),
        notices=tuple(str(notice) for notice in notices) if isinstance(notices, list) else (),
        commands=_commands(entry, manifest, lineup, None if text is None else file_name),
    )


def _parents(manifest: Json, lineup: Lineup, *, of: Entry) -> tuple[Parent, ...]:
    return tuple(_parent(entry, lineup, of=of) for entry in _inputs(manifest, _MAX_DEPTH))


def _inputs(manifest: Json, depth: int) -> Iterator[Json]:
    """Yield the models that lie somewhere: in the place of each stage, what it was made of."""
    inputs = manifest.get("inputs")
    for entry in inputs if isinstance(inputs, list) else []:
        if isinstance(entry, Mapping) and isinstance(entry.get("inputs"), list) and depth:
            yield from _inputs(entry, depth - 1)
        elif isinstance(entry, Mapping):
            yield entry


def _parent(entry: Json, lineup: Lineup, *, of: Entry) -> Parent:
    name, revision, files = str(entry.get("model")), entry.get("revision"), entry.get("files")
    record = _measured(name, lineup, of=of)
    return Parent(
        name=public_name(name),
        role=str(entry.get("role")),
        label=None if record is None else lineup.label_of(record.fingerprint),
        revision=revision if isinstance(revision, str) else None,
        licence=None if record is None else record.licence,
        files=tuple(
            _file(file)
            for file in (files if isinstance(files, list) else [])
            if isinstance(file, Mapping)
        ),
    )


def _file(entry: Json) -> InputFile:
    size = entry.get("bytes")
    algorithm = next((name for name in _DIGESTS if isinstance(entry.get(name), str)), None)
    return InputFile(
        name=str(entry.get("name")),
        num_bytes=size if isinstance(size, int) else 0,
        digest="" if algorithm is None else f"{algorithm}:{entry[algorithm]}",
    )


def _versions(forge: object, versions: object) -> tuple[tuple[str, str], ...]:
    named = {str(k): str(v) for k, v in versions.items()} if isinstance(versions, Mapping) else {}
    own = {"forge": forge} if isinstance(forge, str) else {}
    return tuple({**own, **dict(sorted(named.items()))}.items())


def _commands(
    entry: Entry, manifest: Json, lineup: Lineup, recipe_file: str | None
) -> tuple[str, ...]:
    out = shlex.quote(public_name(entry.record.location))
    recipe = None if recipe_file is None else shlex.quote(f"recipes/{recipe_file}")
    source = _source(manifest, lineup, of=entry)
    conversion = manifest.get("conversion")
    if manifest.get("kind") == "merge" and recipe is not None:
        return (f"forge merge {recipe} --out {out}", f"forge verify {out}")
    if manifest.get("kind") == "moe" and recipe is not None:
        return (f"forge moe {recipe} --out {out}", f"forge verify {out}")
    if manifest.get("kind") == "quantize" and recipe is not None and source is not None:
        return (f"forge quantize {source} --config {recipe} --out {out}", f"forge verify {out}")
    if manifest.get("kind") == "convert" and isinstance(conversion, Mapping) and source is not None:
        layout = shlex.quote(str(conversion.get("to")))
        return (f"forge convert {source} --to {layout} --out {out}", f"forge verify {out}")
    return ()


def _source(manifest: Json, lineup: Lineup, *, of: Entry) -> str | None:
    """Return what to type for the model that a variant was made from."""
    inputs = manifest.get("inputs")
    first = inputs[0] if isinstance(inputs, list) and inputs else None
    if not isinstance(first, Mapping):
        return None
    name = str(first.get("model"))
    record = _measured(name, lineup, of=of)
    return shlex.quote(public_name(name if record is None else record.location))


def _measured(name: str, lineup: Lineup, *, of: Entry) -> ModelRecord | None:
    records = [each.record for each in lineup.entries]
    return measured(name, records, but=of.record.fingerprint)


def _file_name(label: str, taken: set[str]) -> str:
    stem = _UNSAFE.sub("-", label).strip("-.") or "model"
    names = [f"{stem}.yaml", *(f"{stem}-{number}.yaml" for number in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


def _plain(value: object, depth: int = 0) -> object:
    """Return a recipe's values, folders of a machine shortened; what no recipe holds as text."""
    if depth > _MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        return {
            str(key): public_name(item)
            if key in _MODEL_KEYS and isinstance(item, str)
            else _plain(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)

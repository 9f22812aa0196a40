"""Write a checkpoint with a manifest, by means that share nothing with forge's own writer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import xxhash

from tests.factory import tiny_checkpoint

MANIFEST = "forge_manifest.json"

STATISTICS: dict[str, object] = {
    "method": "ties",
    "norms": [3.0, 4.0],
    "cosines": [0.5],
    "conflict_share": 0.25,
    "kept_shares": [0.5, 0.75],
}


def tensors_of(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Read a safetensors file by hand."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8 : 8 + length])
    table.pop("__metadata__", None)
    return {
        name: (
            entry["dtype"],
            entry["shape"],
            raw[8 + length + entry["data_offsets"][0] : 8 + length + entry["data_offsets"][1]],
        )
        for name, entry in table.items()
    }


def describe(folder: Path, *, algorithm: str = "sha256") -> dict[str, object]:
    """Return the manifest that fits a folder."""
    hasher = hashlib.sha256 if algorithm == "sha256" else xxhash.xxh3_128
    tensors: dict[str, object] = {}
    content = hashlib.sha256()
    rows = {}
    for path in sorted(folder.glob("*.safetensors")):
        rows |= tensors_of(path)
    for name, (dtype, shape, data) in sorted(rows.items()):
        digest = xxhash.xxh3_128(data).hexdigest()
        tensors[name] = {"dtype": dtype, "shape": shape, "xxh3_128": digest, **STATISTICS}
        content.update(f"{name}\0{dtype}\0{shape}\0{digest}\n".encode())
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {
        "schema": 1,
        "kind": "merge",
        "forge": "0.1.0",
        "engine": {"name": "forge"},
        "recipe": {"merge_method": "ties", "base_model": "base", "seed": 0},
        "recipe_file": "ties.yaml",
        "inputs": [{"model": "base", "role": "base", "revision": None, "files": []}],
        "models": ["a", "b"],
        "notices": ["The models differ in something."],
        "versions": {"python": "3.11"},
        "content_digest": content.hexdigest(),
        "tensors": tensors,
        "files": {
            name: {
                "bytes": (folder / name).stat().st_size,
                algorithm: hasher((folder / name).read_bytes()).hexdigest(),
            }
            for name in names
            if name != MANIFEST
        },
    }


def publish(folder: Path, *, shards: int = 1, layers: int = 2) -> Path:
    """Write a whole checkpoint and its manifest, and return the folder."""
    tiny_checkpoint(folder, layers=layers, shards=shards)
    (folder / "chat_templates").mkdir()
    (folder / "chat_templates" / "tool.jinja").write_text("{{ messages }}")
    write_manifest(folder, describe(folder))
    return folder


def write_manifest(folder: Path, manifest: Mapping[str, object]) -> None:
    """Write a manifest as it is."""
    (folder / MANIFEST).write_text(json.dumps(manifest))


def edit_manifest(folder: Path, edit: Callable[[dict[str, object]], None]) -> None:
    """Change a manifest in place."""
    manifest = json.loads((folder / MANIFEST).read_text())
    edit(manifest)
    write_manifest(folder, manifest)

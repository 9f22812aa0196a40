"""Recognize an adapter that is there already, so that the same command makes it only once.

An adapter appears before its divergence is measured. A run that is stopped in between has left
nothing to resume but that last step, for which the adapter need not be made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forge import __version__
from forge.adapters.contract import Request
from forge.adapters.outputs import KIND
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.hashing import record_files
from forge.checkpoints.manifest import input_entry
from forge.checkpoints.replace import MANIFEST_FILE


def finished_extraction(out: Path, request: Request) -> dict[str, Any] | None:
    """Return the manifest of an adapter that this version made as asked, with nothing missing.

    Args:
        out: The folder.
        request: What is asked for.
    """
    try:
        manifest: dict[str, Any] = json.loads((out / MANIFEST_FILE).read_bytes())
        files = manifest["files"]
        is_whole = all((out / name).stat().st_size == files[name]["bytes"] for name in files)
        is_alike = (manifest["kind"], manifest["forge"]) == (KIND, __version__)
        is_asked = manifest["recipe"] == request.as_json()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if is_whole and is_alike and is_asked else None


def is_extracted_from(manifest: Mapping[str, Any], models: Mapping[str, Checkpoint]) -> bool:
    """Tell by their hashes whether an adapter was made of the models' files as they are now.

    Args:
        manifest: The adapter's.
        models: The fine-tune and the base, by role.
    """
    found = [
        (role, [input_entry(record) for record in record_files(checkpoint.source.files())])
        for role, checkpoint in models.items()
    ]
    return [(entry["role"], entry["files"]) for entry in manifest["inputs"]] == found

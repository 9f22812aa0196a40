"""Recognize statistics that are there already, so that the same command collects them only once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from forge import __version__
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.hashing import record_files
from forge.checkpoints.manifest import input_entry
from forge.checkpoints.replace import MANIFEST_FILE
from forge.quantize.calibration.stored import digest

KIND = "statistics"


def finished_collection(out: Path, asked: Mapping[str, object]) -> dict[str, Any] | None:
    """Return the manifest of statistics that this version collected, with nothing missing.

    Args:
        out: The folder.
        asked: What must stand in the manifest under ``statistics``, such as their kind.
    """
    try:
        manifest: dict[str, Any] = json.loads((out / MANIFEST_FILE).read_bytes())
        files, said = manifest["files"], manifest["statistics"]
        is_whole = all((out / name).stat().st_size == files[name]["bytes"] for name in files)
        is_alike = (manifest["kind"], manifest["forge"]) == (KIND, __version__)
        is_asked = all(said[key] == value for key, value in asked.items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if is_whole and is_alike and is_asked else None


def is_collected_from(
    manifest: Mapping[str, Any], checkpoint: Checkpoint, tokens_BT: npt.NDArray[np.int64], seed: int
) -> bool:
    """Tell by their hashes whether statistics are of a model and a calibration set.

    Args:
        manifest: The statistics'.
        checkpoint: The model.
        tokens_BT: The calibration set, [B, T].
        seed: Of what is drawn.
    """
    if (manifest["statistics"]["tokens_sha256"], manifest["calibration"]["seed"]) != (
        digest(tokens_BT), seed
    ):  # fmt: skip
        return False
    records = record_files(checkpoint.source.files())
    return bool(manifest["inputs"][0]["files"] == [input_entry(record) for record in records])

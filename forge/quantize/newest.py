"""Find the newest checkpoint that forge wrote here, for a command that names none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from forge.checkpoints.folder import read_json_object
from forge.checkpoints.replace import MANIFEST_FILE
from forge.core.errors import CheckpointError

_KINDS = ("merge",)
"""What can be quantized; a quantized output cannot."""
_PATTERNS = (MANIFEST_FILE, f"*/{MANIFEST_FILE}", f"*/*/{MANIFEST_FILE}")


def newest_checkpoint(place: Path) -> Path:
    """Return the newest output of a merge.

    Args:
        place: Where to look: the folder itself, its subfolders (``merges``), and theirs.

    Returns:
        Its folder, below ``place``.

    Raises:
        CheckpointError: There is none.
    """
    found = sorted(_merges(place), key=lambda path: (path.stat().st_mtime_ns, str(path)))
    if not found:
        raise CheckpointError(
            "No model is named, and forge has written no merge in this folder, in merges/ or in "
            "another subfolder. Name one: forge quantize MODEL."
        )
    return found[-1].parent


def _merges(place: Path) -> Iterator[Path]:
    for pattern in _PATTERNS:
        for path in place.glob(pattern):
            # An unfinished output is not one yet, and a hidden folder is nobody's output.
            if any(part.startswith(".") or ".forge-" in part for part in path.parts[:-1]):
                continue
            try:
                manifest = read_json_object(path.parent, path.name)
            except CheckpointError:
                continue
            if manifest is not None and manifest.get("kind", _KINDS[0]) in _KINDS:
                yield path

"""What ``forge_manifest.json`` says of every output, whatever made it.

A manifest holds no time and no path of the output, so that the same work gives the same bytes.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from forge.checkpoints.hashing import FileRecord, content_digest
from forge.checkpoints.layout import PlannedTensor
from forge.checkpoints.partial import TensorRecord

SCHEMA: Final = 1
TENSOR_DIGEST: Final = "xxh3_128"
"""Algorithm of the tensors' digests, and the key that holds them."""


def tensor_entries(
    tensors: Sequence[PlannedTensor],
    done: Mapping[str, TensorRecord],
    *,
    hidden: frozenset[str] = frozenset(),
) -> tuple[dict[str, object], str]:
    """Return what is said of each tensor, and one digest over all of them.

    Args:
        tensors: What was written.
        done: Their records.
        hidden: Statistics that are said elsewhere.

    Returns:
        Entries by name, sorted, and ``content_digest``.
    """
    entries: dict[str, object] = {}
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        record = done[tensor.name]
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            TENSOR_DIGEST: record.digest,
            **{key: value for key, value in record.statistics.items() if key not in hidden},
        }
    digest = content_digest(
        (tensor.name, tensor.dtype, tensor.shape, done[tensor.name].digest) for tensor in tensors
    )
    return entries, digest


def input_entry(record: FileRecord) -> dict[str, object]:
    """Return what is said of a file that was read.

    Args:
        record: The file.
    """
    return {"name": record.name, **record.as_json()}


def output_entries(files: Mapping[str, FileRecord]) -> dict[str, object]:
    """Return what is said of the files that were written.

    Args:
        files: By path relative to the output.
    """
    return {name: record.as_json() for name, record in sorted(files.items())}


def library_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed.

    Args:
        packages: Their names.
    """
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def manifest_bytes(manifest: Mapping[str, object]) -> bytes:
    """Return the manifest as it is stored: two levels indented, one line for each tensor.

    Args:
        manifest: The manifest.
    """
    lines = []
    for key, value in manifest.items():
        if key in ("tensors", "modules") and isinstance(value, Mapping):
            rows = ",\n".join(
                f"    {json.dumps(name)}: {json.dumps(record, ensure_ascii=False)}"
                for name, record in value.items()
            )
            lines.append(f"  {json.dumps(key)}: {{\n{rows}\n  }}")
        else:
            text = json.dumps(value, indent=2, ensure_ascii=False).replace("\n", "\n  ")
            lines.append(f"  {json.dumps(key)}: {text}")
    # A file name need not be UTF-8; its stray bytes are escaped as JSON escapes them.
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode(errors="backslashreplace")

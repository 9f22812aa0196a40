"""Read ``forge_manifest.json``, which is as untrusted as the rest of a downloaded folder."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge.checkpoints.folder import is_plain_name, read_json_object
from forge.checkpoints.hashing import Algorithm
from forge.checkpoints.replace import MANIFEST_FILE
from forge.core.errors import CheckpointError

MAX_MANIFEST_BYTES: Final = 256 << 20
SCHEMA: Final = 1
_DIGEST: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")
_ALGORITHMS: Final[tuple[Algorithm, ...]] = ("sha256", "xxh3_128_tree", "xxh3_128")
_CLAIM_KEYS: Final = frozenset({"dtype", "shape", "xxh3_128", "method"})


@dataclass(frozen=True, slots=True)
class FileClaim:
    """What the manifest says about a file.

    Attributes:
        num_bytes: Its size.
        algorithm: How the digest is made; see ``checkpoints/hashing.py``.
        digest: Hexadecimal digest of the whole file.
    """

    num_bytes: int
    algorithm: Algorithm
    digest: str


@dataclass(frozen=True, slots=True)
class TensorClaim:
    """What the manifest says about a tensor; ``statistics`` is what the merge measured."""

    dtype: str
    shape: tuple[int, ...]
    xxh3_128: str
    method: str
    statistics: Mapping[str, object]

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checked manifest.

    Attributes:
        content: The whole of it.
        files: By path relative to the folder, with forward slashes, at most one subfolder deep.
        tensors: By name.
        models: Names of the models, in the order of the statistics.
        content_digest: Digest over all tensors.
    """

    content: Mapping[str, object]
    files: Mapping[str, FileClaim]
    tensors: Mapping[str, TensorClaim]
    models: tuple[str, ...]
    content_digest: str

    @property
    def kind(self) -> str:
        """What made the checkpoint: ``merge``, ``moe``, ``quantize`` or ``convert``."""
        return str(self.content.get("kind", "merge"))

    def table(self, key: str) -> Mapping[str, object]:
        """Return an object of the manifest, empty when it is absent."""
        value = self.content.get(key)
        return value if isinstance(value, Mapping) else {}

    def items(self, key: str) -> tuple[object, ...]:
        """Return a list of the manifest, empty when it is absent."""
        value = self.content.get(key)
        return tuple(value) if isinstance(value, list) else ()


def read_manifest(root: Path) -> Manifest | None:
    """Read and check the manifest of a folder.

    Args:
        root: The checkpoint's folder.

    Returns:
        The manifest, or ``None`` when there is none.

    Raises:
        CheckpointError: It is malformed, or written by a newer forge.
    """
    content = read_json_object(root, MANIFEST_FILE, limit=MAX_MANIFEST_BYTES)
    if content is None:
        return None
    path = root / MANIFEST_FILE
    schema = content.get("schema")
    if schema != SCHEMA:
        raise CheckpointError(
            f"'{path}' has schema {schema!r}; this forge reads {SCHEMA}. "
            "Is it a forge manifest? A newer forge may be needed."
        )
    digest = content.get("content_digest")
    if not isinstance(digest, str):
        raise _malformed(path, "content_digest", digest)
    models = content.get("models", [])
    if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        raise _malformed(path, "models", models)
    return Manifest(
        content=content,
        files={name: _file(path, name, claim) for name, claim in _object(path, content, "files")},
        tensors={
            name: _tensor(path, name, claim) for name, claim in _object(path, content, "tensors")
        },
        models=tuple(models),
        content_digest=digest,
    )


def _object(path: Path, content: Mapping[str, object], key: str) -> list[tuple[str, object]]:
    value = content.get(key)
    if not isinstance(value, Mapping):
        raise _malformed(path, key, value)
    return list(value.items())


def _file(path: Path, name: str, claim: object) -> FileClaim:
    parts = name.split("/")
    # A name from a stranger must not make us open a file elsewhere on the disk.
    if len(parts) > 2 or not all(is_plain_name(part) for part in parts) or name == MANIFEST_FILE:
        raise CheckpointError(f"'{path}' lists {name[:200]!r}, which is no file of its folder.")
    if isinstance(claim, Mapping):
        num_bytes = claim.get("bytes")
        for algorithm in _ALGORITHMS:
            digest = claim.get(algorithm)
            if type(num_bytes) is int and isinstance(digest, str) and _DIGEST.fullmatch(digest):
                return FileClaim(num_bytes, algorithm, digest)
    raise _malformed(path, f"files.{name}", claim)


def _tensor(path: Path, name: str, claim: object) -> TensorClaim:
    if isinstance(claim, Mapping):
        dtype, shape, digest = claim.get("dtype"), claim.get("shape"), claim.get("xxh3_128")
        method = claim.get("method", "")
        if (
            isinstance(dtype, str)
            and isinstance(shape, list)
            and all(type(size) is int and size >= 0 for size in shape)
            and isinstance(digest, str)
            and isinstance(method, str)
        ):
            rest = {key: value for key, value in claim.items() if key not in _CLAIM_KEYS}
            return TensorClaim(dtype, tuple(shape), digest, method, rest)
    raise _malformed(path, f"tensors.{name[:200]}", claim)


def _malformed(path: Path, key: str, value: object) -> CheckpointError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return CheckpointError(f"'{path}' is damaged: '{key}' is {shown}. Download or merge again.")

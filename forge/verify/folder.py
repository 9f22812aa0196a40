"""Check every byte of a checkpoint against its manifest, in one read.

A file's digest and those of its tensors are computed from the same blocks,
so a checkpoint that is larger than the page cache is still read once. Hidden entries,
which the Hub and git add and no loader reads, are not looked at.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from forge.architectures.names import architecture_of, layers_present
from forge.checkpoints.checkpoint import read_config
from forge.checkpoints.companions import ADAPTER_CONFIG_FILE
from forge.checkpoints.folder import contained_file
from forge.checkpoints.hashing import content_digest
from forge.checkpoints.header import TensorInfo, read_header
from forge.checkpoints.manifest_reader import (
    FileClaim,
    Manifest,
    TensorClaim,
    read_manifest,
)
from forge.checkpoints.replace import MANIFEST_FILE
from forge.checkpoints.source import open_safetensors
from forge.core.errors import CheckpointError, ForgeError
from forge.verify.digests import digest_file

if TYPE_CHECKING:
    from forge.checkpoints.progress import Progress

Kind = Literal["missing", "extra", "size", "hash", "tensor", "structure", "manifest"]

_ALGORITHM_NAMES: Final = {
    "sha256": "SHA-256",
    "xxh3_128": "XXH3-128",
    "xxh3_128_tree": "XXH3-128 (tree)",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as the manifest says.

    Attributes:
        kind: ``missing``, ``extra``, ``size`` and ``hash`` concern files, ``tensor`` a tensor,
            ``structure`` the checkpoint as a whole, ``manifest`` the manifest itself.
        name: The file or the tensor.
        message: What is wrong, in one sentence.
    """

    kind: Kind
    name: str
    message: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found.

    Attributes:
        root: The folder.
        num_files: Files that the manifest lists.
        num_tensors: Tensors that the manifest lists.
        num_bytes: Bytes that were read.
        content_digest: Digest over all tensors, as the manifest states it.
        differences: Everything that differs: files in order of name, then tensors.
    """

    root: Path
    num_files: int
    num_tensors: int
    num_bytes: int
    content_digest: str
    differences: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def as_json(self) -> dict[str, object]:
        """Return the report as plain JSON values."""
        return {
            "root": str(self.root),
            "ok": self.ok,
            "num_files": self.num_files,
            "num_tensors": self.num_tensors,
            "num_bytes": self.num_bytes,
            "content_digest": self.content_digest,
            "differences": [
                {"kind": item.kind, "name": item.name, "message": item.message}
                for item in self.differences
            ],
        }


def verify_folder(root: Path, *, progress: Progress | None = None) -> VerifyReport:
    """Check a checkpoint.

    Args:
        root: Its folder.
        progress: Hears how it goes.

    Returns:
        Every difference.

    Raises:
        CheckpointError: There is no such folder, it has no manifest, or a malformed one.
    """
    if not root.is_dir():
        raise CheckpointError(f"'{root}' is not a folder.")
    manifest = read_manifest(root)
    if manifest is None:
        raise CheckpointError(
            f"'{root}' has no {MANIFEST_FILE}, so there is nothing to verify it against. "
            "Only what forge made has one."
        )
    present = set(_entries(root))
    found: list[Difference] = [
        Difference("extra", name, f"'{name}' is not in the manifest.")
        for name in sorted(present - manifest.files.keys() - {MANIFEST_FILE})
    ]
    headers, structure = _headers(root, manifest)
    found += structure
    total = sum(claim.num_bytes for claim in manifest.files.values())
    if progress is not None:
        progress.stage("verifying")
        progress.start(total, 0)
    stop = threading.Event()
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="forge-verify")
    try:
        # Large files first: the last one to start should not be the longest.
        order = sorted(manifest.files, key=lambda name: (-manifest.files[name].num_bytes, name))
        jobs = {
            name: pool.submit(
                _check_file, root, name, manifest.files[name], headers.get(name, ()),
                manifest.tensors, progress, stop,
            )
            for name in order
        }  # fmt: skip
        results = [jobs[name].result() for name in sorted(jobs)]
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    for _, differences in results:
        found += differences
    found += _whole(root, manifest, headers, is_readable=not structure)
    return VerifyReport(
        root=root,
        num_files=len(manifest.files),
        num_tensors=len(manifest.tensors),
        num_bytes=sum(num_bytes for num_bytes, _ in results),
        content_digest=manifest.content_digest,
        differences=tuple(found),
    )


def _entries(root: Path, prefix: str = "") -> Iterator[str]:
    """Yield all files below a folder; a link is a file, wherever it leads."""
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(root / entry.name, f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name


def _locate(root: Path, name: str) -> Path | None:
    folder, _, file = name.rpartition("/")
    return contained_file(root, file, subfolder=folder or None)


def _headers(
    root: Path, manifest: Manifest
) -> tuple[dict[str, tuple[TensorInfo, ...]], list[Difference]]:
    headers: dict[str, tuple[TensorInfo, ...]] = {}
    found: list[Difference] = []
    for name in sorted(manifest.files):
        if not name.endswith(".safetensors"):
            continue
        try:
            path = _locate(root, name)
            if path is not None:
                headers[name] = tuple(read_header(path).tensors.values())
        except CheckpointError as error:
            found.append(Difference("structure", name, str(error)))
    return headers, found


def _check_file(
    root: Path,
    name: str,
    claim: FileClaim,
    tensors: Sequence[TensorInfo],
    claims: Mapping[str, TensorClaim],
    progress: Progress | None,
    stop: threading.Event,
) -> tuple[int, list[Difference]]:
    try:
        path = _locate(root, name)
        if path is None:
            return 0, [Difference("missing", name, f"'{name}' is missing.")]
        size = path.stat().st_size
        digest, digests = digest_file(path, tensors, claim.algorithm, progress, stop)
    except CheckpointError as error:
        return 0, [Difference("structure", name, str(error))]
    except OSError as error:
        return 0, [Difference("missing", name, f"'{name}' cannot be read: {error.strerror}.")]
    found: list[Difference] = []
    if size != claim.num_bytes:
        message = f"'{name}' has {size:,} bytes; the manifest says {claim.num_bytes:,}."
        found.append(Difference("size", name, message))
    elif digest != claim.digest:
        algorithm = _ALGORITHM_NAMES[claim.algorithm]
        message = f"'{name}' has {algorithm} {digest}; the manifest says {claim.digest}."
        found.append(Difference("hash", name, message))
    for tensor in tensors:
        fault = _tensor_fault(tensor, digests[tensor.name], claims.get(tensor.name))
        if fault is not None:
            found.append(Difference("tensor", tensor.name, fault))
    return size, found


def _tensor_fault(tensor: TensorInfo, digest: str, claim: TensorClaim | None) -> str | None:
    where = f"Tensor '{tensor.name}' in '{tensor.file.name}'"
    if claim is None:
        return f"{where} is not in the manifest."
    if (tensor.dtype, tensor.shape) != (claim.dtype, claim.shape):
        return (
            f"{where} is {tensor.dtype} {list(tensor.shape)}; the manifest says {claim.dtype} "
            f"{list(claim.shape)}."
        )
    if digest != claim.xxh3_128:
        return f"{where} holds other values than when it was written."
    return None


def _whole(
    root: Path,
    manifest: Manifest,
    headers: Mapping[str, tuple[TensorInfo, ...]],
    *,
    is_readable: bool,
) -> list[Difference]:
    found: list[Difference] = []
    present = {tensor.name for tensors in headers.values() for tensor in tensors}
    found += [
        Difference("tensor", name, f"Tensor '{name}' is in no file.")
        for name in sorted(manifest.tensors.keys() - present)
    ]
    stated_digest = content_digest(
        (name, claim.dtype, claim.shape, claim.xxh3_128) for name, claim in manifest.tensors.items()
    )
    if stated_digest != manifest.content_digest:
        message = "The manifest's content_digest does not fit its own list of tensors."
        found.append(Difference("manifest", MANIFEST_FILE, message))
    # Adapters and statistics are no models: they have no layers of their own and no config.json.
    is_model = ADAPTER_CONFIG_FILE not in manifest.files and manifest.kind != "statistics"
    if is_readable and is_model:
        try:
            source = open_safetensors(root, label=str(root))
            names = source.names()
            source.close()
            config = read_config(root, label=str(root))
            architecture = architecture_of(config, tensor_names=names)
            stated, held = architecture.num_layers(config), layers_present(architecture, names)
            if held != tuple(range(stated)):
                message = f"config.json states {stated} layers; the files hold {len(held)}."
                found.append(Difference("structure", "config.json", message))
        except ForgeError as error:
            found.append(Difference("structure", str(root), str(error)))
    return found

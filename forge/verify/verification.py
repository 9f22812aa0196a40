"""Everything that ``forge verify`` does to a folder, and the last step of a quantization.

The bytes come first: what differs from its manifest is not looked at any further.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forge.checkpoints.checkpoint import CONFIG_FILE, Checkpoint, read_config
from forge.checkpoints.companions import ADAPTER_CONFIG_FILE
from forge.checkpoints.folder import contained_file
from forge.checkpoints.manifest import manifest_bytes
from forge.checkpoints.manifest_reader import Manifest, read_manifest
from forge.checkpoints.replace import MANIFEST_FILE
from forge.core.errors import OutputError
from forge.verify.folder import Difference, VerifyReport, verify_folder
from forge.verify.quantized import DEFAULT_TOKENS, QuantizedReport, verify_quantized

if TYPE_CHECKING:
    from forge.checkpoints.progress import Progress

KEY: Final = "verification"
"""Of the manifest: what the last step of a quantization found."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification found.

    Attributes:
        files: Every byte against the manifest.
        quantized: What the tensors of a quantized checkpoint mean; ``None`` for another one, and
            where the bytes already differ.
    """

    files: VerifyReport
    quantized: QuantizedReport | None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.files.ok and (self.quantized is None or self.quantized.ok)

    @property
    def differences(self) -> tuple[Difference, ...]:
        """What differs from the manifest."""
        return self.files.differences

    def as_json(self) -> dict[str, object]:
        """Return the verification as plain JSON values."""
        found = self.files.as_json() | {"ok": self.ok}
        if self.quantized is not None:
            found["quantized"] = self.quantized.as_json()
        return found


def verify(
    root: Path,
    source: Checkpoint | None = None,
    *,
    quick: bool = False,
    tokens: int = DEFAULT_TOKENS,
    progress: Progress | None = None,
) -> Verification:
    """Check a checkpoint that forge wrote.

    Args:
        root: Its folder.
        source: What a quantized one was made from; ``None`` when that is not at hand.
        quick: Whether to leave out what loads a quantized model.
        tokens: Most tokens of held-out text to compare predictions on.
        progress: Hears how it goes.

    Returns:
        Everything that is wrong.

    Raises:
        CheckpointError: There is no manifest, or something is malformed.
        IncompatibleError: The decoder blocks of a quantized model's family are unknown.
    """
    files = verify_folder(root, progress=progress)
    manifest = read_manifest(root)
    if not files.ok or manifest is None or not _is_quantized(root, manifest):
        return Verification(files, None)
    (report,) = verify_quantized(
        {root: manifest}, source, quick=quick, tokens=tokens, progress=progress
    )
    return Verification(files, report)


def verify_made(
    roots: Sequence[Path],
    source: Checkpoint,
    *,
    quick: bool = False,
    tokens: int = DEFAULT_TOKENS,
    progress: Progress | None = None,
) -> dict[Path, QuantizedReport]:
    """Check fresh outputs of one quantization, and write into their manifests what was found.

    Their bytes were hashed as they were written, so they are not hashed again.

    Args:
        roots: Their folders.
        source: What they were made from.
        quick: Whether to leave out what loads the models.
        tokens: Most tokens of held-out text to compare predictions on.
        progress: Hears how it goes.

    Returns:
        A report by folder; outputs that an earlier run found right are not looked at again.

    Raises:
        CheckpointError: An output cannot be read.
        OutputError: A manifest cannot be written.
    """
    manifests: dict[Path, Manifest] = {}
    for root in roots:
        manifest = read_manifest(root)
        if manifest is not None and not _is_verified(manifest, quick=quick):
            manifests[root] = manifest
    reports = verify_quantized(manifests, source, quick=quick, tokens=tokens, progress=progress)
    for (root, manifest), report in zip(manifests.items(), reports, strict=True):
        _record(root, manifest.content, report)
    return dict(zip(manifests, reports, strict=True))


def _is_verified(manifest: Manifest, *, quick: bool) -> bool:
    record = manifest.table(KEY)
    checks = record.get("checks")
    loaded = {"check": "load", "state": "passed"}
    return (
        record.get("ok") is True
        and isinstance(checks, list)
        and (
            quick
            or any(isinstance(row, Mapping) and loaded.items() <= row.items() for row in checks)
        )
    )


def _is_quantized(root: Path, manifest: Manifest) -> bool:
    if manifest.kind == "statistics":
        return False
    if contained_file(root, CONFIG_FILE) is None and contained_file(root, ADAPTER_CONFIG_FILE):
        return False
    return isinstance(read_config(root, label=str(root)).get("quantization_config"), Mapping)


def _record(root: Path, content: Mapping[str, object], report: QuantizedReport) -> None:
    updated = dict(content)
    lists = {key: updated.pop(key) for key in ("modules", "tensors", "files") if key in updated}
    updated[KEY] = report.as_json()
    partial = root / f".{MANIFEST_FILE}.partial"
    try:
        partial.write_bytes(manifest_bytes(updated | lists))
        partial.replace(root / MANIFEST_FILE)
    except OSError as error:
        raise OutputError(
            f"'{root / MANIFEST_FILE}' cannot be written: {error.strerror}."
        ) from error

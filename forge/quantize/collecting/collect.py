"""Collect statistics of a model into a folder that a merge reads; see ``statistics_file``."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from forge import __version__
from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.checkpoints.hashing import FileRecord, checksum_of, record_files
from forge.checkpoints.layout import PlannedTensor
from forge.checkpoints.manifest import (
    SCHEMA,
    input_entry,
    library_versions,
    manifest_bytes,
    output_entries,
    tensor_entries,
)
from forge.checkpoints.progress import Progress, Silence
from forge.checkpoints.replace import check_replaceable
from forge.checkpoints.sink import TensorSink
from forge.checkpoints.statistics_file import probe
from forge.core.dtypes import DTYPES
from forge.core.enumeration import some
from forge.core.errors import MissingExtraError
from forge.quantize.calibration.calibrate import calibration_tokens
from forge.quantize.calibration.stored import digest
from forge.quantize.collecting.finished import KIND, finished_collection, is_collected_from
from forge.recipes.quantize_types import CalibrationRecipe
from forge.recipes.reference import ModelReference

Kind = Literal["regmean", "fisher"]
Labels = Literal["sampled", "text"]
Item = tuple[str, npt.NDArray[np.float32], Mapping[str, object]]

_PACKAGES: Final = ("numpy", "torch", "transformers")
_SHARD_BYTES: Final = 5_000_000_000


@dataclass(frozen=True, slots=True)
class CollectResult:
    """What was collected.

    Attributes:
        out: The folder.
        manifest: What ``forge_manifest.json`` says.
        seconds: Wall time, in seconds.
        num_tensors: Tensors of the output.
        resumed_tensors: How many of them an earlier run had finished.
    """

    out: Path
    manifest: Mapping[str, object]
    seconds: float
    num_tensors: int
    resumed_tensors: int


def collect(
    model: ModelReference,
    kind: Kind,
    calibration: CalibrationRecipe,
    out: Path,
    *,
    labels: Labels = "sampled",
    device: str = "cpu",
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CollectResult:
    """Collect statistics of a model.

    Args:
        model: The model.
        kind: ``regmean`` or ``fisher``.
        calibration: Where the tokens come from.
        out: The folder to make. It appears at once, when everything in it is complete.
        labels: For ``fisher``: labels drawn from the model, or the text's own.
        device: Where the model runs.
        threads: Worker threads; by default one for each core that this process may use.
        overwrite: Whether an existing output of forge may be replaced.
        progress: Hears how it goes.

    Returns:
        The folder and its manifest.

    Raises:
        ForgeError: The model, the text or the output is not as it should be. An existing output is
            untouched, and finished tensors of ``regmean`` are kept for the same command.
    """
    started = time.monotonic()
    progress = progress or Silence()
    progress.stage("checking")
    asked = {"kind": kind, **({"labels": labels} if kind == "fisher" else {})}
    existing = None if overwrite else finished_collection(out, asked)
    if existing is None:
        check_replaceable(out, overwrite=overwrite)
    _require_torch()
    checkpoint = open_checkpoint(model)
    try:
        for notice in checkpoint.notices:
            progress.notice(notice)
        tokens_BT = calibration_tokens(checkpoint, calibration, device=device, progress=progress)
        if existing is not None:
            if is_collected_from(existing, checkpoint, tokens_BT, calibration.seed):
                progress.notice(f"'{out}' already holds exactly this; nothing is left to do.")
                num = len(existing["tensors"])
                return CollectResult(out, existing, time.monotonic() - started, num, num)
            check_replaceable(out, overwrite=False)
        work = _Work(
            checkpoint, kind, tokens_BT, labels, calibration.seed, device, threads or 0, progress
        )
        for notice in work.notices:
            progress.notice(notice)
        with TensorSink(
            out,
            work.tensors,
            max_shard_bytes=_SHARD_BYTES,
            fingerprint=work.fingerprint(),
            overwrite=overwrite,
        ) as sink:
            if sink.discarded_reason:
                progress.notice(f"Unfinished statistics were discarded: {sink.discarded_reason}.")
            resumed = len(sink.done)
            if resumed:
                progress.notice(f"Resumed: {resumed} of {len(work.tensors)} tensors were finished.")
            progress.stage(f"collecting {kind} statistics")
            for name, values, said in work.items(sink, progress):
                view = np.ascontiguousarray(values).data.cast("B")
                sink.write(name, 0, view)
                sink.finish(name, digest=checksum_of(view), statistics=said)
            progress.stage("hashing")
            records = record_files(checkpoint.source.files())
            content: dict[str, Any] = {}

            def manifest(files: Mapping[str, FileRecord]) -> bytes:
                content.update(work.manifest(calibration, records, sink, files))
                return manifest_bytes(content)

            sink.commit({}, manifest)
    finally:
        checkpoint.source.close()
    return CollectResult(out, content, time.monotonic() - started, len(work.tensors), resumed)


class _Work:
    """One collection, from tokens to tensors."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        kind: Kind,
        tokens_BT: npt.NDArray[np.int64],
        labels: Labels,
        seed: int,
        device: str,
        threads: int,
        progress: Progress,
    ) -> None:
        from forge.quantize.awq.run import check_tokens
        from forge.quantize.collecting.moments import Moments

        check_tokens(checkpoint, tokens_BT)
        self._checkpoint = checkpoint
        self._kind = kind
        self._tokens_BT = tokens_BT
        self._labels = labels
        self._seed = seed
        self._device = device
        self._threads = threads
        self._probe = probe(checkpoint.source.files())
        self.notices: tuple[str, ...] = ()
        self._moments: Moments | None = None
        self._fishers: dict[str, npt.NDArray[np.float32]] = {}
        if kind == "regmean":
            self._moments = Moments(checkpoint, tokens_BT, threads=threads, device=device)
            self.tensors, self.shared = self._moments.tensors, self._moments.shared
        else:
            self._fishers = self._collect_fisher(progress)
            self.tensors = tuple(
                PlannedTensor(name, values.shape, "F32") for name, values in self._fishers.items()
            )
            self.shared = {name: name for name in self._fishers}
            self.notices = self._without()

    def fingerprint(self) -> str:
        """Identify the collection for resuming."""
        content = {
            "kind": self._kind,
            "tokens": digest(self._tokens_BT),
            "model": self._probe,
            "labels": self._labels,
            "seed": self._seed,
            "forge": __version__,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def items(self, sink: TensorSink, progress: Progress) -> Iterable[Item]:
        """Return what is not in the sink yet."""
        if self._moments is not None:
            return self._moments.collect(lambda name: name in sink.done, progress)
        return [
            (name, values, {}) for name, values in self._fishers.items() if name not in sink.done
        ]

    def manifest(
        self,
        calibration: CalibrationRecipe,
        records: Iterable[FileRecord],
        sink: TensorSink,
        files: Mapping[str, FileRecord],
    ) -> dict[str, Any]:
        """Return what ``forge_manifest.json`` says."""
        tensors, content = tensor_entries(self.tensors, sink.done)
        statistics: dict[str, Any] = {
            "kind": self._kind,
            "num_tokens": int(self._tokens_BT.size),
            "tokens_sha256": digest(self._tokens_BT),
            "probe": self._probe,
            "shared": self.shared,
        }
        if self._moments is None:
            statistics["labels"] = self._labels
        else:
            statistics["transposed"] = self._moments.transposed
        checkpoint = self._checkpoint
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "forge": __version__,
            "statistics": statistics,
            "calibration": {**calibration.resolved(), "seed": self._seed},
            "inputs": [
                {
                    "model": str(checkpoint.reference),
                    "role": "model",
                    "revision": checkpoint.revision,
                    "lora_revision": checkpoint.lora_revision,
                    "files": [input_entry(record) for record in records],
                }
            ],
            "models": [str(checkpoint.reference)],
            "notices": [*checkpoint.notices, *self.notices],
            "versions": library_versions(_PACKAGES),
            "content_digest": content,
            "tensors": tensors,
            "files": output_entries(files),
        }

    def _collect_fisher(self, progress: Progress) -> dict[str, npt.NDArray[np.float32]]:
        from forge.quantize.collecting.fisher import collect_fisher

        progress.stage("summing squared gradients")
        return collect_fisher(
            self._checkpoint,
            self._tokens_BT,
            labels=self._labels,
            seed=self._seed,
            device=self._device,
            progress=progress,
        )

    def _without(self) -> tuple[str, ...]:
        """Name the weights that a gradient should have reached, and did not."""
        source = self._checkpoint.source
        names = [
            name
            for name in source.names()
            if name not in self.shared and DTYPES[source.info(name).dtype].mergeable
        ]
        if not names:
            return ()
        return (
            f"{len(names):,} of {len(source.names()):,} tensors have no statistics, because no "
            "gradient of a text's likelihood reaches them (another modality, a buffer, or a copy "
            f"that transformers does not read): {some(names)}. fisher takes their plain mean.",
        )


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"Collecting statistics needs {error.name or 'torch'}. Install it with "
            "pip install 'forge[quantize]'."
        ) from error

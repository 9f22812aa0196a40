"""Prove quantized checkpoints right: five checks, from their headers to their predictions.

    layout      what is packed unpacks and packs to the same bytes; constants and config.json fit
    tensors     every tensor of the source is accounted for once; no NaN, no path of a machine
    error       each layer stays within its format's bound of the source, and so does each group
    load        a fresh process loads it with the program that users load it with, and it writes
    divergence  its predictions stay close to the source's, and closer than rounding to nearest

Several outputs of one source share its predictions, and those of the source rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forge.architectures.names import architecture_of
from forge.checkpoints.checkpoint import Checkpoint, read_config
from forge.checkpoints.manifest_reader import Manifest
from forge.checkpoints.source import open_safetensors
from forge.verify.findings import CheckResult, Finding, ModuleError
from forge.verify.layouts import layout_of
from forge.verify.running_checks import check_running
from forge.verify.static_checks import Case, check_statically

if TYPE_CHECKING:
    from forge.checkpoints.progress import Progress

DEFAULT_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class QuantizedReport:
    """What the checks of a quantized checkpoint found.

    Attributes:
        format: Name of its layout in the catalog.
        source: The model that it was compared with, as typed, or ``None``.
        checks: Results of all five checks.
        modules: Errors of the layers, in order of the checkpoint.
        findings: Everything that is wrong.
        consumer: The program that loaded it, or ``None``.
        divergence: Predictions against the source's, plain JSON values, or ``None``.
        rtn_divergence: The same of the source rounded to nearest, or ``None``.
    """

    format: str
    source: str | None
    checks: tuple[CheckResult, ...]
    modules: tuple[ModuleError, ...]
    findings: tuple[Finding, ...]
    consumer: str | None = None
    divergence: Mapping[str, object] | None = None
    rtn_divergence: Mapping[str, object] | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def worst(self, count: int) -> tuple[ModuleError, ...]:
        """Return the layers with the largest errors.

        Args:
            count: How many.
        """
        return tuple(sorted(self.modules, key=lambda error: -error.relative)[:count])

    def as_json(self) -> dict[str, object]:
        """Return the report as plain JSON values, without times and paths."""
        return {
            "ok": self.ok,
            "format": self.format,
            "checks": [check.as_json() for check in self.checks],
            "findings": [asdict(finding) for finding in self.findings],
            "worst_layers": [error.as_json() for error in self.worst(5)],
            "consumer": self.consumer,
            "divergence": _rounded(self.divergence),
            "rtn_divergence": _rounded(self.rtn_divergence),
        }


def verify_quantized(
    outputs: Mapping[Path, Manifest],
    source: Checkpoint | None,
    *,
    quick: bool = False,
    tokens: int = DEFAULT_TOKENS,
    progress: Progress | None = None,
) -> tuple[QuantizedReport, ...]:
    """Check what quantized checkpoints mean, not only that their bytes are as they were.

    Args:
        outputs: Manifests by folder; all made from the same source.
        source: What they were made from; ``None`` when that is not at hand.
        quick: Whether to leave out what loads models.
        tokens: Most tokens of held-out text to compare predictions on.
        progress: Hears how it goes.

    Returns:
        A report for each folder, in their order.

    Raises:
        CheckpointError: A folder cannot be read, or is not quantized.
        IncompatibleError: The family's decoder blocks are unknown.
    """
    with ExitStack() as stack:
        cases = []
        for root, manifest in outputs.items():
            config = read_config(root, label=str(root))
            layout = layout_of(config)
            variant = open_safetensors(root, label=str(root))
            stack.callback(variant.close)
            architecture = architecture_of(config, tensor_names=variant.names())
            cases.append(Case(root, config, manifest, layout, architecture, variant, source))
        found = [check_statically(case, progress=progress) for case in cases]
        if progress is not None and not quick:
            progress.stage("loading in a fresh process")
        runs = check_running(cases, found, quick=quick, tokens=tokens)
    return tuple(
        QuantizedReport(
            format=case.layout.name,
            source=None if source is None else str(source.reference),
            checks=(*static.checks, *run.checks),
            modules=static.modules,
            findings=(*static.findings, *run.findings),
            consumer=run.consumer,
            divergence=run.divergence,
            rtn_divergence=run.rtn_divergence,
        )
        for case, static, run in zip(cases, found, runs, strict=True)
    )


def _rounded(figures: Mapping[str, object] | None) -> dict[str, object] | None:
    # The last digits depend on the number of threads; a manifest must not.
    if figures is None:
        return None
    return {
        key: float(f"{value:.4g}") if isinstance(value, float) else value
        for key, value in figures.items()
    }

"""Prove a quantized checkpoint right: five checks, from its header to its predictions.

    layout      what is packed unpacks and packs to the same bytes; constants and config.json fit
    tensors     every tensor of the source is accounted for once; no NaN, no path of a machine
    error       each layer stays within its format's bound of the source, and so does each group
    load        a fresh process loads it with the program that users load it with, and it writes
    divergence  its predictions stay close to the source's, and closer than rounding to nearest

The first three read headers and weights tensor by tensor, so a model of any size needs little
memory. Without the source, what compares with it is skipped and says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forge.architectures.blocks import is_kept
from forge.architectures.names import architecture_of
from forge.architectures.table import Architecture
from forge.checkpoints.checkpoint import Checkpoint, read_config
from forge.checkpoints.source import TensorSource, open_safetensors
from forge.core.errors import CheckpointError, IncompatibleError, NonFiniteError
from forge.verify.codes_layout import GroupsOfCodes
from forge.verify.error_bounds import check_layers, measure
from forge.verify.findings import CheckName, CheckResult, Finding, ModuleError
from forge.verify.fresh_load import Answer, Request, load_in_fresh_process
from forge.verify.layouts import kept_modules, layout_of
from forge.verify.local_paths import local_paths
from forge.verify.manifest import Manifest
from forge.verify.schema import Account, account_against, account_alone
from forge.verify.stored import Layout

if TYPE_CHECKING:
    from forge.checkpoints.progress import Progress

KIND: Final = "quantize"
DEFAULT_TOKENS: Final = 4096
MAX_DIVERGENCE: Final = 1.5
"""Nats. Round-to-nearest in 4 bits costs a model of 135 million parameters 0.3 and larger ones
less; what is this far away says something else than its source."""


@dataclass(frozen=True, slots=True)
class QuantizedReport:
    """What the checks of a quantized checkpoint found.

    Attributes:
        format: Name of its layout in the catalog.
        source: The model that it was compared with, as typed, or ``None``.
        checks: Results of all five checks.
        modules: Errors of the layers, in order of the checkpoint.
        findings: Everything that is wrong.
        answer: What the fresh process found, or ``None``.
    """

    format: str
    source: str | None
    checks: tuple[CheckResult, ...]
    modules: tuple[ModuleError, ...]
    findings: tuple[Finding, ...]
    answer: Answer | None

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
        found = self.answer
        return {
            "ok": self.ok,
            "format": self.format,
            "checks": [check.as_json() for check in self.checks],
            "findings": [asdict(finding) for finding in self.findings],
            "worst_layers": [error.as_json() for error in self.worst(5)],
            "consumer": None if found is None else found.consumer,
            "divergence": None if found is None else _rounded(found.divergence),
            "rtn_divergence": None if found is None else _rounded(found.rtn_divergence),
        }


@dataclass(frozen=True, slots=True)
class _Case:
    """What all checks look at."""

    root: Path
    config: Mapping[str, object]
    manifest: Manifest
    layout: Layout
    architecture: Architecture
    variant: TensorSource
    source: Checkpoint | None

    @property
    def method(self) -> str:
        return str(self.manifest.table("recipe").get("method", ""))

    @property
    def keep(self) -> tuple[str, ...]:
        recipe = self.manifest.table("recipe")
        if "method" not in recipe:
            return (*kept_modules(self.config), "lm_head")
        names = recipe.get("keep")
        kept = tuple(str(name) for name in names) if isinstance(names, list) else ()
        return (*kept, "lm_head")

    @property
    def is_folded(self) -> bool:
        """Whether scales may have been folded into what feeds the layers."""
        return self.method not in ("rtn", "bnb")


def verify_quantized(
    root: Path,
    manifest: Manifest,
    source: Checkpoint | None,
    *,
    quick: bool = False,
    tokens: int = DEFAULT_TOKENS,
    progress: Progress | None = None,
) -> QuantizedReport:
    """Check what a quantized checkpoint means, not only that its bytes are as they were.

    Args:
        root: Its folder.
        manifest: Its manifest.
        source: What it was made from; ``None`` when that is not at hand.
        quick: Whether to leave out what loads the model.
        tokens: Most tokens of held-out text to compare predictions on.
        progress: Hears how it goes.

    Returns:
        Everything that is wrong.

    Raises:
        CheckpointError: It cannot be read, or is not quantized.
        MissingExtraError: A package is missing that loading needs.
    """
    config = read_config(root, label=str(root))
    layout = layout_of(config)
    variant = open_safetensors(root, label=str(root))
    try:
        architecture = architecture_of(config, tensor_names=variant.names())
        case = _Case(root, config, manifest, layout, architecture, variant, source)
        return _run(case, quick=quick, tokens=tokens, progress=progress)
    finally:
        variant.close()


def _run(case: _Case, *, quick: bool, tokens: int, progress: Progress | None) -> QuantizedReport:
    findings = [*_config_faults(case), *_path_faults(case.root), *_source_faults(case)]
    account = _account(case)
    findings += account.findings
    findings += _kept_faults(case, account)
    modules: tuple[ModuleError, ...] = ()
    if progress is not None:
        progress.stage("checking layers")
        names = [name for linear in account.linears for name in linear.parts.values()]
        num_bytes = sum(case.variant.info(name).nbytes for name in names)
        progress.start(num_bytes * (1 if case.source is None else 2), 0)
    findings += check_layers(case.variant, account, case.layout, progress=progress)
    if case.source is not None:
        measured = measure(
            case.variant, case.source.source, account, case.layout, case.architecture,
            case.config, folded=case.is_folded, progress=progress,
        )  # fmt: skip
        modules = measured.modules
        findings += measured.findings
    checks = [
        CheckResult.of(
            "layout", findings, f"{len(account.linears):,} layers as {case.layout.name}"
        ),
        CheckResult.of("tensors", findings, f"{len(case.variant.names()):,} tensors"),
        _error_check(case, modules, findings),
    ]
    answer, more, rest = _loaded(case, account, findings, quick=quick, tokens=tokens,
                                 progress=progress)  # fmt: skip
    return QuantizedReport(
        format=case.layout.name,
        source=None if case.source is None else str(case.source.reference),
        checks=(*checks, *rest),
        modules=modules,
        findings=tuple(dict.fromkeys([*findings, *more])),
        answer=answer,
    )


def _account(case: _Case) -> Account:
    if case.source is None:
        return account_alone(case.variant, case.layout, case.architecture, case.keep)
    return account_against(
        case.variant, case.source.source, case.layout, case.architecture, case.config, case.keep
    )


def _config_faults(case: _Case) -> list[Finding]:
    declared = case.config["quantization_config"]
    assert isinstance(declared, Mapping)
    found = [
        Finding("layout", "config.json", f"config.json: {fault}.")
        for fault in case.layout.config_faults(declared)
    ]
    stated = case.manifest.table("variant").get("format")
    if stated is not None and stated != case.layout.name:
        text = f"config.json declares {case.layout.name}; the manifest says {stated}."
        found.append(Finding("layout", "config.json", text))
    return found


def _path_faults(root: Path) -> list[Finding]:
    return [
        Finding("tensors", name, f"'{name}' names a path of a machine: {path}")
        for name, path in local_paths(root)
    ]


def _source_faults(case: _Case) -> list[Finding]:
    """Compare the source's files with those that the manifest names; hashes are not needed."""
    if case.source is None:
        return []
    stated = {
        entry.get("name"): entry.get("bytes")
        for item in case.manifest.items("inputs")
        if isinstance(item, Mapping) and isinstance(item.get("files"), list)
        for entry in item["files"]
        if isinstance(entry, Mapping)
    }
    found: dict[object, object] = {
        path.name: path.stat().st_size for path in case.source.source.files()
    }
    if not stated or stated == found:
        return []
    text = (
        f"'{case.source.reference}' is not what this was made from: the manifest names "
        f"{_files(stated)}, and it has {_files(found)}."
    )
    return [Finding("tensors", str(case.source.reference), text)]


def _files(sizes: Mapping[object, object]) -> str:
    shown = [f"{name} of {size} bytes" for name, size in sizes.items()]
    return ", ".join(shown[:2]) + (", ..." if len(shown) > 2 else "")


def _kept_faults(case: _Case, account: Account) -> list[Finding]:
    """Find layers that a loader would take for plain although they are quantized, or vice versa."""
    listed = kept_modules(case.config)
    found = []
    for linear in account.linears:
        match = next((name for name in listed if _skips(name, linear.module)), None)
        if match is not None:
            text = (
                f"config.json lists '{match}' among the modules in full precision, so loaders take "
                f"'{linear.module}' for one, but it is quantized."
            )
            found.append(Finding("layout", linear.module, text))
    return found


def _skips(pattern: str, module: str) -> bool:
    # transformers also matches a prefix and a suffix of the module's name.
    return (
        is_kept(module, (pattern,))
        or module.endswith(pattern)
        or re.match(re.escape(pattern), module) is not None
    )


def _error_check(
    case: _Case, modules: tuple[ModuleError, ...], findings: list[Finding]
) -> CheckResult:
    if case.source is None:
        return CheckResult("error", "skipped", "needs the source: --against SOURCE")
    if not modules:
        return CheckResult("error", "failed", "no layer could be compared")
    worst = max(error.relative for error in modules)
    mean = sum(error.relative for error in modules) / len(modules)
    text = (
        f"mean {mean:.1%}, worst {worst:.1%} of a layer's norm; {case.layout.bound:.1%} is allowed"
    )
    return CheckResult.of("error", findings, text)


def _loaded(
    case: _Case,
    account: Account,
    findings: list[Finding],
    *,
    quick: bool,
    tokens: int,
    progress: Progress | None,
) -> tuple[Answer | None, list[Finding], list[CheckResult]]:
    def skipped(reason: str) -> tuple[None, list[Finding], list[CheckResult]]:
        names: tuple[CheckName, ...] = ("load", "divergence")
        return None, [], [CheckResult(name, "skipped", reason) for name in names]

    if quick:
        return skipped("left out by --quick")
    if findings:
        return skipped("left out, because what would be loaded is wrong")
    if progress is not None:
        progress.stage("loading in a fresh process")
    source = None if case.source is None or _is_adapted(case.source) else case.source
    request = _request(case, account, source, tokens)
    try:
        found = load_in_fresh_process(request)
    except (CheckpointError, IncompatibleError, NonFiniteError) as error:
        problem = Finding("load", str(case.root.name), str(error))
        reason = "left out, because the model does not load"
        return None, [problem], [
            CheckResult("load", "failed", str(error)), CheckResult("divergence", "skipped", reason),
        ]  # fmt: skip
    load = CheckResult("load", "passed", f"by {found.consumer}, {len(found.reply)} tokens")
    if found.divergence is None:
        reason = "needs the source: --against SOURCE"
        if case.source is not None:
            reason = "the source is a model with an adapter; merge them first"
        return found, [], [load, CheckResult("divergence", "skipped", reason)]
    check, more = _divergence_check(found, compared_with_rtn=bool(request.rtn), case=case)
    return found, more, [load, check]


def _is_adapted(source: Checkpoint) -> bool:
    return source.reference.lora is not None


def _request(case: _Case, account: Account, source: Checkpoint | None, tokens: int) -> Request:
    root = str(case.root.resolve())
    if source is None:
        return Request(root, None, tokens)
    folder = str(source.root.resolve())
    if not isinstance(case.layout, GroupsOfCodes) or case.method == "rtn":
        return Request(root, folder, tokens)
    scheme = case.layout.scheme
    return Request(
        root, folder, tokens,
        rtn=tuple(linear.module for linear in account.linears),
        bits=scheme.bits,
        group_size=scheme.group_size,
        symmetric=scheme.symmetric,
        transposed=any(linear.transposed for linear in account.linears),
    )  # fmt: skip


def _divergence_check(
    found: Answer, *, compared_with_rtn: bool, case: _Case
) -> tuple[CheckResult, list[Finding]]:
    assert found.divergence is not None
    mean, top = _number(found.divergence, "mean"), _number(found.divergence, "same_top_share")
    ratio = _number(found.divergence, "perplexity_ratio")
    text = f"KL {mean:.4f} nats, same top {top:.1%}, perplexity × {ratio:.3f}"
    problems = []
    if not mean <= MAX_DIVERGENCE:
        problems.append(
            f"The model diverges from its source by {mean:.3f} nats a token; no quantization that "
            f"works exceeds {MAX_DIVERGENCE}."
        )
    if compared_with_rtn and found.rtn_divergence is not None:
        rounded = _number(found.rtn_divergence, "mean")
        text += f"; rounding to nearest has KL {rounded:.4f}"
        if not mean < rounded:
            problems.append(
                f"The model diverges from its source by {mean:.4f} nats a token, rounding to "
                f"nearest by {rounded:.4f}: the calibration did harm, or its text does not fit."
            )
    elif case.method == "rtn":
        text += "; it is rounding to nearest itself"
    else:
        text += f"; {case.layout.name} fixes its own codes, so there is no other rounding"
    findings = [Finding("divergence", case.root.name, problem) for problem in problems]
    return CheckResult.of("divergence", findings, text), findings


def _number(figures: Mapping[str, object], key: str) -> float:
    value = figures[key]
    assert isinstance(value, int | float)
    return float(value)


def _rounded(figures: Mapping[str, object] | None) -> dict[str, object] | None:
    # The last digits depend on the number of threads; a manifest must not.
    if figures is None:
        return None
    return {
        key: float(f"{value:.4g}") if isinstance(value, float) else value
        for key, value in figures.items()
    }

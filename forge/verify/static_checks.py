"""Check a quantized checkpoint without running it: layout, tensors, error of each layer.

Headers and weights are read tensor by tensor, so a model of any size needs little memory. Without
the source, what compares with it is skipped and says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forge.architectures.blocks import is_kept
from forge.architectures.table import Architecture
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.hashing import record_files
from forge.checkpoints.manifest import input_entry
from forge.checkpoints.manifest_reader import Manifest
from forge.checkpoints.source import TensorSource
from forge.verify.error_bounds import check_layers, measure
from forge.verify.findings import CheckResult, Finding, ModuleError
from forge.verify.layouts import kept_modules
from forge.verify.local_paths import local_paths
from forge.verify.schema import Account, account_against, account_alone
from forge.verify.stored import Layout

if TYPE_CHECKING:
    from forge.checkpoints.progress import Progress


@dataclass(frozen=True, slots=True)
class Case:
    """What all checks look at.

    Attributes:
        root: Folder of the quantized checkpoint.
        config: Its ``config.json``.
        manifest: Its manifest.
        layout: Its layout.
        architecture: Its family.
        variant: Its tensors.
        source: What it was made from; ``None`` when that is not at hand.
    """

    root: Path
    config: Mapping[str, object]
    manifest: Manifest
    layout: Layout
    architecture: Architecture
    variant: TensorSource
    source: Checkpoint | None

    @property
    def method(self) -> str:
        """How codes were chosen, as the manifest says."""
        return str(self.manifest.table("recipe").get("method", ""))

    @property
    def keep(self) -> tuple[str, ...]:
        """What was to stay in full precision."""
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


@dataclass(frozen=True, slots=True)
class StaticResult:
    """What the checks found.

    Attributes:
        account: What the checkpoint consists of.
        checks: Results of the three checks.
        modules: Errors of the layers.
        findings: Everything that is wrong.
    """

    account: Account
    checks: tuple[CheckResult, ...]
    modules: tuple[ModuleError, ...]
    findings: tuple[Finding, ...]


def check_statically(case: Case, *, progress: Progress | None = None) -> StaticResult:
    """Make the checks that run nothing.

    Args:
        case: What to check.
        progress: Hears how it goes.

    Returns:
        What was found.
    """
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
    checks = (
        CheckResult.of(
            "layout", findings, f"{len(account.linears):,} layers as {case.layout.name}"
        ),
        CheckResult.of("tensors", findings, f"{len(case.variant.names()):,} tensors"),
        _error_check(case, modules, findings),
    )
    return StaticResult(account, checks, modules, tuple(dict.fromkeys(findings)))


def _account(case: Case) -> Account:
    if case.source is None:
        return account_alone(case.variant, case.layout, case.architecture, case.keep)
    return account_against(
        case.variant, case.source.source, case.layout, case.architecture, case.config, case.keep
    )


def _config_faults(case: Case) -> list[Finding]:
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


def _source_faults(case: Case) -> list[Finding]:
    """Compare the source's files with those that the manifest names."""
    if case.source is None:
        return []
    stated = {
        str(entry.get("name")): entry
        for item in case.manifest.items("inputs")
        if isinstance(item, Mapping) and isinstance(item.get("files"), list)
        for entry in item["files"]
        if isinstance(entry, Mapping)
    }
    if not stated:
        return []
    found = {row.name: input_entry(row) for row in record_files(case.source.source.files())}
    if stated == found:
        return []
    text = (
        f"'{case.source.reference}' is not what this was made from: the manifest names "
        f"{_files(stated)}, and it has {_files(found)}."
    )
    return [Finding("tensors", str(case.source.reference), text)]


def _files(entries: Mapping[str, Mapping[str, object]]) -> str:
    shown = [
        f"{name} of {entry.get('bytes')} bytes and {entry.get('algorithm')} {entry.get('digest')}"
        for name, entry in sorted(entries.items())
    ]
    return ", ".join(shown[:2]) + (", ..." if len(shown) > 2 else "")


def _kept_faults(case: Case, account: Account) -> list[Finding]:
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
    case: Case, modules: tuple[ModuleError, ...], findings: list[Finding]
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

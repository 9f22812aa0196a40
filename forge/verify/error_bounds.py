"""Measure each layer of a quantized checkpoint against its source, in bounded memory.

A layer's error is the norm of the difference between what its codes stand for and the source's
weight, with folded scales applied, relative to the norm of the latter; the worst group of weights
that share a scale is measured likewise. Nothing here computes codes, so the measurement shares no
step with the quantization. Tensors in full precision must be the source's, byte by byte, apart from
those that scales were folded into.

Memory is a few arrays of one layer's codes and of 8 MiB a thread, however large the model is.
Legend: O output features, I input features, G groups.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from forge.architectures.blocks import LinearGroup, block_structure, linear_groups
from forge.architectures.table import Architecture
from forge.architectures.written import is_written
from forge.checkpoints.floats import decode
from forge.checkpoints.source import TensorSource
from forge.core.dtypes import DTYPES
from forge.core.errors import ForgeError
from forge.verify.findings import Finding, ModuleError
from forge.verify.folds import Folds, Scales, folds_of_block, row_scale, values_of
from forge.verify.plain_tensors import plain_faults
from forge.verify.schema import Account, QuantizedLinear
from forge.verify.stored import NUMPY, Floats, Layout, Stored

if TYPE_CHECKING:
    from forge.checkpoints.progress import Progress

_PIECE: Final = 1 << 21
"""Elements compared at once."""
_NEGLIGIBLE: Final = 1e-3
"""A group whose values are that small, relative to the tensor's, may be lost."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured.

    Attributes:
        modules: Errors of the quantized layers, in order of the checkpoint.
        findings: What is wrong with layers and with other tensors.
    """

    modules: tuple[ModuleError, ...]
    findings: tuple[Finding, ...]


def check_layers(
    variant: TensorSource, account: Account, layout: Layout, *, progress: Progress | None = None
) -> tuple[Finding, ...]:
    """Read every quantized layer, and see that what it holds makes sense by itself.

    Args:
        variant: The quantized checkpoint.
        account: What it consists of.
        layout: Its layout.
        progress: Hears how it goes.

    Returns:
        Layers whose packing is not reversible, and constants or scales that cannot be.
    """

    def check(linear: QuantizedLinear) -> list[Finding]:
        faults = _open(variant, linear, layout)[1]
        _advance(progress, variant, linear)
        return faults

    plain = [name for name in account.plain if DTYPES[variant.info(name).dtype].mergeable]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = [finding for faults in pool.map(check, account.linears) for finding in faults]
        wrong = pool.map(lambda name: plain_faults(variant, variant, name, None), plain)
        return (*found, *(finding for faults in wrong for finding in faults))


def measure(
    variant: TensorSource,
    source: TensorSource,
    account: Account,
    layout: Layout,
    architecture: Architecture,
    config: Mapping[str, object],
    *,
    folded: bool,
    progress: Progress | None = None,
) -> Measurement:
    """Measure every layer against the source.

    Args:
        variant: The quantized checkpoint.
        source: What it was made from.
        account: What the variant consists of.
        layout: Its layout.
        architecture: The model's family.
        config: Its ``config.json``.
        folded: Whether the method folds scales into norms and rows.
        progress: Hears how it goes.

    Returns:
        The errors, and what exceeds its bound.
    """
    present = {linear.module: linear for linear in account.linears}
    tied = architecture.is_tied(config)
    shapes = {
        name: source.info(name).shape
        for name in source.names()
        if is_written(name, architecture, tied=tied)
    }
    blocks = linear_groups(architecture, shapes, config)
    one_plus = block_structure(architecture).one_plus
    modules: list[ModuleError] = []
    findings: list[Finding] = []
    scaled: dict[str, Scales] = {}
    norms: set[str] = set()
    fitted: set[str] = set()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for groups in blocks.values():
            folds = Folds()
            if folded:
                folds, faults = folds_of_block(
                    groups, variant, source, one_plus=one_plus,
                    fit=_fitter(variant, source, layout, present, groups),
                )  # fmt: skip
                findings += faults
            scaled |= folds.tensors
            norms |= folds.norms
            fitted |= folds.fitted
            linears = [linear for group in groups for linear in group.linears]

            def judge(
                module: str, folds: Folds = folds
            ) -> tuple[ModuleError | None, list[Finding]]:
                result = _judge(variant, source, present[module], layout, folds)
                _advance(progress, variant, present[module])
                return result

            inside = [linear.module for linear in linears if linear.module in present]
            for error, faults in pool.map(judge, inside):
                modules += [error] if error is not None else []
                findings += faults
            for linear in linears:
                if linear.module not in present and folded:
                    scales_OI = _plain_scales(folds, linear.module, linear.shape_OI)
                    scaled[linear.tensor] = scales_OI.T if linear.transposed else scales_OI
                    fitted.add(linear.tensor)
        plain = [name for name in account.plain if name not in norms]
        jobs = [
            pool.submit(
                plain_faults, variant, source, name, scaled.get(name), fitted=name in fitted
            )
            for name in plain
        ]
        for job in jobs:
            findings += job.result()
    return Measurement(tuple(modules), tuple(findings))


def _plain_scales(folds: Folds, module: str, shape_OI: tuple[int, int]) -> Scales:
    rows_O = row_scale(folds.rows, module, shape_OI[0])
    columns_I = row_scale(folds.columns, module, shape_OI[1])
    return rows_O[:, None] * columns_I


def _open(
    variant: TensorSource, linear: QuantizedLinear, layout: Layout
) -> tuple[Stored | None, list[Finding]]:
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for suffix, name in linear.parts.items():
        info = variant.info(name)
        arrays[suffix] = np.frombuffer(variant.read(name), NUMPY[info.dtype]).reshape(info.shape)
    try:
        stored = layout.open(arrays, linear.shape_OI)
    except ForgeError as error:
        text = f"'{linear.module}' cannot be unpacked: {error}"
        return None, [Finding("layout", linear.module, text)]
    return stored, [
        Finding("layout", linear.module, f"'{linear.module}': {fault}.") for fault in stored.faults
    ]


def _source_rows(source: TensorSource, linear: QuantizedLinear) -> Callable[[int, int], Floats]:
    name = f"{linear.module}.weight"
    info = source.info(name)
    if linear.transposed:
        values_OI = values_of(source, name).T
        return lambda begin, end: values_OI[begin:end]
    row_bytes = DTYPES[info.dtype].itemsize * linear.shape_OI[1]
    view = source.read(name)

    def rows(begin: int, end: int) -> Floats:
        part = decode(view[begin * row_bytes : end * row_bytes], info.dtype)
        return part.astype(np.float32, copy=False).reshape(end - begin, -1)

    return rows


def _pieces(shape_OI: tuple[int, int]) -> list[tuple[int, int]]:
    step = max(1, _PIECE // max(1, shape_OI[1]))
    return [(start, min(start + step, shape_OI[0])) for start in range(0, shape_OI[0], step)]


def _fitter(
    variant: TensorSource,
    source: TensorSource,
    layout: Layout,
    present: Mapping[str, QuantizedLinear],
    groups: Sequence[LinearGroup],
) -> Callable[[str], Scales]:
    shapes = {linear.module: linear for group in groups for linear in group.linears}

    def fit(module: str) -> Scales:
        known = shapes[module]
        linear = present.get(module)
        if linear is None:
            names = {"weight": known.tensor}
            linear = QuantizedLinear(module, known.shape_OI, names, known.transposed)
            after = _source_rows(variant, linear) if known.tensor in variant.names() else None
        else:
            stored = _open(variant, linear, layout)[0]
            after = None if stored is None else stored.rows
        inner, square = np.zeros((2, known.shape_OI[1]))
        if after is not None:
            before = _source_rows(source, linear)
            for begin, end in _pieces(known.shape_OI):
                reference_OI = before(begin, end)
                inner += np.einsum("oi,oi->i", reference_OI, after(begin, end))
                square += np.einsum("oi,oi->i", reference_OI, reference_OI)
        with np.errstate(divide="ignore", invalid="ignore"):
            scales = inner / square
        # A column of zeros has no scale; a layer that is damage has none that is positive.
        return np.where(scales > 0, scales, 1.0).astype(np.float32)

    return fit


def _judge(
    variant: TensorSource,
    source: TensorSource,
    linear: QuantizedLinear,
    layout: Layout,
    folds: Folds,
) -> tuple[ModuleError | None, list[Finding]]:
    stored, _ = _open(variant, linear, layout)
    if stored is None:
        return None, []
    num_out, num_in = linear.shape_OI
    rows_O = row_scale(folds.rows, linear.module, num_out)
    columns_I = row_scale(folds.columns, linear.module, num_in)
    before = _source_rows(source, linear)
    size = stored.group_size
    wrong_OG = np.zeros((num_out, num_in // size))
    right_OG = np.zeros_like(wrong_OG)
    for begin, end in _pieces(linear.shape_OI):
        reference_OI = before(begin, end) * rows_O[begin:end, None]
        reference_OI *= columns_I
        difference_OGI = (stored.rows(begin, end) - reference_OI).reshape(end - begin, -1, size)
        reference_OGI = reference_OI.reshape(difference_OGI.shape)
        wrong_OG[begin:end] = np.einsum("ogi,ogi->og", difference_OGI, difference_OGI)
        right_OG[begin:end] = np.einsum("ogi,ogi->og", reference_OGI, reference_OGI)
    return _verdict(linear.module, wrong_OG, right_OG, layout)


def _verdict(
    module: str,
    wrong_OG: npt.NDArray[np.float64],
    right_OG: npt.NDArray[np.float64],
    layout: Layout,
) -> tuple[ModuleError, list[Finding]]:
    total = float(right_OG.sum())
    relative = float(np.sqrt(wrong_OG.sum() / total)) if total else float(wrong_OG.any())
    counts = right_OG > _NEGLIGIBLE**2 * total / right_OG.size
    ratios = np.sqrt(wrong_OG[counts] / right_OG[counts])
    # A NaN among them is the worst, and max() passes it on.
    worst = float(ratios.max(initial=0.0))
    error = ModuleError(module, relative, worst)
    findings = []
    if not relative <= layout.bound:
        text = (
            f"'{module}' differs from its source by {relative:.1%} of its norm; {layout.name} "
            f"stays below {layout.bound:.1%}."
        )
        findings.append(Finding("error", module, text))
    num_bad = int(np.count_nonzero(~(ratios <= layout.group_bound)))
    if num_bad:
        text = (
            f"'{module}' has {num_bad:,} of {counts.size:,} groups that differ from their source "
            f"by more than {layout.group_bound:.0%} of their norm, the worst by {worst:.0%}."
        )
        findings.append(Finding("error", module, text))
    return error, findings


def _advance(progress: Progress | None, variant: TensorSource, linear: QuantizedLinear) -> None:
    if progress is not None:
        progress.advance(sum(variant.info(name).nbytes for name in linear.parts.values()))

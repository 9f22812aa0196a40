"""Decide what becomes of every tensor, from headers and configuration alone.

A plan is data. It is printed by ``--dry-run``, fixes the layout of the files before any of them
exists, and tells the workers what to do.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forge.architectures.blocks import Linear, is_kept, quantizable_linears
from forge.architectures.names import architecture_of
from forge.architectures.table import Architecture
from forge.architectures.written import is_written
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.header import TensorInfo
from forge.checkpoints.layout import PlannedTensor
from forge.core.dtypes import BY_TORCH_NAME, DTYPES
from forge.core.errors import IncompatibleError, OutputError
from forge.formats.contract import Part
from forge.formats.raw_weight import KINDS
from forge.quantize.layouts import Layout
from forge.recipes.quantize_types import QuantizeRecipe, Variant

if TYPE_CHECKING:
    import numpy as np

_PROCESS_BYTES: Final = 180_000_000
"""Interpreter, numpy and compiled kernels, before any work."""
_TENSOR_BYTES: Final = 6_000
"""What plan, journal and manifest hold about one tensor."""
_EXPERT: Final = re.compile(r"\.experts?\.\d+\.")
_TORCH_BYTES: Final = 150_000_000
"""What calibration needs beside, to run blocks."""
_BYTES_PER_WEIGHT: Final = {"bnb": 0.25, "rtn": 3, "awq": 8}
"""What a thread holds of the layer that it works on, above its bytes in the file. Measured on a
block of 70B: bnb streams what it writes (0.11 with double quantization); rtn holds codes, and packs
them (2.4); awq holds what it tries (4.4), beside the whole block in float32."""


@dataclass(frozen=True)
class PlannedOutput:
    """One output: a variant and the tensors that make it.

    Attributes:
        variant: The variant.
        folder: Its folder below the output, or ``None`` when it is the output itself.
        layout: How layers are written.
        parts: What each layer becomes, by module.
        tensors: All tensors, in the order of the source.
        quantization_config: For ``config.json``.
    """

    variant: Variant
    folder: str | None
    layout: Layout
    parts: Mapping[str, tuple[Part, ...]]
    tensors: tuple[PlannedTensor, ...]
    quantization_config: Mapping[str, object]

    @cached_property
    def output_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def names_of(self, linear: Linear) -> tuple[str, ...]:
        """Return the names of a layer's parts.

        Args:
            linear: The layer.
        """
        return tuple(f"{linear.module}.{part.suffix}" for part in self.parts[linear.module])


@dataclass(frozen=True)
class QuantizePlan:
    """Everything that a quantization writes.

    Attributes:
        method: How codes are chosen.
        architecture: The model's family.
        linears: Layers that are quantized, in the order of the source.
        sources: Metadata of their weights and of all other tensors that are written, by name.
        dtypes: Element type of each of these as it is written, or as it enters quantization.
        kept: Tensors that stay in full precision, in the order of the source.
        kept_linears: Modules among them that are linear layers, the head apart.
        outputs: One for each variant.
        notices: What the user should know.
    """

    method: str
    architecture: Architecture
    linears: tuple[Linear, ...]
    sources: Mapping[str, TensorInfo]
    dtypes: Mapping[str, str]
    kept: tuple[str, ...]
    kept_linears: tuple[str, ...]
    outputs: tuple[PlannedOutput, ...]
    notices: tuple[str, ...] = field(default=())

    @property
    def input_bytes(self) -> int:
        """Bytes of all tensors that are read."""
        return sum(info.nbytes for info in self.sources.values())

    @property
    def output_bytes(self) -> int:
        """Bytes of all tensors of all outputs."""
        return sum(output.output_bytes for output in self.outputs)

    @property
    def num_parameters(self) -> int:
        """Numbers in the source."""
        return sum(info.numel for info in self.sources.values())

    @property
    def num_quantized(self) -> int:
        """How many of them become codes."""
        return sum(linear.shape_OI[0] * linear.shape_OI[1] for linear in self.linears)

    @property
    def _widest_block(self) -> int:
        """Most weights of one decoder block."""
        weights: Counter[int] = Counter()
        for linear in self.linears:
            weights[linear.block] += linear.shape_OI[0] * linear.shape_OI[1]
        return max(weights.values(), default=0)

    def memory_bytes(self, threads: int | None = None) -> int:
        """Estimate the memory that the work needs, beside mapped files.

        Args:
            threads: Worker threads; by default one for each core that this process may use.
        """
        width = threads or len(os.sched_getaffinity(0))
        widest = max(
            (linear.shape_OI[0] * linear.shape_OI[1] for linear in self.linears), default=0
        )
        tensors = sum(len(output.tensors) for output in self.outputs)
        calibration = _TORCH_BYTES + 4 * self._widest_block if self.method == "awq" else 0
        return (
            _PROCESS_BYTES
            + calibration
            + int(width * widest * _BYTES_PER_WEIGHT[self.method])
            + tensors * _TENSOR_BYTES
        )

    def summary(self) -> dict[str, object]:
        """Return the plan as plain JSON values."""
        return {
            "method": self.method,
            "architecture": self.architecture.name,
            "num_parameters": self.num_parameters,
            "num_quantized": self.num_quantized,
            "num_linears": len(self.linears),
            "kept_linears": list(self.kept_linears),
            "input_bytes": self.input_bytes,
            "output_bytes": self.output_bytes,
            "memory_bytes": self.memory_bytes(),
            "notices": list(self.notices),
            "outputs": [
                {
                    "format": output.variant.format,
                    "bits": output.variant.bits,
                    "group_size": output.variant.group_size,
                    "double_quant": output.variant.double_quant,
                    "folder": output.folder,
                    "num_tensors": len(output.tensors),
                    "output_bytes": output.output_bytes,
                    "bits_per_weight": 8 * output.output_bytes / max(1, self.num_parameters),
                    "quantization_config": dict(output.quantization_config),
                    "tensors": [
                        {"name": row.name, "dtype": row.dtype, "shape": list(row.shape)}
                        for row in output.tensors
                    ],
                }
                for output in self.outputs
            ],
        }


def output_folders(recipe: QuantizeRecipe, out: Path) -> tuple[Path, ...]:
    """Return where each variant goes: the folder itself, or of several one in it for each.

    Args:
        recipe: What to make.
        out: The folder that the user names.

    Returns:
        One folder for each variant.

    Raises:
        OutputError: The folder is a link that leads nowhere.
    """
    try:
        out.resolve()
    except (OSError, RuntimeError) as error:
        raise OutputError(
            f"'{out}' is a link that leads nowhere. Choose another output."
        ) from error
    if len(recipe.variants) == 1:
        return (out,)
    return tuple(out / variant.format for variant in recipe.variants)


def build_plan(
    recipe: QuantizeRecipe,
    checkpoint: Checkpoint,
    *,
    means: Mapping[str, np.float32] | None = None,
) -> QuantizePlan:
    """Plan a quantization.

    Args:
        recipe: What to make.
        checkpoint: The model.
        means: For double quantization, the mean of the blocks' magnitudes by module; without it,
            sizes are right within a few bytes a layer.

    Returns:
        The plan.

    Raises:
        IncompatibleError: Its architecture is unknown, or a layer does not fit a format.
    """
    source = checkpoint.source
    infos = {name: source.info(name) for name in source.names()}
    label = str(checkpoint.reference)
    architecture = architecture_of(checkpoint.config, tensor_names=infos)
    tied = architecture.is_tied(checkpoint.config)
    written = {
        name: info for name, info in infos.items() if is_written(name, architecture, tied=tied)
    }
    linears = _linears(recipe, architecture, written, label)
    by_tensor = {linear.tensor: linear for linear in linears}
    kept = tuple(name for name in written if name not in by_tensor)
    dtypes, notices = _dtypes(recipe, checkpoint, architecture, written)
    kept_linears = _kept_linears(architecture, written, kept)
    outputs = tuple(
        _output(
            variant, recipe, written, by_tensor, dtypes, kept_linears, architecture, means or {}
        )
        for variant in recipe.variants
    )
    return QuantizePlan(
        method=recipe.method,
        architecture=architecture,
        linears=tuple(by_tensor[name] for name in written if name in by_tensor),
        sources=written,
        dtypes=dtypes,
        kept=kept,
        kept_linears=kept_linears,
        outputs=outputs,
        notices=(*([architecture.notice] if architecture.notice else []), *notices),
    )


def _linears(
    recipe: QuantizeRecipe,
    architecture: Architecture,
    written: Mapping[str, TensorInfo],
    label: str,
) -> tuple[Linear, ...]:
    shapes = {name: info.shape for name, info in written.items()}
    found = [
        linear
        for linear in quantizable_linears(architecture, shapes)
        if not is_kept(linear.module, recipe.keep)
    ]
    if not found:
        raise IncompatibleError(
            f"Nothing of '{label}' would be quantized: 'keep' covers every linear layer."
            if recipe.keep
            else f"'{label}' has no linear layers in decoder blocks."
        )
    for linear in found:
        dtype = written[linear.tensor].dtype
        if dtype not in KINDS:
            raise IncompatibleError(
                f"'{linear.tensor}' is stored as {dtype}; quantization reads "
                f"{', '.join(KINDS)}. Convert the model first."
            )
    if recipe.method == "bnb":
        _refuse_experts(found)
    return tuple(found)


def _refuse_experts(linears: Sequence[Linear]) -> None:
    """Refuse what could be written, and then be loaded by nobody."""
    experts = [linear.module for linear in linears if _EXPERT.search(linear.module)]
    if experts:
        raise IncompatibleError(
            f"'{experts[0]}' is one of {len(experts)} layers of experts. transformers fuses them "
            "into one tensor, which bitsandbytes has no layer for, so nobody could load them "
            "quantized. Leave them in full precision (--keep experts), or take --method awq or "
            "rtn."
        )


def _dtypes(
    recipe: QuantizeRecipe,
    checkpoint: Checkpoint,
    architecture: Architecture,
    written: Mapping[str, TensorInfo],
) -> tuple[dict[str, str], list[str]]:
    """Return the type of each tensor after reading, which for bitsandbytes the config decides.

    transformers casts every float to the config's type before it quantizes.
    """
    own = {name: info.dtype for name, info in written.items()}
    parts = (checkpoint.config, architecture.text_config(checkpoint.config))
    stated = next(
        (part[key] for part in parts for key in ("dtype", "torch_dtype") if key in part), None
    )
    target = BY_TORCH_NAME.get(stated) if isinstance(stated, str) else None
    if recipe.method != "bnb" or target is None or target.name not in KINDS:
        return own, []
    cast = {
        name: target.name
        for name, dtype in own.items()
        if DTYPES[dtype].is_float and dtype != target.name
    }
    if not cast:
        return own, []
    notice = (
        f"{len(cast)} tensors, such as '{next(iter(cast))}', are rounded to {stated}, the type "
        "that config.json states, as transformers does before it quantizes."
    )
    return own | cast, [notice]


def _kept_linears(
    architecture: Architecture, written: Mapping[str, TensorInfo], kept: tuple[str, ...]
) -> tuple[str, ...]:
    """Return what loaders would take for a linear layer to convert, and must be told to leave."""
    apart = {*architecture.embeddings, *architecture.heads}
    return tuple(
        name.removesuffix(".weight")
        for name in kept
        if name.endswith(".weight")
        and len(written[name].shape) == 2
        and name not in apart
        and not name.endswith(_LOOKED_UP)
    )


_LOOKED_UP: Final = (
    "embed_tokens.weight", "embed_positions.weight", "wte.weight", "wpe.weight",
    "word_embeddings.weight", "position_embedding.weight", "norm.weight",
)  # fmt: skip
"""Tables that no linear layer multiplies by."""


def _output(
    variant: Variant,
    recipe: QuantizeRecipe,
    written: Mapping[str, TensorInfo],
    by_tensor: Mapping[str, Linear],
    dtypes: Mapping[str, str],
    kept_linears: tuple[str, ...],
    architecture: Architecture,
    means: Mapping[str, np.float32],
) -> PlannedOutput:
    layout = Layout(variant, means)
    parts: dict[str, tuple[Part, ...]] = {}
    tensors: list[PlannedTensor] = []
    for name, info in written.items():
        linear = by_tensor.get(name)
        if linear is None:
            tensors.append(PlannedTensor(name, info.shape, dtypes[name]))
            continue
        try:
            parts[linear.module] = layout.parts(linear, dtypes[name])
        except IncompatibleError as error:
            raise IncompatibleError(f"'{linear.tensor}': {error}") from error
        tensors += [
            PlannedTensor(f"{linear.module}.{part.suffix}", part.shape, part.dtype)
            for part in parts[linear.module]
        ]
    heads = tuple(
        dict.fromkeys(
            name.removesuffix(".weight")
            for name in architecture.heads
            if name.endswith(".weight") and (name in written or name == "lm_head.weight")
        )
    )
    return PlannedOutput(
        variant=variant,
        folder=variant.format if len(recipe.variants) > 1 else None,
        layout=layout,
        parts=parts,
        tensors=tuple(tensors),
        quantization_config=layout.quantization_config(kept_linears, heads),
    )

"""Real outputs of the quantizer on tiny models, and damage that hashes do not notice."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from forge.architectures.block_table import BLOCKS
from forge.architectures.blocks import linear_groups
from forge.architectures.names import architecture_of
from forge.checkpoints.checkpoint import open_checkpoint
from forge.checkpoints.hashing import record_files
from forge.checkpoints.manifest import input_entry
from forge.checkpoints.manifest_reader import read_manifest
from forge.quantize.run import run_quantize
from forge.recipes.quantize_types import QuantizeRecipe, Variant
from forge.recipes.reference import ModelReference
from forge.verify.quantized import QuantizedReport, verify_quantized
from tests.architectures.tiny_models import save_tiny
from tests.factory import write_safetensors, write_tokenizer
from tests.verify.published import describe, edit_manifest, tensors_of

WEIGHTS = "model.safetensors"
BITS = {"bnb-int8": 8}

Tensors = dict[str, tuple[str, list[int], bytes]]


def make_source(root: Path, case: str = "llama", *, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a tiny model of ``CASES`` with a tokenizer, and return its folder."""
    root.mkdir(parents=True)
    save_tiny(case, root)
    tensors = load_file(root / WEIGHTS)
    save_file(
        {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()},
        root / WEIGHTS,
        metadata={"format": "pt"},
    )
    config = json.loads((root / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (root / "config.json").write_text(json.dumps(config))
    write_tokenizer(root)
    return root


def quantize(
    source: Path,
    out: Path,
    format_name: str,
    *,
    method: str | None = None,
    group_size: int = 32,
    double_quant: bool = False,
    keep: tuple[str, ...] = (),
) -> Path:
    """Quantize with forge's own runner, and return the output's folder."""
    is_bnb = format_name.startswith("bnb")
    if is_bnb:
        group_size = 0 if format_name == "bnb-int8" else 64
    variant = Variant(format_name, BITS.get(format_name, 4), group_size, double_quant)
    recipe = QuantizeRecipe(
        method=method or ("bnb" if is_bnb else "rtn"),
        variants=(variant,),
        model=ModelReference.parse(str(source)),
        keep=keep,
    )
    run_quantize(recipe, out, threads=1)
    return out


def fold(source: Path, out: Path, *, spread: float = 0.5, seed: int = 3) -> Path:
    """Copy a model with random scales folded into every feeder, as AWQ does before it rounds."""
    out.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != WEIGHTS:
            (out / path.name).write_bytes(path.read_bytes())
    tensors = {name: tensor.float() for name, tensor in load_file(source / WEIGHTS).items()}
    config = json.loads((source / "config.json").read_text())
    architecture = architecture_of(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    one = 1.0 if BLOCKS[architecture.name].one_plus else 0.0
    generator = torch.Generator().manual_seed(seed)
    for group in [
        g for block in linear_groups(architecture, shapes, config).values() for g in block
    ]:
        if group.norm is None and group.feeder is None:
            continue
        size = group.linears[0].shape_OI[1]
        scale = torch.exp(spread * torch.randn(size, generator=generator))
        for linear in group.linears:
            tensors[linear.tensor] *= scale[:, None] if linear.transposed else scale
        for companion in group.companions:
            tensors[companion] *= scale
        if group.norm is not None:
            name = f"{group.norm}.weight"
            tensors[name] = (tensors[name] + one) / scale - one
            if f"{group.norm}.bias" in tensors:
                tensors[f"{group.norm}.bias"] /= scale
        else:
            rows = list(group.rows)
            feeder = tensors[f"{group.feeder}.weight"]
            if group.linears[0].transposed:
                feeder[:, rows] /= scale
            else:
                feeder[rows] /= scale[:, None]
            if f"{group.feeder}.bias" in tensors:
                tensors[f"{group.feeder}.bias"][rows] /= scale
    save_file(
        {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()},
        out / WEIGHTS,
        metadata={"format": "pt"},
    )
    return out


def quantize_folded(source: Path, work: Path, format_name: str, **options: int) -> Path:
    """Return an output whose codes are of the folded model, as if AWQ had made it of ``source``."""
    out = quantize(fold(source, work / "folded"), work / "out", format_name, **options)

    def edit(manifest: dict[str, object]) -> None:
        recipe, inputs = manifest["recipe"], manifest["inputs"]
        assert isinstance(recipe, dict)
        assert isinstance(inputs, list)
        recipe["method"] = "awq"
        inputs[0]["files"] = [input_entry(row) for row in record_files([source / WEIGHTS])]

    edit_manifest(out, edit)
    return out


def rewrite(root: Path, edit: Callable[[Tensors], None]) -> None:
    """Change the tensors of an output and make its manifest fit, as if it had been made so."""
    tensors = tensors_of(root / WEIGHTS)
    edit(tensors)
    write_safetensors(root / WEIGHTS, tensors)
    rehash(root)


def rehash(root: Path) -> None:
    """Make a manifest fit the files as they are."""

    def refresh(manifest: dict[str, object]) -> None:
        found = describe(root)
        manifest |= {key: found[key] for key in ("tensors", "files", "content_digest")}

    edit_manifest(root, refresh)


def edit_array(tensors: Tensors, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change one tensor's numbers; bfloat16 appears as its bits."""
    dtype, shape, data = tensors[name]
    kind = {"I32": "<i4", "F16": "<f2", "F32": "<f4", "U8": "u1", "I8": "i1", "BF16": "<u2"}[dtype]
    array = change(np.frombuffer(data, kind).reshape(shape).copy())
    assert array.size == math.prod(shape)
    tensors[name] = (dtype, shape, np.ascontiguousarray(array.astype(kind)).tobytes())


def check(root: Path, source: Path | None, *, quick: bool = True) -> QuantizedReport:
    """Verify an output against a source."""
    manifest = read_manifest(root)
    assert manifest is not None
    if source is None:
        return verify_quantized({root: manifest}, None, quick=quick)[0]
    checkpoint = open_checkpoint(ModelReference.parse(str(source)))
    try:
        return verify_quantized({root: manifest}, checkpoint, quick=quick)[0]
    finally:
        checkpoint.source.close()

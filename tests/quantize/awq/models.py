"""Tiny checkpoints for the calibrated search, with activations that make scales worth while."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.formats.contract import Scheme
from forge.quantize.contract import BlockResult
from forge.quantize.methods.rtn import dequantize
from forge.recipes.reference import ModelReference
from tests.architectures.tiny_models import tiny_model

SCHEME = Scheme(4, 16)
TOKENS_BT: npt.NDArray[np.int64] = np.random.default_rng(11).integers(3, 96, (5, 48))


def save_with_outliers(
    case: str, folder: Path, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Checkpoint:
    """Save a tiny model, a few of whose normed features are ten times larger than the rest."""
    model = tiny_model(case, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            feeds = ("input_layernorm", "post_attention", "pre_feed", "ln_", "layer_norm", "norm_")
            if parameter.ndim == 1 and parameter.numel() == 64 and any(x in name for x in feeds):
                parameter[::9] += 8.0
    model.to(dtype).save_pretrained(folder)
    return open_checkpoint(ModelReference(str(folder)))


def apply(model: PreTrainedModel, results: list[BlockResult]) -> None:
    """Put quantized weights and folded tensors into a float32 model of the same checkpoint."""
    parameters = dict(model.named_parameters())
    modules = dict(model.named_modules())
    with torch.no_grad():
        for result in results:
            for module, quantized in result.weights.items():
                weight = torch.from_numpy(dequantize(quantized))
                transposed = type(modules[module]).__name__ == "Conv1D"
                parameters[f"{module}.weight"].copy_(weight.T if transposed else weight)
            for name, plain in result.folded.items():
                dtype = {"BF16": torch.bfloat16, "F32": torch.float32}[plain.dtype]
                values = torch.from_numpy(plain.data.copy()).view(dtype).view(plain.shape)
                parameters[name].copy_(values.float())

"""Tiny checkpoints in every format that forge emits, and what they mean in full precision.

Written with the formats alone, so that a mistake of the runner is not a mistake of these tests.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import transformers
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file

from forge.architectures.blocks import Linear
from forge.formats import bnb_4bit, bnb_int8
from forge.formats.bnb_state import read_state
from forge.formats.contract import Scheme
from forge.formats.raw_weight import RawWeight
from forge.quantize.layouts import Layout
from forge.quantize.methods.rtn import dequantize, quantize_rtn
from forge.recipes.quantize_types import Variant
from tests.factory import write_tokenizer

FORMATS = (
    "awq-gemm", "awq-gemv", "awq-gemv_fast", "compressed-tensors", "gptq",
    "bnb-nf4", "bnb-fp4", "bnb-int8",
)  # fmt: skip

Floats = npt.NDArray[np.float32]


def llama(**settings: object) -> transformers.PreTrainedModel:
    """Return a tiny Llama whose widths are multiples of 64, with weights that matter."""
    torch.manual_seed(0)
    sizes: dict[str, object] = {
        "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "initializer_range": 0.1,
    }  # fmt: skip
    config = transformers.LlamaConfig(**(sizes | settings), dtype="bfloat16")
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


@dataclass(frozen=True)
class Pair:
    """A quantized checkpoint, and the same numbers in full precision."""

    quantized: Path
    dense: Path


def is_block_linear(name: str, tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is the weight of a linear layer of a block, by Llama's habits."""
    inner = ".layers." in name or ".h." in name
    is_router = name.endswith((".gate.weight", ".router.weight"))
    return inner and name.endswith(".weight") and tensor.ndim == 2 and not is_router


def quantized_pair(
    model: transformers.PreTrainedModel,
    root: Path,
    format_name: str,
    *,
    bits: int = 4,
    group_size: int = 64,
    double_quant: bool = False,
    transposed: bool = False,
    chosen: Callable[[str, torch.Tensor], bool] = is_block_linear,
) -> Pair:
    """Write a model quantized, and beside it the model that the codes stand for, in float32."""
    dense, quantized = root / "dense", root / format_name
    model.save_pretrained(dense)
    write_tokenizer(dense)
    tensors = load_file(dense / "model.safetensors")
    variant = Variant(format_name, bits, group_size, double_quant)
    plain, parts = {}, {}
    for name, tensor in tensors.items():
        if not chosen(name, tensor):
            plain[name] = tensor
            continue
        weight = (tensor.T if transposed else tensor).float().numpy()
        made, values = quantize_weight(np.ascontiguousarray(weight), variant)
        parts |= {f"{name.removesuffix('.weight')}.{suffix}": part for suffix, part in made.items()}
        value = torch.from_numpy(values)
        tensors[name] = (value.T if transposed else value).contiguous()
    assert parts, "nothing was quantized"
    quantized.mkdir()
    save_file(plain, quantized / "model-00001-of-00002.safetensors", {"format": "pt"})
    save_numpy(parts, quantized / "model-00002-of-00002.safetensors", {"format": "pt"})
    weight_map = dict.fromkeys(plain, "model-00001-of-00002.safetensors")
    weight_map |= dict.fromkeys(parts, "model-00002-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (quantized / "model.safetensors.index.json").write_text(json.dumps(index))
    for file in dense.glob("*.json"):
        shutil.copy(file, quantized)
    config = json.loads((dense / "config.json").read_text())
    config["quantization_config"] = Layout(variant, {}).quantization_config((), ("lm_head",))
    (quantized / "config.json").write_text(json.dumps(config))
    save_file({n: t.float() for n, t in tensors.items()}, dense / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    return Pair(quantized, dense)


def quantize_weight(
    weight_OI: Floats, variant: Variant
) -> tuple[dict[str, npt.NDArray[np.generic]], Floats]:
    """Return a weight's parts by suffix, and the values that they stand for."""
    if not variant.format.startswith("bnb-"):
        weight = quantize_rtn(weight_OI, Scheme(variant.bits, variant.group_size))
        return Layout(variant, {}).pack(weight), dequantize(weight)
    linear = Linear("x", "x.weight", weight_OI.shape, False, 0, True)
    raw = RawWeight(weight_OI.reshape(-1).view(np.uint8), "F32", weight_OI.shape)
    means = {"x": bnb_4bit.mean_of_blocks(raw)} if variant.double_quant else {}
    layout = Layout(variant, means)
    types = {"F32": np.float32, "U8": np.uint8, "I8": np.int8}
    made = {part.suffix: np.zeros(part.shape, types[part.dtype]) for part in
            layout.parts(linear, "F32")}  # fmt: skip

    def emit(suffix: str, offset: int, values: npt.NDArray[np.generic]) -> None:
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        made[suffix].reshape(-1).view(np.uint8)[offset : offset + data.size] = data

    layout.quantize(linear, raw, emit)
    if variant.format == "bnb-int8":
        return made, bnb_int8.dequantize(made, "F32").astype(np.float32)
    kind = variant.format.removeprefix("bnb-")
    state = read_state(made[f"weight.quant_state.bitsandbytes__{kind}"].tobytes())
    return made, bnb_4bit.dequantize(made, state, "F32").astype(np.float32)

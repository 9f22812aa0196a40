"""Recognize a quantized checkpoint, so that its codes are never taken for weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from forge.checkpoints.header import TensorInfo
from forge.core.dtypes import DTYPES

QUANTIZATION_KEYS: Final = ("quantization_config", "compression_config", "quantization")
"""Keys of ``config.json`` that describe a quantization."""

_BY_SUFFIX: Final = (
    (".quant_state.bitsandbytes__nf4", "bitsandbytes NF4"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes FP4"),
    (".absmax", "bitsandbytes"),
    (".SCB", "bitsandbytes int8"),
    (".qweight", "GPTQ or AWQ"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_inv", "block-scaled FP8"),
    (".weight_blocks", "MXFP4"),
    ("_blocks", "MXFP4"),
)
_SUFFIXES: Final = tuple(suffix for suffix, _ in _BY_SUFFIX)


def declared_quantization(config: Mapping[str, object]) -> Mapping[str, object] | None:
    """Return what a ``config.json`` says about quantization, wherever it says it.

    Args:
        config: The configuration.
    """
    for section in (config, config.get("text_config")):
        for key in QUANTIZATION_KEYS:
            found = section.get(key) if isinstance(section, Mapping) else None
            if isinstance(found, Mapping) and found:
                # MLX names no method; its key is the name.
                return {"quant_method": "mlx", **found} if key == "quantization" else found
    return None


def quantization_of(config: Mapping[str, object], tensors: Iterable[TensorInfo]) -> str | None:
    """Describe how a checkpoint is quantized.

    Args:
        config: Its ``config.json``.
        tensors: Its tensors' metadata.

    Returns:
        A short description such as ``gptq, 4 bits`` or ``F8_E4M3 tensors``; ``None`` when its
        weights are plain numbers. Integer tensors of buffers (positions, masks) do not count.
    """
    declared = declared_quantization(config)
    if declared is not None:
        return _describe(declared)
    for tensor in tensors:
        for suffix, name in _BY_SUFFIX if tensor.name.endswith(_SUFFIXES) else ():
            if tensor.name.endswith(suffix) and not DTYPES[tensor.dtype].mergeable:
                return f"{name} (tensor '{tensor.name}')"
        if tensor.name.endswith((".absmax", ".SCB", ".weight_scale_inv")):
            return f"packed or scaled codes (tensor '{tensor.name}')"
        if tensor.dtype.startswith("F8_"):
            return f"{tensor.dtype} tensors, such as '{tensor.name}'"
        if tensor.dtype in ("I8", "U8") and tensor.name.endswith("weight"):
            return f"{tensor.dtype} weights, such as '{tensor.name}'"
    return None


def _describe(declared: Mapping[str, object]) -> str:
    method = declared.get("quant_method")
    text = method if isinstance(method, str) else "an unnamed method"
    bits = declared.get("bits", declared.get("w_bit"))
    if isinstance(bits, int):
        return f"{text}, {bits} bits"
    if declared.get("load_in_4bit") is True:
        return f"{text}, 4 bits"
    if declared.get("load_in_8bit") is True:
        return f"{text}, 8 bits"
    return text

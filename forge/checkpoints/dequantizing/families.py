"""Open a quantized checkpoint as plain weights, or refuse it by the name of its method.

``config.json`` names the method; its family finds the layers by their parts. What it does not name
is not guessed: a file of codes without a word about them could be anything.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, cast

import numpy as np
import numpy.typing as npt

from forge.architectures.blocks import block_structure
from forge.architectures.names import architecture_of
from forge.checkpoints.dequantizing.source import DequantizingSource
from forge.checkpoints.dequantizing.stored import Arrays, DecodedTensor, Family, StoredTensors
from forge.checkpoints.quantized import QUANTIZATION_KEYS, declared_quantization
from forge.checkpoints.source import TensorSource
from forge.core.catalog import did_you_mean
from forge.core.dtypes import DTYPES
from forge.core.errors import CheckpointError, ForgeError, IncompatibleError

_HERE: Final = "forge.checkpoints.dequantizing"
_FAMILIES: Final = {
    "awq": "awq",
    "gptq": "gptq",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed_tensors",
    "fp8": "float8",
    "fbgemm_fp8": "float8",
    "modelopt": "float8",
    "mxfp4": "mxfp4",
}
"""Module by ``quant_method``."""
_FOREIGN: Final = {
    "aqlm": "AQLM", "auto-round": "AutoRound", "bitnet": "BitNet", "eetq": "EETQ", "exl2": "EXL2",
    "exl3": "EXL3", "fp_quant": "FP-Quant", "higgs": "HIGGS", "hqq": "HQQ", "mlx": "MLX",
    "quanto": "Quanto", "quark": "Quark", "quip": "QuIP#", "sinq": "SINQ", "spqr": "SpQR",
    "torchao": "torchao", "vptq": "VPTQ",
}  # fmt: skip
"""Methods that are known by name and not decoded."""
_ADVICE: Final = {
    "auto-round": "Export it with auto_round's format='auto_gptq' or 'auto_awq', which forge reads",
    "bitnet": "Take the weights that were published in bfloat16",
    "mlx": "Take the model that it was converted from",
}


class _Finder(Protocol):
    def find(self, stored: StoredTensors, declared: Mapping[str, object]) -> Family:
        """Find the layers of a checkpoint."""


@dataclass(frozen=True, slots=True)
class Dequantized:
    """A quantized checkpoint, opened as plain weights.

    Attributes:
        source: Its tensors in full precision.
        config: Its ``config.json`` without a word of quantization.
        notices: What is to be said of it in every manifest.
    """

    source: DequantizingSource
    config: Mapping[str, object]
    notices: tuple[str, ...]


def dequantize(source: TensorSource, config: Mapping[str, object], *, found: str) -> Dequantized:
    """Open a quantized checkpoint as plain weights.

    Args:
        source: Its tensors as they are stored.
        config: Its ``config.json``.
        found: What ``quantization_of`` recognized.

    Raises:
        IncompatibleError: Its method is not decoded; the message names it.
        CheckpointError: It is incomplete, damaged or mislabelled.
    """
    label = source.label
    declared = declared_quantization(config)
    if declared is None:
        raise CheckpointError(
            f"'{label}' is quantized ({found}), and its config.json has no quantization_config "
            "that says how. Restore the config.json that belongs to these files; what older tools "
            "wrote into quantize_config.json belongs there, with its quant_method."
        )
    method = declared.get("quant_method")
    if method is None and "config_groups" in declared:
        method = "compressed-tensors"
    stored = StoredTensors(source, config)
    family = _finder(method, label, found).find(stored, declared)
    if not family.tensors:
        raise CheckpointError(
            f"config.json of '{label}' says {family.title}, but not one of its tensors is. If its "
            "weights are in full precision, delete 'quantization_config' from config.json."
        )
    plain, scales = stored.left_over(family.title)
    tensors = _as_in_full_precision(family.tensors, config, plain)
    notices = [_notice(label, family.title, tensors, len(plain))]
    if scales:
        notices.append(
            f"'{label}': {len(scales)} scales of activations and caches, such as '{scales[0]}', "
            "are left out; weights in full precision have none."
        )
    return Dequantized(
        DequantizingSource(source, tensors, plain), _plain_config(config), tuple(notices)
    )


def _finder(method: object, label: str, found: str) -> _Finder:
    word = method.lower().replace("_", "-") if isinstance(method, str) else ""
    names = {name.replace("_", "-"): module for name, module in _FAMILIES.items()}
    if word in names:
        return cast("_Finder", importlib.import_module(f"{_HERE}.{names[word]}"))
    title = next(
        (title for name, title in _FOREIGN.items() if name.replace("_", "-") == word), None
    )
    advice = _ADVICE.get(word, "Start from the model in full precision")
    guess = "" if title or not word else did_you_mean(word, list(names))
    raise IncompatibleError(
        f"'{label}' is quantized by {title or found}, which forge does not decode.{guess} "
        f"{advice}, or save it dequantized with the library that made it. forge decodes "
        f"{', '.join(_FAMILIES)}."
    )


def _notice(label: str, title: str, tensors: Sequence[DecodedTensor], num_plain: int) -> str:
    dtypes = " and ".join(dict.fromkeys(DTYPES[tensor.dtype].torch_name for tensor in tensors))
    return (
        f"'{label}' is not in full precision: {len(tensors)} of {len(tensors) + num_plain} tensors "
        f"are {title}, and were read as {dtypes}. What quantization lost is not there."
    )


def _plain_config(config: Mapping[str, object]) -> dict[str, object]:
    plain = {key: value for key, value in config.items() if key not in QUANTIZATION_KEYS}
    text = plain.get("text_config")
    if isinstance(text, Mapping):
        plain["text_config"] = {
            key: value for key, value in text.items() if key not in QUANTIZATION_KEYS
        }
    return plain


def _as_in_full_precision(
    tensors: Sequence[DecodedTensor], config: Mapping[str, object], plain: Sequence[str]
) -> list[DecodedTensor]:
    """Turn matrices of families that store [in, out], which quantizers store as [out, in]."""
    names = [*plain, *(tensor.name for tensor in tensors)]
    try:
        architecture = architecture_of(config, tensor_names=names)
        turned = block_structure(architecture).transposed
    except ForgeError:
        # What the family is, and whether it is known at all, is for the reader to say.
        return list(tensors)
    if not turned:
        return list(tensors)
    return [
        _turned(tensor)
        if len(tensor.shape) == 2 and architecture.layer_of(tensor.name) is not None
        else tensor
        for tensor in tensors
    ]


def _turned(tensor: DecodedTensor) -> DecodedTensor:
    def decode(arrays: Arrays) -> npt.NDArray[np.generic]:
        return np.ascontiguousarray(tensor.decode(arrays).T)

    return replace(tensor, shape=tensor.shape[::-1], decode=decode)

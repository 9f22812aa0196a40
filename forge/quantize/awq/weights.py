"""Read a checkpoint's tensors into the parameters of transformers' modules.

transformers 5 stacks the experts of a mixture into one tensor, and calls some modules otherwise
than published files do. Here each expert's matrices are read into their place in the stack, and
what the search sees under an expert's name is a view of that place.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

import numpy as np
import torch

from forge.checkpoints.source import TensorSource
from forge.core.errors import CheckpointError

# What transformers 5 calls otherwise than the published files.
_RENAMED: Final = (("mlp.", "block_sparse_moe."),)
_STACKED: Final = re.compile(r"(?P<experts>.*experts\.)(?P<stack>gate_up_proj|down_proj)")
_STACKED_FROM: Final = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}


def parts_of(
    names: Collection[str], prefix: str, parameter: str, tensor: torch.Tensor
) -> list[tuple[str, torch.Tensor]]:
    """Find the checkpoint's tensors that make up a parameter.

    Args:
        names: All names of the checkpoint.
        prefix: What stands before the parameter's name in the checkpoint.
        parameter: Its name in the module.
        tensor: What it will hold, or holds.

    Returns:
        Each tensor's name and its place in ``tensor``.

    Raises:
        CheckpointError: The checkpoint has no such tensor.
    """
    spellings = [parameter]
    spellings += [
        parameter.replace(ours, theirs, 1) for ours, theirs in _RENAMED if ours in parameter
    ]
    for spelling in spellings:
        if f"{prefix}{spelling}" in names:
            return [(f"{prefix}{spelling}", tensor)]
        stacked = _STACKED.fullmatch(spelling)
        for matrices in _STACKED_FROM[stacked["stack"]] if stacked and tensor.ndim == 3 else ():
            assert stacked is not None
            start = f"{prefix}{stacked['experts']}"
            if f"{start}0.{matrices[0]}.weight" in names:
                rows = tensor.shape[1] // len(matrices)
                return [
                    (f"{start}{expert}.{matrix}.weight", tensor[expert, i * rows : (i + 1) * rows])
                    for expert in range(tensor.shape[0])
                    for i, matrix in enumerate(matrices)
                ]
    raise CheckpointError(
        f"The checkpoint lacks '{prefix}{parameter}', which its config says it has. It is "
        "incomplete, or its config belongs to another model."
    )


def read_into(source: TensorSource, name: str, target: torch.Tensor) -> None:
    """Read a tensor, widened to float32.

    Args:
        source: The checkpoint.
        name: The tensor.
        target: float32 on the CPU, of the tensor's shape.

    Raises:
        CheckpointError: There is no such tensor, or it is of another shape or type.
    """
    info = source.info(name)
    if tuple(info.shape) != tuple(target.shape):
        raise CheckpointError(
            f"'{name}' is {list(info.shape)} in '{source.label}', but its config asks for "
            f"{list(target.shape)}."
        )
    _widen(source.read(name), info.dtype, name, target.numpy())


def read_rows(source: TensorSource, name: str, rows: np.ndarray) -> torch.Tensor:
    """Read some rows of a matrix; the others are not touched.

    Args:
        source: The checkpoint.
        name: The matrix.
        rows: int64 [R], each below the number of its rows.

    Returns:
        float32 [R, columns].

    Raises:
        CheckpointError: There is no such tensor, or it is not of a float type.
    """
    info = source.info(name)
    words = np.frombuffer(source.read(name), _WORDS.get(info.dtype, np.uint8))
    picked = np.ascontiguousarray(words.reshape(info.shape[0], -1)[rows])
    target = np.empty((len(rows), info.shape[1]), np.float32)
    _widen(picked.data.cast("B"), info.dtype, name, target)
    return torch.from_numpy(target)


_WORDS: Final = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}


def _widen(data: memoryview, dtype: str, name: str, target: np.ndarray) -> None:
    if dtype not in _WORDS:
        raise CheckpointError(
            f"'{name}' is {dtype}; calibration reads BF16, F16 and F32. Is the model quantized "
            "already? Start from its original."
        )
    words = np.frombuffer(data, _WORDS[dtype]).reshape(target.shape)
    if dtype == "BF16":
        np.left_shift(words, 16, out=target.view(np.uint32), dtype=np.uint32)
    else:
        np.copyto(target, words)

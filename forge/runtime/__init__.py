"""Run what forge emits: a transformers model around weights that stay packed.

``load`` is all there is to call. torch and transformers are imported when it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forge.core.errors import IncompatibleError, MissingExtraError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load(
    folder: Path | str,
    *,
    device: str = "cpu",
    dtype: torch.dtype | str | None = None,
    threads: int | None = None,
) -> PreTrainedModel:
    """Load a checkpoint that forge wrote, to generate from it or to measure it.

    Merges, AWQ (GEMM, GEMV, GEMV fast), compressed-tensors W4A16 and W8A16, GPTQ, and
    bitsandbytes' NF4, FP4 and int8 load alike. Quantized layers keep their packed weights and
    compute with exact activations in float32, so bitsandbytes' int8 is *more* exact here than in
    bitsandbytes, which rounds activations as well.

    Args:
        folder: The checkpoint's folder, or a model on the Hub as recipes name it.
        device: ``cpu``, or a CUDA device.
        dtype: Type of activations and of all weights that are not quantized, such as
            ``torch.bfloat16`` or its name; ``None`` for the one that the checkpoint names.
        threads: Number of threads of torch, from now on and in this process; ``None`` leaves
            them as they are.

    Returns:
        The model, in evaluation mode. It generates, and lm-eval takes it, as any other; it cannot
        be trained, and a quantized one cannot be saved.

    Raises:
        CheckpointError: The folder is no checkpoint that forge knows, or a damaged one.
        IncompatibleError: A layer's groups or the device cannot be used.
        MissingExtraError: torch, transformers or safetensors is not installed.
    """
    from forge.checkpoints.checkpoint import open_checkpoint
    from forge.recipes.reference import ModelReference

    checkpoint = open_checkpoint(ModelReference.parse(str(folder)), stored=True)
    try:
        import torch

        from forge.runtime.assemble import assemble
    except ImportError as error:
        raise MissingExtraError(
            f"Running a model needs {error.name or 'torch'}. Install it with "
            "pip install 'forge[quantize]'."
        ) from error
    if isinstance(dtype, str):
        named = getattr(torch, dtype, None)
        if not isinstance(named, torch.dtype):
            raise IncompatibleError(f"There is no type '{dtype}'; try 'bfloat16' or 'float32'.")
        dtype = named
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise IncompatibleError(f"There is no device '{device}' here; use 'cpu'.")
    if threads is not None:
        torch.set_num_threads(threads)
    return assemble(checkpoint, device=device, dtype=dtype)

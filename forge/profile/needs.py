"""Say what a cell will need before it is tried.

On a CPU nobody refuses memory: the kernel hands out more than there is, swaps, and ends some
process, perhaps not this one. So a cell that will not fit is found out by arithmetic (weights from
the headers, keys and values from the configuration, the widest layer of a prompt) and never tried.
A GPU's allocator refuses, and that is caught; the same arithmetic decides there which models
may lie in memory side by side.
"""

from __future__ import annotations

from typing import Final

from forge.checkpoints.checkpoint import Checkpoint
from forge.core.dtypes import BY_TORCH_NAME
from forge.core.machine import available_memory
from forge.profile.kv_cache import activation_bytes, kv_bytes_per_token
from forge.profile.nvml import open_gpu
from forge.profile.setting import Setting

PROCESS_BYTES: Final = 500_000_000
"""What Python, torch and transformers take before a model is loaded; on a GPU, its context."""
SHARE: Final = 0.95
"""Of the memory that is available, what one cell may take."""
SHARE_TOGETHER: Final = 0.8
"""What all models of a session may take together, to stay in memory between their turns."""


def needed_bytes(checkpoint: Checkpoint, setting: Setting) -> int:
    """Return what a cell needs, from headers and configuration.

    Args:
        checkpoint: The model.
        setting: How it runs.

    Returns:
        Bytes on the device; without the cache where its formula is unknown.
    """
    from forge.runtime.any_model import default_dtype, weights_in_memory

    dtype = setting.dtype or default_dtype(checkpoint, device=setting.device)
    cache = kv_bytes_per_token(checkpoint.config, itemsize=BY_TORCH_NAME[dtype].itemsize) or 0
    # While a step appends to a layer's cache, that layer's old and new one are both there; one
    # layer of many, so the whole is counted once.
    return (
        PROCESS_BYTES
        + weights_in_memory(checkpoint, dtype=dtype)
        + cache * setting.batch * setting.length
        + activation_bytes(
            checkpoint.config, batch=setting.batch, prompt_tokens=setting.prompt_tokens
        )
    )


def available_bytes(device: str) -> int | None:
    """Return the memory that is free on a device, or ``None`` where nobody says.

    Args:
        device: ``cpu`` or a CUDA device.
    """
    if device == "cpu":
        return available_memory()
    with open_gpu(device) as gpu:
        return None if gpu is None else gpu.free_bytes()


def refusal(needed: int, available: int | None) -> str | None:
    """Return why a cell is not tried, or ``None`` if it may be.

    Args:
        needed: What it needs.
        available: What there is, or ``None`` if unknown.
    """
    if available is None or needed <= SHARE * available:
        return None
    return (
        f"It was not tried: it needs about {needed / 1e9:.1f} GB by its headers and configuration, "
        f"and {available / 1e9:.1f} GB were available."
    )


def fit_together(needs: list[int], available: int | None) -> bool:
    """Return whether several models may stay in memory between their turns.

    Args:
        needs: What each needs.
        available: What there is; unknown memory keeps nothing.
    """
    return available is not None and sum(needs) <= SHARE_TOGETHER * available

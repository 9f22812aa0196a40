"""Load a model to measure it, whoever made it, and say what will run it.

``forge.runtime`` loads what forge knows: plain weights, and every format that it emits. A
checkpoint that is quantized in another way is transformers' affair, and says so: what ran a model
is part of everything that is measured on it. Nothing is executed that a checkpoint brings along.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.core.dtypes import BY_TORCH_NAME, DTYPES
from forge.core.errors import CheckpointError, IncompatibleError, MissingExtraError
from forge.core.machine import available_memory
from forge.formats.catalog import identify
from forge.recipes.reference import ModelReference

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORGE: Final = "forge"
TRANSFORMERS: Final = "transformers"
_PROCESSOR: Final = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run.

    Attributes:
        model: The model, in evaluation mode.
        backend: What loaded it and runs its linear layers: ``forge`` or ``transformers``.
        dtype: Type of activations and of all weights that are not quantized, such as ``float32``.
        checkpoint: Its files.
    """

    model: PreTrainedModel
    backend: str
    dtype: str
    checkpoint: Checkpoint

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer, loaded when it is first asked for: to time a model takes none.

        Raises:
            CheckpointError: There is none, or it is damaged.
        """
        from forge.runtime.generation import load_tokenizer

        return load_tokenizer(self.model)


def load_any(
    reference: str, *, device: str = "cpu", dtype: str | None = None, threads: int | None = None
) -> LoadedModel:
    """Load a model that forge knows or that transformers loads.

    Args:
        reference: A folder or a Hub id, as recipes name it.
        device: ``cpu``, or a CUDA device.
        dtype: Type of activations and of all weights that are not quantized, such as ``bfloat16``;
            ``None`` for the one that ``default_dtype`` names.
        threads: Number of threads of torch, from now on and in this process; ``None`` leaves them.

    Returns:
        The model.

    Raises:
        CheckpointError: It cannot be found or is damaged, or neither forge nor transformers loads
            it.
        IncompatibleError: It does not fit into memory, or a layer or the device cannot be used.
        MissingExtraError: torch, transformers or safetensors is not installed.
    """
    checkpoint = open_checkpoint(ModelReference.parse(reference), stored=True)
    return load_checkpoint(checkpoint, device=device, dtype=dtype, threads=threads)


def load_checkpoint(
    checkpoint: Checkpoint,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    threads: int | None = None,
) -> LoadedModel:
    """Load an opened checkpoint; see ``load_any``."""
    backend = backend_for(checkpoint)
    chosen = chosen_dtype(checkpoint, dtype, device=device)
    check_fits(checkpoint, device=device, dtype=chosen)
    try:
        import torch
        import transformers  # noqa: F401 - what loads any model needs it
    except ImportError as error:
        raise MissingExtraError(
            f"Running a model needs {error.name or 'torch'}. Install it with "
            "pip install 'forge[quantize]'."
        ) from error
    _check_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    if backend == FORGE:
        from forge.runtime.assemble import assemble

        model = assemble(checkpoint, device=device, dtype=getattr(torch, chosen))
    else:
        model = _load_foreign(checkpoint, device=device, dtype=getattr(torch, chosen))
    model.train(False)
    return LoadedModel(model, backend, chosen, checkpoint)


def backend_for(checkpoint: Checkpoint) -> str:
    """Return what will load a checkpoint: ``forge``, or ``transformers`` for a foreign format."""
    declared = checkpoint.config.get("quantization_config")
    if declared is None:
        return FORGE
    row = identify(declared) if isinstance(declared, Mapping) else None
    return TRANSFORMERS if row is None else FORGE


def chosen_dtype(checkpoint: Checkpoint, dtype: str | None, *, device: str) -> str:
    """Return the type that the user names, or the one that suits.

    Args:
        checkpoint: The model.
        dtype: A name such as ``bfloat16``, or ``None``.
        device: Where it will run.

    Raises:
        IncompatibleError: Nothing can be computed in the type.
    """
    if dtype is None:
        return default_dtype(checkpoint, device=device)
    if dtype not in BY_TORCH_NAME or not BY_TORCH_NAME[dtype].mergeable:
        raise IncompatibleError(
            f"Nothing is computed in '{dtype}'. Choose from: bfloat16, float16, float32, float64."
        )
    return dtype


def default_dtype(checkpoint: Checkpoint, *, device: str) -> str:
    """Return the type in which a model is measured unless the user names one.

    It is the checkpoint's own on a GPU, and on a CPU that multiplies bfloat16 tiles in hardware.
    Any other CPU is no faster in 16 bits than in 32, only less exact; it gets ``float32``.

    Args:
        checkpoint: The model.
        device: Where it will run.

    Returns:
        A name such as ``bfloat16``.
    """
    stated = checkpoint.config.get("dtype", checkpoint.config.get("torch_dtype"))
    stated = _stored_dtype(checkpoint) if stated not in BY_TORCH_NAME else stated
    if device != "cpu" or backend_for(checkpoint) == TRANSFORMERS:
        return str(stated)
    return "bfloat16" if stated == "bfloat16" and _multiplies_bfloat16() else "float32"


def check_fits(checkpoint: Checkpoint, *, device: str, dtype: str) -> None:
    """Refuse a model whose weights alone exceed the memory that is available, by its headers.

    Args:
        checkpoint: The model.
        device: Where it will run.
        dtype: Type of its weights that are not quantized.

    Raises:
        IncompatibleError: It does not fit.
    """
    needed, available = weights_in_memory(checkpoint, dtype=dtype), _available_bytes(device)
    if available is not None and needed > available:
        where = "this machine" if device == "cpu" else f"'{device}'"
        raise IncompatibleError(
            f"'{checkpoint.source.label}' needs {needed / 1e9:.1f} GB for its weights in {dtype}, "
            f"and {where} has {available / 1e9:.1f} GB available. Close other programs, choose a "
            "16-bit type with --dtype, or quantize the model."
        )


def weights_in_memory(checkpoint: Checkpoint, *, dtype: str) -> int:
    """Return the bytes of a model's weights once they are loaded, by its headers.

    Args:
        checkpoint: The model.
        dtype: Type that its plain floating-point weights are converted to.

    Returns:
        Bytes; packed codes count as they are stored, which is also how they run.
    """
    source, itemsize = checkpoint.source, BY_TORCH_NAME[dtype].itemsize
    infos = [source.info(name) for name in source.names()]
    return sum(
        info.numel * itemsize if DTYPES[info.dtype].mergeable else info.nbytes for info in infos
    )


def _stored_dtype(checkpoint: Checkpoint) -> str:
    """Return the type that most of a checkpoint's plain floating-point weights have."""
    sizes: dict[str, int] = {}
    for name in checkpoint.source.names():
        info = checkpoint.source.info(name)
        if DTYPES[info.dtype].mergeable:
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    return DTYPES[max(sizes, key=sizes.__getitem__)].torch_name if sizes else "float32"


def _multiplies_bfloat16() -> bool:
    # Asked without torch: a run that finds all of its answers loads none.
    try:
        return "amx_bf16" in _PROCESSOR.read_text().split()
    except OSError:
        return False


def _available_bytes(device: str) -> int | None:
    if device != "cpu":
        import torch

        _check_device(device)
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    return available_memory()


def _check_device(device: str) -> None:
    import torch

    is_there = device == "cpu" or (device.startswith("cuda") and torch.cuda.is_available())
    if not is_there:
        raise IncompatibleError(f"There is no device '{device}' here; use 'cpu'.")


def _load_foreign(checkpoint: Checkpoint, *, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """Load a checkpoint that is quantized in a way that forge does not know."""
    import torch
    import transformers
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    from forge.runtime.assemble import quiet_loading

    label, declared = checkpoint.source.label, checkpoint.config["quantization_config"]
    method = declared.get("quant_method") if isinstance(declared, Mapping) else None
    # transformers loads what an unknown method packed as if it were plain weights.
    if method not in AUTO_QUANTIZER_MAPPING:
        raise CheckpointError(
            f"'{label}' is quantized by {method!r}, which neither forge nor transformers knows. "
            "Use a checkpoint in full precision, or one that 'forge quantize' wrote."
        )
    if checkpoint.reference.lora is not None:
        raise IncompatibleError(
            f"'{label}' puts an adapter on a model that is quantized in a way that forge does not "
            "know. Merge the adapter into the model in full precision first."
        )
    try:
        with quiet_loading():
            model, report = cast(
                "tuple[PreTrainedModel, Mapping[str, Iterable[object]]]",
                transformers.AutoModelForCausalLM.from_pretrained(
                    checkpoint.root, dtype=dtype, output_loading_info=True, trust_remote_code=False
                ),
            )
    except Exception as error:
        # Every quantizer of transformers has errors of its own kind.
        raise CheckpointError(
            f"'{label}' is quantized in a way that forge does not know, and transformers cannot "
            f"load it either: {_first_line(error)} Install the package that it was quantized "
            "with, or use a checkpoint in full precision."
        ) from error
    for key, verb in (("missing_keys", "lacks"), ("unexpected_keys", "has unknown")):
        names = sorted(str(name) for name in report.get(key) or ())
        if names:
            raise CheckpointError(
                f"'{label}' {verb} tensors, as transformers reads it: {len(names)}, first "
                f"'{names[0]}'. Is the checkpoint complete, and its config.json its own?"
            )
    model.requires_grad_(False)
    if device != "cpu":
        model.to(torch.device(device))  # type: ignore[arg-type]
    return model


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line if line.endswith((".", "!", "?")) else f"{line}."

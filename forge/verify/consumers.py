"""The programs that users load a quantized checkpoint with, and why one of them does not run it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from forge.checkpoints.checkpoint import open_checkpoint
from forge.core.errors import CheckpointError, ForgeError, MissingExtraError
from forge.recipes.reference import ModelReference

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    _Pair = tuple[PreTrainedModel, Mapping[str, Iterable[object]]]

_BITSANDBYTES: Final = "transformers with bitsandbytes"
_STATE: Final = "quant_state"
_KERNEL_ROWS: Final = 32
_KERNEL_COLUMNS: Final = 64
"""Widths that bitsandbytes' kernel for AVX512-BF16 divides a 4-bit weight by."""


def problem_of(root: Path, consumer: str, error: Exception) -> str:
    """Say why a checkpoint does not run.

    Args:
        root: The checkpoint.
        consumer: The program that did not run it.
        error: What it raised.

    Returns:
        A sentence; what the program said, where nothing more is known.
    """
    if isinstance(error, ForgeError):
        return str(error)
    text = f"{type(error).__name__}: {error}"
    if consumer != _BITSANDBYTES or not isinstance(error, AssertionError | RuntimeError):
        return text
    from forge.runtime.stored import survey

    stored = survey(open_checkpoint(ModelReference(str(root)), stored=True))
    odd = [
        layer
        for layer in stored.layers.values()
        if any(_STATE in part.suffix for part in layer.parts)
        and (layer.shape_OI[0] % _KERNEL_ROWS or layer.shape_OI[1] % _KERNEL_COLUMNS)
    ]
    if not odd:
        return text
    rows, columns = odd[0].shape_OI
    # Blocks that run on over the ends of rows are what forge does not run either.
    is_here = not any(layer.shape_OI[1] % _KERNEL_COLUMNS for layer in odd)
    also = ", and here by 'forge generate'" if is_here else ""
    return (
        f"bitsandbytes' kernels for CPUs take 4-bit layers whose outputs are a multiple of "
        f"{_KERNEL_ROWS} and whose inputs are one of {_KERNEL_COLUMNS}, and {len(odd):,} layers "
        f"are not, such as '{odd[0].module}' with {rows:,} outputs and {columns:,} inputs "
        f"({text}). The checkpoint runs on a GPU{also}; or quantize it anew with such layers left "
        "in full precision (--keep)."
    )


def require(*packages: str) -> None:
    """Refuse to go on without packages.

    Args:
        packages: Their names.

    Raises:
        MissingExtraError: One is not installed.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"{package} is not installed. Run: pip install 'forge[quantize]'"
            )


def consumer_of(root: Path) -> tuple[str, Callable[[Path], PreTrainedModel]]:
    """Return the program that a checkpoint is made for, and what loads it there.

    Args:
        root: The checkpoint.

    Raises:
        MissingExtraError: The program is not installed.
    """
    config = json.loads((root / "config.json").read_text("utf-8"))
    if config["quantization_config"].get("quant_method") == "bitsandbytes":
        require("bitsandbytes")
        return _BITSANDBYTES, load_plain
    from forge import runtime

    return "forge.runtime", runtime.load


def load_plain(root: Path) -> PreTrainedModel:
    """Load a checkpoint as transformers does.

    Args:
        root: Its folder.

    Raises:
        CheckpointError: Something is missing, or not known.
    """
    from transformers import AutoConfig

    from forge.quantize.model_class import generating_class

    family = generating_class(AutoConfig.from_pretrained(root))
    loaded = family.from_pretrained(root, dtype="auto", output_loading_info=True)
    return _clean(root, cast("_Pair", loaded))


def load_state(
    family: type[PreTrainedModel], root: Path, state: Mapping[str, torch.Tensor]
) -> PreTrainedModel:
    """Build a model in full precision of tensors that are here.

    Args:
        family: Its class.
        root: The folder of its configuration.
        state: Its tensors.

    Raises:
        CheckpointError: Something is missing, or not known.
    """
    from forge.quantize.model_class import plain_config

    config = plain_config(root)
    # It declares to return a model, and returns a pair when it is asked for the report.
    loaded = family.from_pretrained(
        None, config=config, state_dict=state, dtype="auto", output_loading_info=True
    )
    return _clean(root, cast("_Pair", loaded))


def _clean(root: Path, loaded: _Pair) -> PreTrainedModel:
    model, report = loaded
    # transformers invents what is missing, with a warning; here that is a failure.
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if wrong:
        shown = "; ".join(f"{kind}: {', '.join(names[:3])}" for kind, names in wrong.items())
        raise CheckpointError(f"'{root}' does not load as it is: {shown}.")
    return model

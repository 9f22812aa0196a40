"""A transformers model whose parameters are the mapped files: nothing is copied, nothing is lost.

Loading checks what loaders only warn about: a parameter that no file holds would be random.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from forge.checkpoints.checkpoint import Checkpoint
from forge.core.dtypes import DTYPES
from forge.core.errors import CheckpointError, MissingExtraError
from forge.quantize.model_class import config_of, generating_class

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_mapped(checkpoint: Checkpoint, *, device: str) -> PreTrainedModel:
    """Build a model whose parameters are the mapped files themselves.

    Args:
        checkpoint: The model; its source must stay open as long as the model is used.
        device: Where to calculate; other than ``cpu``, the weights are copied there.

    Returns:
        The model, for reading only.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        CheckpointError: transformers cannot make the model of these weights.
    """
    try:
        import torch
        import transformers  # noqa: F401  (said here when it is absent)
    except ImportError as error:
        raise MissingExtraError(
            "A model that writes its own calibration set needs torch and transformers: "
            "pip install 'forge[quantize]'."
        ) from error
    source = checkpoint.source
    state: dict[str, torch.Tensor] = {}
    with warnings.catch_warnings():
        # torch warns that the bytes are read-only, which is what they should be.
        warnings.simplefilter("ignore", UserWarning)
        for name in source.names():
            info = source.info(name)
            dtype = getattr(torch, DTYPES[info.dtype].torch_name)
            view = source.read(name)
            flat = (
                torch.frombuffer(view, dtype=dtype) if view.nbytes else torch.empty(0, dtype=dtype)
            )
            state[name] = flat.view(info.shape)
    floats = [tensor.dtype for tensor in state.values() if tensor.is_floating_point()]
    with _quiet():
        try:
            config = config_of(checkpoint)
            # An automatic class takes no weights without a folder; the real one does.
            kind: Any = generating_class(config)
            model, loading = kind.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=max(set(floats), key=floats.count),
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"transformers cannot load '{checkpoint.reference}': {reason} Calibrate on text "
                "(--calibration FILE) if only writing fails."
            ) from error
    lost = sorted(loading["missing_keys"]) + [str(item[0]) for item in loading["mismatched_keys"]]
    if lost:
        raise CheckpointError(
            f"'{checkpoint.reference}' does not hold what its config.json describes: "
            f"'{lost[0]}'{f' and {len(lost) - 1} more' if len(lost) > 1 else ''} is missing or of "
            "another shape."
        )
    return cast("PreTrainedModel", model.eval().requires_grad_(False).to(device))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bar away; what it reports is checked instead."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    was_on = logging.is_progress_bar_enabled()
    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if was_on:
            logging.enable_progress_bar()

"""Build what AWQ runs of a model, without weights: embeddings and decoder blocks.

The decoder of Llama and its kin is written out in ``llama``; every other model is built by
transformers, for which hundreds of modules are imported.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from forge.architectures.table import Architecture
from forge.checkpoints.checkpoint import Checkpoint
from forge.core.errors import IncompatibleError, MissingExtraError
from forge.quantize.awq.llama import LlamaDecoder
from forge.quantize.awq.llama_shape import llama_shape
from forge.quantize.model_class import config_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Body:
    """The part of a model that runs.

    Attributes:
        decoder: All of it. Parameters are on torch's ``meta`` device.
        list_name: The decoder's attribute that holds its blocks.
        embedding: The token embedding.
        run: Runs the decoder on token ids, int64 [B, T].
    """

    decoder: nn.Module
    list_name: str
    embedding: nn.Module
    run: Callable[[torch.Tensor], object]


def build_body(checkpoint: Checkpoint, architecture: Architecture, *, num_tokens: int) -> Body:
    """Build the part of a model that runs.

    Args:
        checkpoint: The model.
        architecture: Its family.
        num_tokens: Tokens of the longest sequence that it will read.

    Returns:
        The part; blocks run in full precision, and not as in training.

    Raises:
        IncompatibleError: transformers does not know the architecture, or cannot build it.
        MissingExtraError: transformers is needed, and not installed.
    """
    shape = llama_shape(checkpoint.config, num_tokens=num_tokens)
    if shape is not None:
        decoder = LlamaDecoder(shape)
        decoder.train(False)
        return Body(decoder, "layers", decoder.embed_tokens, decoder)
    model = build_with_transformers(checkpoint, text_only=architecture.text_section is not None)
    outer, _, list_name = _path_of_blocks(model, architecture).rpartition(".")
    pretrained = cast("PreTrainedModel", model.get_submodule(outer))
    # Tokens are numbered anew, so no number means padding.
    pretrained.config.update({"pad_token_id": None})
    return Body(
        pretrained,
        list_name,
        pretrained.get_input_embeddings(),
        lambda ids: pretrained(input_ids=ids, use_cache=False),
    )


def build_with_transformers(checkpoint: Checkpoint, *, text_only: bool) -> PreTrainedModel:
    """Build a whole model without weights, as transformers builds it.

    Args:
        checkpoint: The model.
        text_only: Whether it has several parts, of which the language model is wanted.

    Returns:
        The model; parameters are on torch's ``meta`` device, buffers are real.

    Raises:
        IncompatibleError: transformers does not know the architecture, or cannot build it.
        MissingExtraError: transformers is not installed.
    """
    try:
        from accelerate import init_empty_weights
        from transformers import (
            MODEL_FOR_CAUSAL_LM_MAPPING,
            AutoModel,
            AutoModelForCausalLM,
        )
    except ImportError as error:
        raise MissingExtraError(
            f"Calibration runs the model, which needs '{error.name}': "
            "pip install 'forge[quantize]'."
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = config_of(checkpoint)
            if text_only:
                config = config.get_text_config()
            # A language model that never stands alone has no class with a head; none is needed.
            has_head = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
            kind = AutoModelForCausalLM if has_head else AutoModel
            build = cast("Callable[..., PreTrainedModel]", kind.from_config)
            with init_empty_weights(include_buffers=False):
                model = build(
                    config, dtype=torch.float32, trust_remote_code=False,
                    experts_implementation="eager",
                )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise IncompatibleError(
            f"transformers cannot build '{checkpoint.source.label}' from its config: {error}"
        ) from error
    model.train(False)
    return model


def _path_of_blocks(model: PreTrainedModel, architecture: Architecture) -> str:
    paths = [prefix.removesuffix(".") for prefix in architecture.layer_prefixes]
    for path in [*paths, "model.layers", "layers"]:
        try:
            found = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList):
            return path
    raise IncompatibleError(
        f"The decoder blocks of '{architecture.name}' are not where forge's table says in "
        f"transformers' {type(model).__name__}: {', '.join(paths)}."
    )

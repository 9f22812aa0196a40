"""What a model's MLPs read when it reads prompts: one block in memory at a time.

The router of a mixture of experts stands where a dense model's MLP reads its input, so that input,
behind the norm, is what routers are made from; the residual stream before the norm would be of
another scale and, for most models, ruled by a few features. Each prompt is a batch of its own, so
nothing is padded and nothing is masked. The first token that a tokenizer puts before every text is
left out of the mean: its state is the same whatever the prompt says.

Legend: L layers, P groups of prompts, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from forge.architectures.names import architecture_of
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.floats import decode
from forge.checkpoints.progress import Progress, Silence
from forge.core.dtypes import DTYPES
from forge.core.errors import CheckpointError, IncompatibleError, MissingExtraError
from forge.merge.moe.gates import prompt_groups
from forge.quantize.calibration.tokenizer import ModelTokenizer, check_tokenizer, open_tokenizer
from forge.recipes.moe_types import MoeRecipe

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float64]
Groups = Sequence[Sequence[str]]
MOST_TOKENS: Final = 65_536
"""Of all prompts together, whose states are held in memory while blocks come and go."""


def read_states(recipe: MoeRecipe, base: Checkpoint, progress: Progress) -> Floats:
    """Return what a recipe's prompts mean to its base, as its ``gate_mode`` says.

    Args:
        recipe: A recipe whose routers are made of prompts.
        base: Its base model, with weights and tokenizer.
        progress: Hears how it goes.

    Returns:
        float64 [L, P, D]; L is 1 where all layers share the states.

    Raises:
        ForgeError: As ``hidden_states`` and ``embedding_states``.
    """
    groups = prompt_groups(recipe)
    if recipe.gate_mode == "hidden":
        return hidden_states(base, groups, progress=progress)
    return embedding_states(base, groups)[None]


def hidden_states(
    checkpoint: Checkpoint, groups: Groups, *, progress: Progress | None = None
) -> Floats:
    """Return the mean input of every MLP over groups of prompts.

    Args:
        checkpoint: A dense model with its weights and tokenizer.
        groups: Prompts, each group to be averaged: tokens of a prompt first, then prompts.
        progress: Hears which block is at work.

    Returns:
        float64 [L, P, D]; zeros for a group without prompts.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        CheckpointError: The model has no tokenizer, or tensors are missing.
        IncompatibleError: A prompt is longer than the model's context, all together are too long,
            or the model cannot be run.
    """
    try:
        import torch

        from forge.quantize.awq.skeleton import Skeleton, first_of
        from forge.quantize.awq.workers import give_freed_tensors_back
    except ImportError as error:
        raise MissingExtraError(
            f"gate_mode hidden runs the base model, which needs '{error.name}': "
            "pip install 'forge[quantize]'. 'cheap_embed' and 'random' run no model."
        ) from error
    progress = progress or Silence()
    tokenizer = _tokenizer_of(checkpoint)
    prompts = _encode(checkpoint, tokenizer, groups)
    longest = max(len(tokens) for _, tokens in prompts)
    skeleton = Skeleton(checkpoint, device=torch.device("cpu"), num_tokens=longest)
    num_blocks = len(skeleton.blocks)
    means: list[Floats] = []
    # Or what blocks leave behind would grow with their number.
    give_freed_tensors_back()
    with torch.inference_mode():
        batches = [np.array([tokens], np.int64) for _, tokens in prompts]
        embedded = list(skeleton.embed(batches))
        states = [state for state, _ in embedded]
        calls = [call for _, call in embedded]
        for index in range(num_blocks):
            progress.status(f"prompts: block {index + 1} of {num_blocks}")
            skeleton.load(index)
            block = skeleton.blocks[index]
            read: list[torch.Tensor] = []
            handle = block.get_submodule("mlp").register_forward_pre_hook(
                lambda module, inputs, read=read: read.append(inputs[0])
            )
            for number, call in enumerate(calls):
                arguments, keywords = call[index].arguments, call[index].keywords
                states[number] = first_of(block(states[number], *arguments, **keywords))
            handle.remove()
            skeleton.drop(index)
            rows = [item[0].double().numpy() for item in read]
            means.append(_means(rows, prompts, len(groups), skip=len(tokenizer.prefix)))
    return np.stack(means)


def embedding_states(checkpoint: Checkpoint, groups: Groups) -> Floats:
    """Return the mean embedding of the tokens of groups of prompts; the model is not run.

    Args:
        checkpoint: A model with its weights and tokenizer.
        groups: Prompts, each group to be averaged as in ``hidden_states``.

    Returns:
        float64 [P, D]; zeros for a group without prompts.

    Raises:
        MissingExtraError: transformers is not installed.
        CheckpointError: The model has no tokenizer or no embedding.
        IncompatibleError: The prompts are too long.
    """
    tokenizer = _tokenizer_of(checkpoint)
    prompts = _encode(checkpoint, tokenizer, groups)
    source = checkpoint.source
    architecture = architecture_of(checkpoint.config, tensor_names=source.names())
    name = next((name for name in architecture.embeddings if name in source.names()), None)
    if name is None or len(source.info(name).shape) != 2:
        raise CheckpointError(f"'{checkpoint.reference}' has no embedding to read prompts by.")
    info = source.info(name)
    row_bytes = info.shape[1] * DTYPES[info.dtype].itemsize
    data = source.read(name)

    def row(token: int) -> Floats:
        return decode(data[token * row_bytes : (token + 1) * row_bytes], info.dtype).astype(
            np.float64
        )

    rows = []
    for _, tokens in prompts:
        beyond = [token for token in tokens if token >= info.shape[0]]
        if beyond:
            raise CheckpointError(
                f"The tokenizer of '{checkpoint.reference}' counts to {beyond[0]}, beyond the "
                f"{info.shape[0]:,} rows of its embedding. They do not belong together."
            )
        rows.append(np.stack([row(token) for token in tokens]))
    return _means(rows, prompts, len(groups), skip=len(tokenizer.prefix))


def _tokenizer_of(checkpoint: Checkpoint) -> ModelTokenizer:
    check_tokenizer(checkpoint, chat_template=False)
    return open_tokenizer(checkpoint)


def _encode(
    checkpoint: Checkpoint, tokenizer: ModelTokenizer, groups: Groups
) -> list[tuple[int, list[int]]]:
    """Return the tokens of every prompt, with the number of its group."""
    architecture = architecture_of(checkpoint.config, tensor_names=checkpoint.source.names())
    limit = architecture.num_positions(checkpoint.config)
    prompts: list[tuple[int, list[int]]] = []
    for number, texts in enumerate(groups):
        for text in texts:
            tokens = tokenizer.encode_document(text)
            shown = text if len(text) <= 40 else f"{text[:37]}..."
            if len(tokens) <= len(tokenizer.prefix):
                raise IncompatibleError(
                    f"The tokenizer of {checkpoint.reference} makes no tokens of the prompt "
                    f"{shown!r}; write another."
                )
            if limit is not None and len(tokens) > limit:
                raise IncompatibleError(
                    f"The prompt {shown!r} has {len(tokens):,} tokens, and {checkpoint.reference} "
                    f"reads {limit:,}. Shorten it."
                )
            prompts.append((number, tokens))
    total = sum(len(tokens) for _, tokens in prompts)
    if not prompts or total > MOST_TOKENS:
        raise IncompatibleError(
            f"All prompts together have {total:,} tokens; 1 to {MOST_TOKENS:,} can be read. Write "
            "fewer or shorter ones."
        )
    return prompts


def _means(
    rows: Sequence[Floats], prompts: Sequence[tuple[int, list[int]]], num_groups: int, *, skip: int
) -> Floats:
    """Average over tokens, then over the prompts of each group; [P, D]."""
    sums_PD = np.zeros((num_groups, rows[0].shape[1]))
    counts_P = np.zeros(num_groups)
    for (group, _), rows_TD in zip(prompts, rows, strict=True):
        sums_PD[group] += rows_TD[skip:].mean(axis=0)
        counts_P[group] += 1
    return sums_PD / np.maximum(counts_P, 1)[:, None]

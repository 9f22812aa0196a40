"""From a calibration recipe to tokens, whatever the source.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.hub_datasets import dataset_files
from forge.checkpoints.progress import Progress, Silence
from forge.core.errors import CheckpointError, IncompatibleError
from forge.quantize.calibration.documents import (
    Document,
    chat_of,
    read_jsonl,
    read_parquet,
    read_text,
    text_of,
)
from forge.quantize.calibration.sequences import cut_text, pack_documents
from forge.quantize.calibration.stored import Tokens, load_tokens
from forge.quantize.calibration.tokenizer import ModelTokenizer, open_tokenizer
from forge.recipes.quantize_types import CalibrationRecipe

_DEFAULT_SPLIT = "train"


def calibration_tokens(
    checkpoint: Checkpoint,
    recipe: CalibrationRecipe,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Tokens:
    """Make a calibration set.

    Args:
        checkpoint: The model; for ``self`` its weights are read, else its tokenizer only.
        recipe: Where the tokens come from.
        device: Where the model writes.
        progress: Hears how it goes.

    Returns:
        int64 [B, T], without padding, every token in the model's vocabulary.

    Raises:
        ForgeError: The text is missing, unreadable, empty or too short, the model has no
            tokenizer, or a package is not installed.
    """
    progress = progress or Silence()
    if recipe.source == "tokens":
        tokens_BT = load_tokens(_path(recipe))
    else:
        tokenizer = open_tokenizer(checkpoint)
        if recipe.source == "self":
            progress.stage(f"letting the model write {recipe.num_tokens:,} tokens")
            tokens_BT = _written(checkpoint, recipe, tokenizer, device, progress)
        elif recipe.source == "text":
            tokens_BT = cut_text(read_text(_path(recipe)), recipe, tokenizer)
        else:
            tokens_BT = pack_documents(_documents(recipe), recipe, tokenizer)
    _check_vocabulary(tokens_BT, checkpoint, recipe)
    return tokens_BT


def _written(
    checkpoint: Checkpoint,
    recipe: CalibrationRecipe,
    tokenizer: ModelTokenizer,
    device: str,
    progress: Progress,
) -> Tokens:
    # torch is loaded only when the model is really asked to write.
    from forge.quantize.calibration.generation import generate

    prompts = tuple(_prompts(recipe, tokenizer))
    tokens_BT = generate(checkpoint, recipe, tokenizer, prompts, device=device, progress=progress)
    num_kinds = len(set(tokens_BT.flatten().tolist()))
    if num_kinds * 100 < tokens_BT.size:
        progress.notice(
            f"The model wrote {num_kinds:,} different tokens in {tokens_BT.size:,}: it repeats "
            "itself. Calibrate on text (--calibration FILE) if it is meant to be better than that."
        )
    return tokens_BT


def _prompts(recipe: CalibrationRecipe, tokenizer: ModelTokenizer) -> Iterator[tuple[int, ...]]:
    documents: list[Document] = list(recipe.prompts)
    if recipe.path is not None:
        path = Path(recipe.path)
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            documents = list(read_jsonl(path, recipe.field))
        else:
            documents = [line for line in read_text(path).splitlines() if line.strip()]
        if not documents:
            raise IncompatibleError(f"'{recipe.path}' holds no prompt. Write one on each line.")
    for document in documents:
        if recipe.chat_template:
            tokens = tokenizer.encode_chat(chat_of(document), answer=True)
        else:
            tokens = tokenizer.encode_document(text_of(document))
        # A prompt that fills the sequence would leave nothing to write.
        yield tuple(tokens[: recipe.tokens // 2])


def _documents(recipe: CalibrationRecipe) -> Iterator[Document]:
    if recipe.source == "jsonl":
        yield from read_jsonl(_path(recipe), recipe.field)
        return
    assert recipe.path is not None
    for path in dataset_files(recipe.path, split=recipe.split or _DEFAULT_SPLIT):
        if path.suffix == ".parquet":
            yield from read_parquet(path, recipe.field)
        elif path.suffix in (".jsonl", ".json"):
            yield from read_jsonl(path, recipe.field)
        else:
            yield from (part for part in read_text(path).split("\n\n") if part.strip())


def _check_vocabulary(tokens_BT: Tokens, checkpoint: Checkpoint, recipe: CalibrationRecipe) -> None:
    if tokens_BT.size == 0:
        raise IncompatibleError(f"'{recipe.path}' holds no tokens to calibrate on.")
    size = vocabulary_size(checkpoint)
    low, high = int(tokens_BT.min()), int(tokens_BT.max())
    if low < 0 or (size is not None and high >= size):
        raise CheckpointError(
            f"The calibration set holds token {low if low < 0 else high}, but the vocabulary of "
            f"'{checkpoint.reference}' has {size:,}. Do tokens and tokenizer belong to this model?"
        )


def vocabulary_size(checkpoint: Checkpoint) -> int | None:
    """Return the rows of a model's embedding, or ``None`` when it cannot be found.

    Args:
        checkpoint: The model.
    """
    from forge.architectures.names import architecture_of

    names = checkpoint.source.names()
    architecture = architecture_of(checkpoint.config, tensor_names=names)
    found = [name for name in architecture.embeddings if name in names]
    return checkpoint.source.info(found[0]).shape[0] if found else None


def _path(recipe: CalibrationRecipe) -> Path:
    assert recipe.path is not None
    return Path(recipe.path)

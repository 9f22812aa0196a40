"""The small files that a checkpoint consists of besides its weights, by what they are for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from forge.checkpoints.folder import read_bytes

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "tokenizer.model.v1",
    "tokenizer.model.v2",
    "tokenizer.model.v3",
    "tokenizer.model.v7",
    "tokenizer.model.v11",
    "tekken.json",
    "tiktoken.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
CHAT_TEMPLATE_FOLDERS: Final = ("chat_templates", "additional_chat_templates")
"""Named templates, one Jinja file each; older and newer name of the same folder."""
PROCESSOR_FILES: Final = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
GENERATION_FILE: Final = "generation_config.json"
ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
ADAPTER_WEIGHTS_FILE: Final = "adapter_model.safetensors"


def read_companions(root: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Read those of the named files that a model has.

    Args:
        root: The model's folder.
        names: Plain file names, such as ``TOKENIZER_FILES``.

    Returns:
        Content by name, in the order given.

    Raises:
        CheckpointError: A file links out of the folder, or is too large.
    """
    found = ((name, read_bytes(root, name)) for name in names)
    return {name: content for name, content in found if content is not None}


def read_tokenizer_files(root: Path) -> dict[str, bytes]:
    """Read everything that makes a model's tokenizer, its named chat templates included.

    Args:
        root: The model's folder.

    Returns:
        Content by path relative to the folder, with forward slashes.

    Raises:
        CheckpointError: A file links out of the folder, or is too large.
    """
    files = read_companions(root, TOKENIZER_FILES)
    for folder in CHAT_TEMPLATE_FOLDERS:
        if not (root / folder).is_dir():
            continue
        for path in sorted((root / folder).glob("*.jinja")):
            content = read_bytes(root, path.name, subfolder=folder)
            if content is not None:
                files[f"{folder}/{path.name}"] = content
    return files

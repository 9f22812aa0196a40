"""Give a GGUF model the small files that every other model has beside its weights.

What lies beside the file counts; what does not is derived from its metadata. Both together go
into a folder of the system's temporary space that is removed when the process ends, so
everything that reads a model's configuration or tokenizer reads a GGUF's in the same way, and
nothing is ever written next to the user's files.
"""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from forge.checkpoints.chat_templates import dump_json
from forge.checkpoints.companions import (
    GENERATION_FILE,
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    read_companions,
    read_tokenizer_files,
)
from forge.checkpoints.gguf.metadata import Metadata
from forge.checkpoints.gguf.tokenizers import rebuilt_tokenizer

_TEMPLATES_ONLY: Final = frozenset(
    {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
     "chat_template.json"}
)  # fmt: skip
"""Files that say something about a tokenizer and are none."""
_PREFIX: Final = "forge-gguf-"
_PROCESSES: Final = Path("/proc")
_DAY_S: Final = 86_400
_folders: dict[tuple[object, ...], Path] = {}


def sidecars_of(
    metadata: Metadata, config: Mapping[str, object], *, beside: Path
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Return the small files of a model.

    Args:
        metadata: The model's metadata.
        config: Its configuration.
        beside: The folder of its file.

    Returns:
        Content by name, and what the user should know about them.

    Raises:
        CheckpointError: A file beside the model links out of its folder or is too large, or the
            metadata are damaged.
    """
    files = {"config.json": dump_json(config)}
    files |= read_companions(beside, PROCESSOR_FILES)
    generation = read_companions(beside, (GENERATION_FILE,))
    files |= generation or {GENERATION_FILE: dump_json(_generation(metadata))}
    tokenizer = read_tokenizer_files(beside)
    if any(name in TOKENIZER_FILES and name not in _TEMPLATES_ONLY for name in tokenizer):
        return files | tokenizer, ()
    rebuilt, reason = rebuilt_tokenizer(metadata)
    notices = () if reason is None else (reason,)
    return files | rebuilt | tokenizer, notices


def folder_of(key: tuple[object, ...], files: Mapping[str, bytes]) -> Path:
    """Return a folder that holds files, until the process ends.

    Args:
        key: What the files were made of; the same key gives the same folder.
        files: Content by path relative to the folder.

    Returns:
        The folder.
    """
    if key not in _folders:
        _remove_abandoned()
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        _folders[key] = folder
    return _folders[key]


def _remove_abandoned() -> None:
    """Remove the folders of processes that were killed before they could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        try:
            status = folder.lstat()
        except OSError:
            continue
        is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
        # A process of another container cannot be seen, so its folder is left for a day, too.
        is_old = status.st_mtime < time.time() - _DAY_S
        if is_ours and is_old and owner.isdecimal() and not (_PROCESSES / owner).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _generation(metadata: Metadata) -> dict[str, object]:
    """Return what says where generation begins and ends."""
    config: dict[str, object] = {}
    begin = metadata.whole("tokenizer.ggml.bos_token_id", optional=True)
    if begin is not None:
        config["bos_token_id"] = begin
    # A chat model ends its turn with a token of its own, beside the one that ends a text.
    found = (
        metadata.whole(f"tokenizer.ggml.{name}_token_id", optional=True)
        for name in ("eos", "eot", "eom")
    )
    ends = [number for number in dict.fromkeys(found) if number is not None]
    if ends:
        config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    filler = metadata.whole("tokenizer.ggml.padding_token_id", optional=True)
    if filler is not None:
        config["pad_token_id"] = filler
    return config

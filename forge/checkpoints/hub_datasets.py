"""Find the files of a data set on the Hub and download those that are asked for.

Beside models, data sets are the only thing that forge fetches; the client and its errors are
those of ``forge/checkpoints/hub.py``. Nothing of a data set is executed: its files are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from forge.checkpoints.hub import escaped, hub_errors
from forge.core.catalog import did_you_mean
from forge.core.errors import CheckpointError
from forge.recipes.reference import ModelReference

_DATA_SUFFIXES: Final = (".parquet", ".jsonl", ".json", ".txt")
"""Files that calibration reads, the preferred first."""


def dataset_files(text: str, *, split: str, config: str | None = None) -> Iterator[Path]:
    """Download the files of a data set's split, one when the next is asked for.

    Args:
        text: Its id, ``@revision`` allowed.
        split: Word in the files' names or folders, such as ``train``.
        config: Subset of it: the name of a folder that holds the files, such as ``anatomy``.

    Yields:
        Local paths of Parquet files or, without any, of JSONL, JSON or text files.

    Raises:
        CheckpointError: There is no such data set or split, access is refused, or the Hub cannot
            be reached.
    """
    reference = ModelReference.parse(text)
    with hub_errors(text):
        from huggingface_hub import HfApi, constants

        # Fetched while there is a network, so that without one the same call finds the folder.
        root = _fetch(reference, "README.md")
        if constants.HF_HUB_OFFLINE:
            names = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
        else:
            names = HfApi().list_repo_files(
                reference.path, repo_type="dataset", revision=reference.revision
            )
    for name in _files_of_split(_files_of_config(names, config, label=text), split, label=text):
        with hub_errors(text):
            yield _fetch(reference, name) / name


def dataset_file(text: str, name: str) -> Path:
    """Download one file of a data set.

    Args:
        text: Its id, ``@revision`` allowed.
        name: Path of the file in it, such as ``data.zip``.

    Returns:
        Its local path.

    Raises:
        CheckpointError: There is no such data set or file, access is refused, or the Hub cannot be
            reached.
    """
    reference = ModelReference.parse(text)
    with hub_errors(text):
        path = _fetch(reference, name) / name
    if not path.is_file():
        raise CheckpointError(f"The data set '{text}' has no file '{name}', or it is not cached.")
    return path


def _fetch(reference: ModelReference, name: str) -> Path:
    """Download one file and return the folder that it lies in, with others of the data set."""
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            reference.path, repo_type="dataset", revision=reference.revision,
            allow_patterns=[escaped(name)],
        )
    )  # fmt: skip


def _files_of_config(names: list[str], config: str | None, *, label: str) -> list[str]:
    if config is None:
        return names
    found = [name for name in names if config in name.split("/")[:-1]]
    if not found:
        folders = sorted({name.split("/")[0] for name in names if "/" in name})
        raise CheckpointError(
            f"The data set '{label}' has no folder '{config}'."
            f"{did_you_mean(config, folders)} It has {', '.join(folders[:12]) or 'none'}."
        )
    return found


def _files_of_split(names: list[str], split: str, *, label: str) -> list[str]:
    word = re.compile(rf"(?<![a-z]){re.escape(split.lower())}(?![a-z])")
    for suffix in _DATA_SUFFIXES:
        held = sorted(name for name in names if name.endswith(suffix))
        found = [name for name in held if word.search(name.lower())]
        if found or len(held) == 1:
            return found or held
    known = sorted(name for name in names if name.endswith(_DATA_SUFFIXES))
    raise CheckpointError(
        f"The data set '{label}' has no {', '.join(_DATA_SUFFIXES)} file of a split '{split}'. "
        + (f"It has {', '.join(known[:6])}. Name a split." if known else "Download it as JSONL.")
    )

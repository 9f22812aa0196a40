"""Find paths of somebody's machine in the files of a checkpoint.

``config.json`` files with ``_name_or_path: /home/me/model`` are published every day. Text is
searched for the usual roots of private folders and for this user's own home; in JSON, a value that
is nothing but an absolute path counts as well. A tokenizer's vocabulary, made of other people's
text, is not looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from forge.checkpoints.folder import MAX_TEXT_BYTES
from forge.checkpoints.replace import MANIFEST_FILE

_SUFFIXES: Final = frozenset({".json", ".md", ".txt", ".yaml", ".yml", ".jinja", ".jsonl"})
_PRIVATE: Final = re.compile(
    r"""(?<![\w.:/-])(?:(?:/home|/Users|/root|/tmp|/mnt|/data|/workspace|/scratch|/var/folders)/
    [\w.-]+[^\s"'`]*|[A-Z]:\\+Users\\+[^\s"'`]+|file:/[^\s"'`]+)""",
    re.VERBOSE,
)
_ABSOLUTE: Final = re.compile(r"(?:/[\w.@+-]+){2,}/?|~/\S+|[A-Za-z]:\\\S+")
_VOCABULARIES: Final = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")
_SHOWN: Final = 80


def local_paths(root: Path) -> Iterator[tuple[str, str]]:
    """Search the text files of a checkpoint.

    Args:
        root: Its folder; subfolders are searched one level deep.

    Yields:
        File and path found, at most one a file. ``forge_manifest.json`` names its source as the
        user typed it, so that it can be found again; that is not looked at.
    """
    files = sorted(path for pattern in ("*", "*/*") for path in root.glob(pattern))
    for path in files:
        name = path.relative_to(root).as_posix()
        if (
            path.suffix not in _SUFFIXES
            or path.name in (MANIFEST_FILE, *_VOCABULARIES)
            or name.startswith(".")
            or not path.is_file()
            or path.stat().st_size > MAX_TEXT_BYTES
        ):
            continue
        found = _path_in(path, path.read_text("utf-8", errors="replace"))
        if found is not None:
            yield name, found if len(found) <= _SHOWN else f"{found[:_SHOWN]}..."


def _path_in(path: Path, text: str) -> str | None:
    home = str(Path.home())
    if len(home) > 1 and re.search(re.escape(home) + r"[/\\]", text):
        return home
    match = _PRIVATE.search(text)
    if match is not None:
        return match[0]
    if path.suffix != ".json":
        return None
    try:
        return next(_absolute_values(json.loads(text)), None)
    except (ValueError, RecursionError):
        return None


def _absolute_values(value: object) -> Iterator[str]:
    if isinstance(value, str):
        if _ABSOLUTE.fullmatch(value):
            yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            # A template may well write a path; a token's content may be one.
            if key not in ("chat_template", "added_tokens_decoder", "added_tokens"):
                yield from _absolute_values(item)
    elif isinstance(value, list):
        for item in value:
            yield from _absolute_values(item)

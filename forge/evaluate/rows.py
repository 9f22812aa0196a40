"""Read the rows of a file: JSON lines, a JSON list, Parquet, or a JSON file inside a zip.

Such files come from strangers: sizes are checked before anything is read, and a record that is
none is an error with its line.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from forge.core.errors import EvaluationError, MissingExtraError

MAX_FILE_BYTES: Final = 512 << 20
"""Largest file, or member of an archive, that is read."""
MAX_LINE_BYTES: Final = 4 << 20
"""Longest line of a file of JSON lines."""
_MAX_PROBLEMS: Final = 8
_BATCH: Final = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file.

    Attributes:
        values: Its columns.
        place: Where it stands, such as ``line 3``.
    """

    values: Mapping[str, object]
    place: str


def refuse(path: Path | str, problems: list[str]) -> EvaluationError:
    """Return one error that lists the problems of a file."""
    if len(problems) == 1:
        return EvaluationError(f"'{path}' {problems[0]}")
    shown = [f"  {problem}" for problem in problems[:_MAX_PROBLEMS]]
    if len(problems) > _MAX_PROBLEMS:
        shown.append(f"  and {len(problems) - _MAX_PROBLEMS:,} more")
    return EvaluationError("\n".join([f"'{path}' has {len(problems):,} problems:", *shown]))


def read_rows(path: Path, *, member: str | None = None) -> list[Row]:
    """Read all rows of a file.

    Args:
        path: A ``.jsonl``, ``.json`` or ``.parquet`` file, or a zip.
        member: The file in the zip, or ``None``.

    Returns:
        The rows in the order of the file; at least one.

    Raises:
        EvaluationError: It cannot be read, is too large, empty, or holds something else.
        MissingExtraError: A Parquet file needs pyarrow.
    """
    try:
        status = path.stat()
        if status.st_size > MAX_FILE_BYTES:
            raise refuse(path, [f"is larger than {MAX_FILE_BYTES >> 20} MiB."])
        rows = _read(path, member, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise refuse(path, [f"cannot be read: {error.strerror or error}."]) from error
    if not rows:
        raise refuse(path, ["is empty."])
    return rows


@lru_cache(maxsize=2)
def _read(path: Path, member: str | None, modified_ns: int, num_bytes: int) -> list[Row]:
    """Read a file once for the tasks and sets of examples that follow each other."""
    if member is not None:
        return _from_bytes(_read_member(path, member), member, path)
    if path.suffix == ".parquet":
        return list(_parquet_rows(path))
    return _from_bytes(path.read_bytes(), path.name, path)


def _read_member(path: Path, member: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            # An archive may hold everything below a folder of its own.
            found = [name for name in names if name == member or name.endswith(f"/{member}")]
            if len(found) != 1:
                raise refuse(path, [f"has {len(found)} files '{member}'; it must have one."])
            if archive.getinfo(found[0]).file_size > MAX_FILE_BYTES:
                raise refuse(path, [f"has a '{member}' larger than {MAX_FILE_BYTES >> 20} MiB."])
            with archive.open(found[0]) as file:
                # What the header says of the size may be wrong.
                data = file.read(MAX_FILE_BYTES + 1)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise refuse(path, [f"is no zip file that can be read: {error}."]) from error
    if len(data) > MAX_FILE_BYTES:
        raise refuse(path, [f"has a '{member}' larger than {MAX_FILE_BYTES >> 20} MiB."])
    return data


def _from_bytes(data: bytes, name: str, path: Path) -> list[Row]:
    if name.endswith(".json"):
        return _json_list(data, path)
    rows: list[Row] = []
    problems: list[str] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        if len(line) > MAX_LINE_BYTES:
            problems.append(f"line {number} is longer than {MAX_LINE_BYTES >> 20} MiB.")
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            problems.append(f"line {number} is not JSON; each line is one record in braces.")
            continue
        if isinstance(value, dict):
            rows.append(Row(value, f"line {number}"))
        else:
            problems.append(f"line {number} is no record in braces.")
    if problems:
        raise refuse(path, problems)
    return rows


def _json_list(data: bytes, path: Path) -> list[Row]:
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise refuse(path, [f"is not JSON: {error}."]) from error
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise refuse(path, ["must be a list of records."])
    return [Row(item, f"record {number}") for number, item in enumerate(value, start=1)]


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError(
            "Parquet files need pyarrow: pip install 'forge[datasets]'. Or save the data set as "
            "JSONL, and name its folder with --data-dir."
        ) from error
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=_BATCH):
            for values in batch.to_pylist():
                number += 1
                yield Row(values, f"row {number}")
    except (OSError, ArrowException) as error:
        raise refuse(path, [f"cannot be read as Parquet: {error}."]) from error

"""Read the documents of a calibration set: a text file, JSONL, or the rows of a data set.

A document is text, or a chat: a list of messages. Which field of a record holds it is the
recipe's to say; without a word, the usual names are tried, and what is not found is an error
that lists the fields there are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge.core.catalog import did_you_mean
from forge.core.errors import CheckpointError, MissingExtraError

MAX_TEXT_BYTES: Final = 64 << 20
"""Text beyond this is not looked at: no calibration set needs more."""
_USUAL_FIELDS: Final = ("text", "content", "messages", "conversations", "prompt", "question")
_ROLES: Final = {"human": "user", "gpt": "assistant", "bot": "assistant"}
"""Roles of the ShareGPT habit, and what chat templates call them."""
_ROW_BATCH: Final = 1024


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


Document = str | tuple[Message, ...]
"""A text, or a chat."""


def text_of(document: Document) -> str:
    """Return a document as plain text; the turns of a chat are separated by an empty line."""
    if isinstance(document, str):
        return document
    return "\n\n".join(message.content for message in document)


def chat_of(document: Document) -> tuple[Message, ...]:
    """Return a document as a chat; a text is what a user says."""
    return (Message("user", document),) if isinstance(document, str) else document


def read_text(path: Path) -> str:
    """Read a text file.

    Args:
        path: The file.

    Returns:
        Its text, up to :data:`MAX_TEXT_BYTES`.

    Raises:
        CheckpointError: It cannot be read, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # A character may be cut where the limit is.
        if len(data) == MAX_TEXT_BYTES and error.start > len(data) - 4:
            return data[: error.start].decode("utf-8-sig")
        raise CheckpointError(
            f"'{path}' is not text in UTF-8 (byte {error.start:,}). Save it as UTF-8."
        ) from error


def read_jsonl(path: Path, field: str | None) -> Iterator[Document]:
    """Read a file of one JSON record a line.

    Args:
        path: The file.
        field: Which field holds the document; ``None`` to find it.

    Yields:
        Documents in file order, up to :data:`MAX_TEXT_BYTES` of the file.

    Raises:
        CheckpointError: It cannot be read, or a record is malformed.
    """
    yield from documents_of(_json_lines(path), field, label=str(path))


def _json_lines(path: Path) -> Iterator[Mapping[str, object]]:
    num_bytes = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                num_bytes += len(line)
                if num_bytes > MAX_TEXT_BYTES:
                    return
                if line.strip():
                    yield _record(line, path, number)
    except OSError as error:
        raise _unreadable(path, error) from error


def _record(line: bytes, path: Path, number: int) -> Mapping[str, object]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"'{path}' line {number} is not JSON. JSONL has one record on each line, such as "
            '{"text": "..."}.'
        ) from error
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' line {number} must be a record in braces.")
    return value


def read_parquet(path: Path, field: str | None) -> Iterator[Document]:
    """Read a Parquet file.

    Args:
        path: The file.
        field: Which column holds the document; ``None`` to find it.

    Yields:
        Documents in file order.

    Raises:
        MissingExtraError: pyarrow is not installed.
        CheckpointError: It cannot be read, or has no such column.
    """
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError(
            "Parquet files need pyarrow: pip install 'forge[datasets]'. Or save the data set as "
            "JSONL."
        ) from error
    try:
        file = parquet.ParquetFile(path)
        columns = list(file.schema_arrow.names)
        rows = (
            row
            for batch in file.iter_batches(
                batch_size=_ROW_BATCH, columns=[_find_field(columns, field, label=str(path))]
            )
            for row in batch.to_pylist()
        )
        yield from documents_of(rows, field, label=str(path))
    except (OSError, ArrowException) as error:
        raise CheckpointError(f"'{path}' cannot be read as Parquet: {error}.") from error


def documents_of(
    records: Iterable[Mapping[str, object]], field: str | None, *, label: str
) -> Iterator[Document]:
    """Take the documents out of records.

    Args:
        records: The records.
        field: Which field holds the document; ``None`` to find it in the first record.
        label: Where they come from, for messages.

    Yields:
        Documents that are not empty.

    Raises:
        CheckpointError: A record lacks the field, or holds neither text nor chat in it.
    """
    for number, record in enumerate(records, start=1):
        field = _find_field(list(record), field, label=f"{label} record {number}")
        document = _document(record[field])
        if document is None:
            raise CheckpointError(
                f"'{label}' record {number}: '{field}' is neither text nor a chat. A chat is a "
                'list such as [{"role": "user", "content": "..."}].'
            )
        if text_of(document).strip():
            yield document


def _find_field(names: list[str], field: str | None, *, label: str) -> str:
    if field is not None:
        if field in names:
            return field
        guess = did_you_mean(field, names)
        raise CheckpointError(
            f"'{label}' has no field '{field}'.{guess} It has: {', '.join(names)}."
        )
    found = next((name for name in _USUAL_FIELDS if name in names), None)
    if found is None:
        raise CheckpointError(
            f"'{label}' has none of the fields {', '.join(_USUAL_FIELDS)}. Say which of "
            f"{', '.join(names) or 'its fields'} holds the text: 'calibration: {{field: ...}}' or "
            "--calibration-field."
        )
    return found


def _document(value: object) -> Document | None:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(item, str) for item in value):
        return "\n".join(value)
    messages = [_message(item) for item in value]
    found = [message for message in messages if message is not None]
    return tuple(found) if len(found) == len(messages) else None


def _message(item: object) -> Message | None:
    if not isinstance(item, Mapping):
        return None
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        return None
    return Message(_ROLES.get(role, role), content)


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"There is no calibration file '{path}'.")
    return CheckpointError(f"'{path}' cannot be read: {error.strerror or error}.")

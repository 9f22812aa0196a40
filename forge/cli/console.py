"""The only place that prints: results to stdout, everything else to stderr.

Streams are looked up at each call, so a redirected ``sys.stdout`` is respected. Text from
files and recipes passes through ``printable``: a tensor's name must not move the cursor.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import traceback
from typing import Final, TextIO

from forge.core.errors import OutputError

_KEPT: Final = frozenset("\n\t")
_WIDEST: Final = 160


def printable(text: str) -> str:
    """Return text with control characters escaped, so that it cannot steer a terminal.

    Args:
        text: Any text.

    Returns:
        The text; line feeds, tabs and all printable characters are as before.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in _KEPT
        else character.encode("unicode_escape").decode()
        for character in text
    )


def result(text: str = "", *, end: str = "\n") -> None:
    """Print a result to stdout.

    Args:
        text: One or more lines, without the last line feed.
        end: What follows; nothing while a result comes in pieces.

    Raises:
        OutputError: stdout cannot take it, because a disk is full, for example.
        BrokenPipeError: Nobody reads it any more.
    """
    if sys.stdout is None:
        # Closed by the caller, who does not want the result.
        return
    try:
        print(_encodable(printable(text), sys.stdout.encoding), end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon(sys.stdout)
        raise OutputError(f"The result cannot be printed: {error.strerror}.") from error


def result_json(value: object) -> None:
    """Print plain values as JSON to stdout.

    Args:
        value: Dicts, lists, text, finite numbers, booleans and ``None``.

    Raises:
        OutputError: As ``result``.
        BrokenPipeError: As ``result``.
    """
    # NaN and Infinity are not JSON; a number that is one is a defect, not a result.
    result(json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False))


def abandon(stream: TextIO) -> None:
    """Let nothing more be written to a stream that failed, not even what Python still holds.

    Args:
        stream: stdout or stderr.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def say(text: str) -> None:
    """Print a notice, a warning or progress to stderr.

    Args:
        text: One or more lines, without the last line feed.
    """
    if sys.stderr is not None:
        print(_encodable(printable(text), sys.stderr.encoding), file=sys.stderr, flush=True)


def error(text: str) -> None:
    """Print what went wrong to stderr, behind ``error:``.

    Args:
        text: The message; further lines are indented below the first.
    """
    say("error: " + text.replace("\n", "\n       "))


def show_traceback(problem: BaseException) -> None:
    """Print an exception's traceback to stderr.

    Args:
        problem: The exception.
    """
    say("".join(traceback.format_exception(problem)).rstrip("\n"))


def width() -> int | None:
    """Return the columns that a result may take; ``None`` when it is not shown on a terminal."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return max(40, min(shutil.get_terminal_size().columns, _WIDEST))


def is_interactive() -> bool:
    """Return whether stderr is a terminal, where lines can be redrawn."""
    return sys.stderr is not None and sys.stderr.isatty()


def set_up_logging(*, debug: bool) -> None:
    """Send the library's log records to stderr.

    Args:
        debug: Whether to show all records, not only warnings.
    """
    logger = logging.getLogger("forge")
    for handler in [known for known in logger.handlers if isinstance(known, _LogHandler)]:
        logger.removeHandler(handler)
    logger.addHandler(_LogHandler())
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)
    logger.propagate = False


class _LogHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(f"{record.levelname.lower()}: {record.getMessage()}")
        except Exception:
            # A log line that cannot be written must not end a merge.
            self.handleError(record)


def _encodable(text: str, encoding: str | None) -> str:
    """Replace what a stream such as an ASCII log cannot hold, instead of failing in its middle."""
    return text.encode(encoding or "utf-8", "replace").decode(encoding or "utf-8")

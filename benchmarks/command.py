"""What the benchmarks' command lines share: options, progress, and where the figures go."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.process import BenchmarkError
from benchmarks.tables import replace_section

Record = Mapping[str, object]
"""Every measurement of a benchmark and the machine, as plain JSON values."""


def say(message: str) -> None:
    """Report progress on stderr."""
    print(message, file=sys.stderr, flush=True)


def rows_of(record: Record, name: str) -> list[dict[str, object]]:
    """Return the measurements of a record.

    Raises:
        BenchmarkError: The record is not of the benchmark that asks.
    """
    rows = record.get(name)
    if not isinstance(rows, list) or not rows:
        raise BenchmarkError(f"the record has no '{name}'; was it written by another benchmark?")
    return rows


def chosen(text: str, known: Mapping[str, object]) -> list[str]:
    """Split a list of words at its commas.

    Raises:
        BenchmarkError: A word is not among the known ones.
    """
    words = text.split(",")
    for word in words:
        if word not in known:
            raise BenchmarkError(f"no '{word}' here; there are {', '.join(known)}")
    return words


def run_benchmark(
    parser: argparse.ArgumentParser,
    section: str,
    measure: Callable[[argparse.Namespace], Record],
    report: Callable[[Record], str],
) -> int:
    """Parse the command line, measure or read what was measured, and publish the tables.

    Args:
        parser: Knows the options of this benchmark; those that all share are added.
        section: Name of this benchmark's section in the document of ``--markdown``.
        measure: Returns a record.
        report: Turns a record into Markdown.

    Returns:
        The exit status.
    """
    _add_shared_options(parser)
    arguments = parser.parse_args()
    try:
        record = (
            json.loads(arguments.stored.read_text()) if arguments.stored else measure(arguments)
        )
        # Kept before it is shown, so that no hour of measuring is lost to a slip in a table.
        if arguments.json:
            arguments.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        text = report(record)
        print(text)
        if arguments.markdown:
            replace_section(arguments.markdown, section, text)
    except (BenchmarkError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _add_shared_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="keep every measurement here")
    add("--from", type=Path, metavar="FILE", dest="stored", help="show what --json kept instead")
    add("--markdown", type=Path, metavar="FILE", help="put the tables into docs/benchmarks.md")
    add(
        "--work", type=Path, metavar="DIR", default=Path("benchmarks/output"),
        help="models and outputs; on the file system to be measured [%(default)s]",
    )  # fmt: skip
    add("--small", action="store_true", help="models of 4 M parameters or less, to try it")

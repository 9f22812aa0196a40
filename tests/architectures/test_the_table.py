"""The table in ``docs/architectures.md``: every line is what a trial of that row found.

A few rows are tried in the default run, all of them with ``-m 'slow or not slow'``.
FORGE_UPDATE_GOLDEN=1 writes the lines of the rows that are tried.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from forge.architectures.table import ARCHITECTURES
from tests.architectures.rows import ROWS
from tests.architectures.trial import trial_of

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
_BEGIN = "<!-- The lines below are written by tests/architectures/test_the_table.py -->\n"
_END = "<!-- The lines above are written by tests/architectures/test_the_table.py -->\n"
_HEAD = (
    "| Family | `model_type` | Merge | Quantize | Runs | Round-trips |\n"
    "| :--- | :--- | :--- | :--- | :--- | :--- |\n"
)


def lines_of_page() -> dict[str, str]:
    """Return the lines of the table by family."""
    table = PAGE.read_text(encoding="utf-8").partition(_BEGIN)[2].partition(_END)[0]
    lines = table.removeprefix(_HEAD).splitlines()
    return {line.split("|")[1].strip(): line for line in lines}


def write_line(title: str, line: str) -> None:
    """Put a row's line into the table."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    lines = lines_of_page() | {title: line}
    table = "".join(f"{lines[each]}\n" for each in ROWS if each in lines)
    after = rest.partition(_END)[2]
    PAGE.write_text(f"{before}{_BEGIN}{_HEAD}{table}{_END}{after}", encoding="utf-8")


@pytest.mark.parametrize(
    "title",
    [title if row.is_quick else pytest.param(title, marks=pytest.mark.slow)
     for title, row in ROWS.items()],
)  # fmt: skip
def test_the_line_says_what_a_trial_finds(
    title: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        line = trial_of(title, tmp_path).line(ROWS[title])
    finally:
        torch.set_num_threads(threads)
    if os.environ.get("FORGE_UPDATE_GOLDEN"):
        write_line(title, line)
    assert lines_of_page()[title] == line


def test_the_table_has_every_row_in_order() -> None:
    assert list(lines_of_page()) == list(ROWS)
    assert {row.family for row in ROWS.values()} == set(ARCHITECTURES.names())

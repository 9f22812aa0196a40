"""Text layout."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge.cli.tables import count_text, display_width, duration_text, plural, size_text, table


def test_columns_are_aligned_and_end_without_blanks() -> None:
    text = table(("NAME", "N", "WHAT"), [("a", "10", "x y"), ("bcd", "5", "")], right=("N",))
    assert text == (
        "NAME   N  WHAT\n"
        "────  ──  ────\n"
        "a     10  x y\n"
        "bcd    5"
    )  # fmt: skip


def test_the_last_column_is_wrapped_to_the_terminal() -> None:
    text = table(("A", "B"), [("x", "one two three four five six seven")], width=25)
    assert text.splitlines()[2:] == ["x  one two three four", "   five six seven"]


def test_a_column_that_may_go_goes_where_it_does_not_fit() -> None:
    rows = [("x", "one", "a long explanation of it")]
    wide = table(("A", "B", "C"), rows, width=60, can_drop_last=True)
    assert wide.splitlines()[2] == "x  one  a long explanation of it"
    narrow = table(("A", "B", "C"), rows, width=20, can_drop_last=True)
    assert narrow.splitlines() == ["A  B", "─  ───", "x  one"]


@given(
    rows=st.lists(st.tuples(st.text("abc ", max_size=9), st.text("def ", max_size=60))),
    width=st.integers(40, 80),
)
def test_no_line_is_wider_than_the_terminal(rows: list[tuple[str, str]], width: int) -> None:
    lines = table(("A", "B"), rows, width=width).splitlines()
    assert all(len(line) <= width for line in lines)
    words = [word for row in rows for word in row[1].split()]
    text = "".join(table(("A", "B"), rows, width=width).split())
    assert all(word[:20] in text for word in words)


def test_wide_and_combining_characters_are_counted() -> None:
    assert display_width("模型") == 4
    assert display_width("é") == 1
    assert display_width("e\u0301") == 1


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 KB"), (14_480_000_000, "14.48 GB"),
     (2_000_000_000_000, "2.00 TB")],
)  # fmt: skip
def test_sizes(count: int, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(16, "16"), (134_515_008, "135 M"), (7_241_732_096, "7.24 B"), (1.5e12, "1.5 T")],
)
def test_counts(count: float, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (8.04, "8.0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"),
     (7800, "2 h 10 min")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_plurals() -> None:
    assert (plural(1, "file"), plural(2500, "file")) == ("1 file", "2,500 files")

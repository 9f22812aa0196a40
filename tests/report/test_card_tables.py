"""Tables and cells of cards: every way of writing them, and hostile ones."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge.core.errors import EvaluationError
from forge.report import card_tables
from forge.report.card_cells import Cell, RawCell, read_cell
from forge.report.card_tables import CardTable, tables_of
from forge.report.card_text import MAX_BYTES, card_text, read_card
from forge.report.lint import lint_text


def cell(source: str, *, comma: bool = False, underline: bool = True) -> Cell:
    return read_cell(RawCell(source, 1), decimal_comma=comma, underscores_underline=underline)


def tables(text: str) -> tuple[CardTable, ...]:
    return tables_of(card_text(text))


@pytest.mark.parametrize(
    ("source", "value", "decimals"),
    [
        ("74.72", 74.72, 2),
        ("**74.70**", 74.7, 2),
        ("<b>74.7</b>", 74.7, 1),
        ("<strong><u>74.7</u></strong>", 74.7, 1),
        ("***74.7***", 74.7, 1),
        ("_74.7_", 74.7, 1),
        ("`74.7`", 74.7, 1),
        ("74.7%", 74.7, 1),
        ("74.7 ± 0.3", 74.7, 1),
        ("74.7±0.3 %", 74.7, 1),
        ("74.7<sub>±0.3</sub>", 74.7, 1),
        ("74.7<sup>1</sup>", 74.7, 1),
        ("74.7¹", 74.7, 1),
        ("74.7[^1]", 74.7, 1),
        ("74.7†", 74.7, 1),
        ("74.7\\*", 74.7, 1),
        ("74.7 (+1.2)", 74.7, 1),
        ("[74.7](https://example.org/run_1)", 74.7, 1),
        ("![up](a.png) 74.7", 74.7, 1),
        ("$\\mathbf{74.7}$", 74.7, 1),
        ("$74.7_{\\pm 0.3}$", 74.7, 1),
        ("🥇 74.7", None, None),
        ("74.7 🥇", 74.7, 1),
        ("x10.30", 10.3, 2),
        ("1.41×", 1.41, 2),
        ("15.02 GB", 15.02, 2),
        ("7B", 7.0, 0),
        ("-3.5", -3.5, 1),
        ("−3.5", -3.5, 1),
        (".745", 0.745, 3),
        ("1,234.5", 1234.5, 1),
        ("1,234", 1234.0, 0),
        ("12 345", 12345.0, 0),
        ("58,97", 58.97, 2),
        ("74.7&nbsp;%", 74.7, 1),
        ("<span style='font-weight: bold'>74.7</span>", 74.7, 1),
        ("Mistral-7B-v0.1", None, None),
        ("Med-PaLM-2 (5-shot)", None, None),
        ("FP16/BF16", None, None),
        ("1.2.3", None, None),
        ("74 75", None, None),
        ("", None, None),
        ("–", None, None),
    ],
)
def test_the_number_of_a_cell(source: str, value: float | None, decimals: int | None) -> None:
    number = cell(source).number
    assert (number and number.value) == value
    assert (number and number.decimals) == decimals


@pytest.mark.parametrize(
    ("source", "bold", "underlined"),
    [
        ("74.7", False, False),
        ("**74.7**", True, False),
        ("**74.7** ± 0.3", True, False),
        ("**Ours** 74.7", False, False),
        ("<b>74.7</b>", True, False),
        ("<u>74.7</u>", False, True),
        ("**<u>74.7</u>**", True, True),
        ("__74.7__", False, True),
        ("*74.7*", False, False),
        ("\\*\\*74.7\\*\\*", False, False),
        ("$\\underline{74.7}$", False, True),
        ("<span style='text-decoration:underline'>74.7</span>", False, True),
        ("**BioMistral 7B**", True, False),
    ],
)
def test_the_marks_of_a_cell(source: str, bold: bool, underlined: bool) -> None:
    found = cell(source)
    assert (found.is_bold, found.is_underlined) == (bold, underlined)


def test_double_underscores_are_bold_where_nothing_else_is() -> None:
    alone = tables("| m | a |\n|---|---|\n| x | __1.5__ |\n| y | 1.4 |\n")[0]
    beside = tables("| m | a |\n|---|---|\n| x | __1.5__ |\n| y | **1.6** |\n")[0]
    assert (alone.rows[0][1].is_bold, alone.rows[0][1].is_underlined) == (True, False)
    assert (beside.rows[0][1].is_bold, beside.rows[0][1].is_underlined) == (False, True)


@pytest.mark.parametrize(
    ("source", "has"),
    [
        ("74.7 ± 0.3", True),
        ("74.7 +/- 0.3", True),
        ("74.7 (95% CI 71.2–78.0)", True),
        ("74.7 [71.2, 78.0]", True),
        ("74.7 (+1.2)", False),
        ("74.7", False),
    ],
)
def test_intervals_are_seen(source: str, has: bool) -> None:
    number = cell(source).number
    assert number is not None
    assert number.has_interval is has


@pytest.mark.parametrize(
    ("numbers", "values"),
    [
        (("58,97", "61,123"), (58.97, 61.123)),
        (("0,745", "0,5"), (0.745, 0.5)),
        (("1.234,5", "987,6"), (1234.5, 987.6)),
        (("1,234", "2,345"), (1234.0, 2345.0)),
        (("1,234", "2.5"), (1234.0, 2.5)),
    ],
)
def test_decimal_commas_are_those_of_a_whole_table(
    numbers: tuple[str, str], values: tuple[float, float]
) -> None:
    found = tables(f"| m | a |\n|---|---|\n| x | {numbers[0]} |\n| y | {numbers[1]} |\n")[0]
    assert tuple(row[1].number.value for row in found.rows if row[1].number) == values


def test_pipe_tables_in_all_their_shapes() -> None:
    found = tables(
        "text | with | pipes\n\nm | a\\|b | c\n:--|:-:|--:\nx | 1 | 2\n| y | 3 |\n"
        "| z | 4 | 5 | 6 |\nafter\n\n> | q | r |\n> |---|---|\n> | 1 | 2 |\n"
    )
    first, quoted = found
    assert [head.text for head in first.heads] == ["m", "a|b", "c"]
    assert [[each.text for each in row] for row in first.rows] == [
        ["x", "1", "2"], ["y", "3", ""], ["z", "4", "5"],
    ]  # fmt: skip
    assert (first.line, first.last_line) == (3, 7)
    assert first.ragged == ((6, 2), (7, 4))
    assert [row[0].line for row in first.rows] == [5, 6, 7]
    assert (quoted.line, quoted.rows[0][1].text) == (10, "2")


def test_html_tables_with_spans_styles_and_two_heads() -> None:
    found = tables(
        "# Results\n<table>\n<thead>\n<tr><th rowspan=2>Model</th><th colspan=2>MMLU</th></tr>\n"
        "<tr><th>Anatomy</th><th>Biology</th></tr></thead><tbody>\n"
        "<tr><td rowspan='2'>base</td><td>1.0</td>\n<td style='font-weight: bold'>2.0</td></tr>\n"
        "<tr><td><u>3.0</u></td><td>4 &lt; 5</td>\n</tbody></table>\ntext\n"
    )[0]
    assert [head.text for head in found.heads] == ["Model", "MMLU Anatomy", "MMLU Biology"]
    assert [[each.text for each in row] for row in found.rows] == [
        ["base", "1.0", "2.0"], ["base", "3.0", "4 < 5"],
    ]  # fmt: skip
    assert found.rows[0][2].is_bold
    assert found.rows[1][1].is_underlined
    assert [each.line for each in found.rows[0]] == [6, 6, 7]


def test_code_comments_and_front_matter_are_no_tables() -> None:
    table = "| a | b |\n|---|---|\n| 1 | 2 |\n"
    card = (
        f"---\nwidget: |\n  x\n---\n```\n{table}```\n~~~~md\n{table}~~~\n{table}~~~~\n"
        f"<!--\n{table}-->\n{table}"
    )
    found = tables(card)
    assert len(found) == 1
    assert card.split("\n")[found[0].line - 1] == "| a | b |"
    assert found[0].line == 24


@given(st.text(alphabet="|-:*_<>u/btrdh \\\n0123.,±%&;'\"[]()`~#x", max_size=300))
def test_no_card_breaks_it(text: str) -> None:
    report = lint_text(card_text(text))
    lines = text.count("\n") + 1
    assert all(1 <= finding.line <= lines for finding in report.findings)


HOSTILE = {
    "pipes": "|" * 1_000_000,
    "alignment": "|a|\n" + "|-" * 100_000,
    "tables": "<table>" * 100_000,
    "rows of one cell": "<table>" + "<tr><td>1" * 1_900,
    "nested": "<table>" + "<b>" * 60_000 + "</table>",
    "stars": "| a | b |\n|---|---|\n| " + "**" * 200_000 + " | 1 |",
    "digits": "| a | b |\n|---|---|\n" + f"| x | {'1' * 1900}a |\n" * 500,
    "separated digits": "| a | b |\n|---|---|\n" + f"| x | {'1 111' * 380}a |\n" * 300,
    "brackets": "| a | b |\n|---|---|\n" + f"| {'[' * 1900} | {'(' * 1900} |\n" * 300,
    "ampersands": "| a | b |\n|---|---|\n" + f"| {'&' * 1900} | 1 |\n" * 300,
    "comments": "<!---->" * 100_000,
    "open comment": "<!--" * 100_000,
    "fences": "```\n" * 100_001,
    "headings": "# a\n" * 200_000 + "| m | MMLU |\n|---|---|\n| x | 1 |\n",
    "claims": "| m | MMLU |\n|---|---|\n| x | 1 |\n\n" + "outperforms all\n" * 20_000,
    "declarations": "<table><tr><td>" + "<!" * 60_000,
    "unclosed tag": "<table><tr><td>" + "<a " * 60_000,
    "spans": "<table>" + "<tr><td colspan=200 rowspan=500>1" * 100,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_card_takes_no_time(name: str) -> None:
    started = time.process_time()
    # Either it is read or one of its sizes is refused; anything else is a defect.
    with suppress(EvaluationError):
        lint_text(card_text(HOSTILE[name]))
    assert time.process_time() - started < 8


def test_limits_are_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = "| a | b |\n|---|---|\n| 1 | 2 |\n\n"
    monkeypatch.setattr(card_tables, "MAX_TABLES", 3)
    with pytest.raises(EvaluationError, match="The card has 4 tables; 3 are read at most"):
        tables(table * 4)
    monkeypatch.setattr(card_tables, "MAX_ROWS", 2)
    with pytest.raises(EvaluationError, match="line 1 has 3 rows of 2 cells; 2 rows of"):
        tables("| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 3)
    large = tmp_path / "large.md"
    large.write_bytes(b"x" * (MAX_BYTES + 1))
    with pytest.raises(EvaluationError, match="is larger than 2 MiB; that is no card"):
        read_card(large)
    large.write_bytes(b"ab\xff")
    with pytest.raises(EvaluationError, match="is not UTF-8 text: byte 2 is 0xff"):
        read_card(large)
    with pytest.raises(EvaluationError, match="cannot be read: No such file"):
        read_card(tmp_path / "none.md")

"""Golden files of each format, and what must hold of each for any text.

FORGE_UPDATE_GOLDEN=1 writes the golden files anew.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge.report.card_text import card_text
from forge.report.compare import compare
from forge.report.comparison import Comparison
from forge.report.comparison.scores import ScoreRow
from forge.report.lint import lint_text
from forge.report.scores import _ranked
from forge.report.tables import Cell, Column, Grid
from forge.report.writers import latex, markdown
from forge.report.writers.csv_files import render_csv
from forge.report.writers.json_document import render_json
from tests.report import results_factory as world

GOLDEN = Path(__file__).parent / "golden"


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("FORGE_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def dated(comparison: Comparison) -> Comparison:
    """The comparison as a forge of version 0 writes it, so that releases change no golden file."""
    return replace(comparison, forge_version="0")


def test_markdown(dated: Comparison) -> None:
    check_golden("report.md", markdown.render_markdown(dated))


def test_latex(dated: Comparison) -> None:
    check_golden("report.tex", latex.render_latex(dated))


@pytest.mark.parametrize(
    "name", ["models.csv", "profiles.csv", "scores.csv", "averages.csv", "differences.csv"]
)
def test_csv(dated: Comparison, name: str) -> None:
    check_golden(name, render_csv(dated)[name])


def test_every_row_of_a_csv_file_has_the_columns_of_its_head(comparison: Comparison) -> None:
    for name, text in render_csv(comparison).items():
        head, *rows = csv.reader(io.StringIO(text))
        assert len(set(head)) == len(head), name
        assert rows, name
        assert {len(row) for row in rows} == {len(head)}, name


def test_csv_holds_plain_numbers_in_the_units_that_it_names(comparison: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv(comparison)["differences.csv"])))
    row = next(r for r in rows if (r["variant"], r["task"]) == (world.WORSE, "all"))
    assert float(row["difference_share"]) == pytest.approx(-0.1)
    assert (row["lost_items"], row["significant"]) == ("96", "true")


@pytest.mark.parametrize("label", ["=1+1", "+cmd", "-x", "@sum"])
def test_a_label_is_no_formula(comparison: Comparison, label: str) -> None:
    models = (replace(comparison.models[0], label=label), *comparison.models[1:])
    verdicts = (replace(comparison.verdicts[0], model=label), *comparison.verdicts[1:])
    text = render_csv(replace(comparison, models=models, verdicts=verdicts))["models.csv"]
    assert text.splitlines()[1].startswith(f"'{label},")


def test_json_holds_everything_unrounded(comparison: Comparison) -> None:
    document = json.loads(render_json(comparison))
    assert (document["schema"], document["version"]) == ("forge-report", 1)
    pair = document["pairs"][1]
    assert pair["variant"] == world.WORSE
    assert pair["overall"]["interval"]["low"] == comparison.pairs[1].overall.interval.low
    assert len(document["models"]) == 8
    assert set(document) == {"schema", "version", *comparison.__dataclass_fields__}


def test_the_same_comparison_gives_the_same_bytes(planted: Path, comparison: Comparison) -> None:
    again = compare(planted, margin=0.02)
    assert markdown.render_markdown(again) == markdown.render_markdown(comparison)
    assert latex.render_latex(again) == latex.render_latex(comparison)
    assert render_csv(again) == render_csv(comparison)
    assert render_json(again) == render_json(comparison)


def test_best_is_bold_and_second_underlined(comparison: Comparison) -> None:
    text = markdown.render_markdown(comparison)
    row = next(line for line in text.splitlines() if line.startswith("| merge &amp; more | **65.0"))
    assert row.count("**65.0 ± 0.0†**") == 3
    assert "<u>62.5 ± 0.0†</u>" in text
    assert r"\textbf{65.0 $\pm$ 0.0$^{\dagger}$}" in latex.render_latex(comparison)


_SHARES = st.floats(0, 1)


@given(
    st.lists(st.tuples(_SHARES, _SHARES), min_size=1, max_size=7),
    st.tuples(_SHARES, _SHARES),
    st.booleans(),
)
def test_lint_finds_no_contradiction_in_a_report_whatever_the_scores(
    comparison: Comparison,
    scores: list[tuple[float, float]],
    majorities: tuple[float, float],
    is_weighted: bool,
) -> None:
    table = comparison.tables[0]
    weights = (3, 1) if is_weighted else (1, 1)

    def filled(row: ScoreRow, values: tuple[float, float]) -> ScoreRow:
        cells = [
            replace(score, value=value, deviation=None, same_items=True)
            for score, value in zip(table.rows[0].scores, values, strict=True)
            if score is not None
        ]
        mean, micro = (sum(w * v for w, v in zip(each, values, strict=True)) / sum(each)
                       for each in ((1, 1), weights))  # fmt: skip
        assert table.rows[0].macro is not None
        average = replace(table.rows[0].macro, deviation=None)
        return replace(
            row, scores=tuple(cells), macro=replace(average, value=mean),
            micro=replace(average, value=micro),
        )  # fmt: skip

    rows = [filled(row, values) for row, values in zip(table.rows, scores, strict=False)]
    tasks = [replace(t, majority=m) for t, m in zip(table.tasks, majorities, strict=True)]
    shown = replace(
        table, tasks=tuple(tasks), rows=_ranked(rows, 2), majority_macro=sum(majorities) / 2
    )
    page = markdown.render_markdown(replace(comparison, tables=(shown,)))
    assert f"always the commonest answer: heart &amp; lung 50% {100 * majorities[0]:.1f}" in page
    found = lint_text(card_text(page)).findings
    assert [each for each in found if each.level == "error"] == []


def _unescaped(text: str) -> str:
    return re.sub(r"\\.", "", text)


@given(st.text(max_size=60))
def test_a_cell_of_markdown_stays_one_cell(text: str) -> None:
    escaped = markdown.escape(text)
    assert "\n" not in escaped
    assert "\r" not in escaped
    bare = _unescaped(escaped)
    for sign in "|*`[]<>":
        assert sign not in bare


def _grid(text: str) -> Grid:
    columns = (Column(text, numeric=False), Column("n"))
    return Grid("g", text, columns, ((Cell(text, "best"), Cell("1")),), notes=(text,))


@given(st.text(max_size=60))
def test_latex_stays_balanced_whatever_the_text(text: str) -> None:
    table = latex._table(_grid(text))
    bare = re.sub(r"\\[{}&%$#_]", "", table)
    depth = 0
    for sign in bare:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    assert bare.count("%") == 1, "but for the one behind resizebox"
    rows = [line for line in bare.splitlines() if line.endswith(r"\\")]
    assert [line.count("&") for line in rows] == [1, 1]
    # A row that begins with one of these would be read as an option of the break before it.
    assert not any(line.startswith(("[", "*")) for line in bare.splitlines())


def test_latex_keeps_accents_and_names_what_it_cannot_set() -> None:
    assert latex.escape("médical") == "médical"
    assert latex.escape("医 50%") == r"(U+533B) 50\%"
    assert latex.escape("a_b & c^d~e\\f") == (
        r"a\_b \& c\textasciicircum{}d\textasciitilde{}e\textbackslash{}f"
    )


def test_environments_of_latex_are_closed(comparison: Comparison) -> None:
    text = latex.render_latex(comparison)
    stack: list[str] = []
    for verb, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if verb == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert stack == []


def test_fences_are_longer_than_what_they_hold(comparison: Comparison) -> None:
    entry = replace(comparison.lineage[1], recipe="a: |\n  ```\n  # no heading\n")
    text = markdown.render_markdown(replace(comparison, lineage=(entry,)))
    assert "````yaml\na: |\n  ```\n  # no heading\n````" in text

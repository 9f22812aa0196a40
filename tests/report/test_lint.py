"""What lint finds: in published cards, and in tables with one thing wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forge.cli.app import run
from forge.report.card_text import card_text
from forge.report.lint import LintReport, lint_text
from forge.report.lint_finding import LintFinding
from tests.report.published_tables import (
    BIOMISTRAL,
    BIOMISTRAL_QUANTIZED,
    OPENBIOLLM_7B,
    OPENBIOLLM_70B,
)


def lint(text: str) -> LintReport:
    return lint_text(card_text(text))


def of(report: LintReport, code: str) -> list[tuple[str, int]]:
    return [(found.level, found.line) for found in report.findings if found.code == code]


def only(report: LintReport, code: str) -> LintFinding:
    found = [finding for finding in report.findings if finding.code == code]
    assert len(found) == 1, report.findings
    return found[0]


def rows(*lines: str, heads: str = "Model | A | B | C | Avg") -> str:
    width = heads.count("|") + 1
    return "\n".join([f"| {heads} |", "|---" * width + "|", *(f"| {line} |" for line in lines), ""])


def test_the_openbiollm_7b_card_has_two_wrong_averages() -> None:
    report = lint(OPENBIOLLM_7B)
    errors = [finding for finding in report.findings if finding.level == "error"]
    assert [(error.code, error.line) for error in errors] == [("average", 4), ("average", 9)]
    assert [error.message for error in errors] == [
        "GPT-3.5 Turbo 1106: the average 66.0 is not the mean of its 9 cells, which is 67.69.",
        "BioMistral-7B: the average 57.3 is not the mean of its 9 cells, which is 58.97.",
    ]
    assert report.count("warning") == 0


def test_the_later_card_has_them_still() -> None:
    errors = [each for each in lint(OPENBIOLLM_70B).findings if each.level == "error"]
    assert [error.line for error in errors] == [9, 15]
    assert "which is 68.45" in errors[0].message


def test_the_biomistral_card_contradicts_itself_nowhere() -> None:
    report = lint(BIOMISTRAL)
    assert report.count("error") == 0
    # Its caption explains it: the API row is reported, not compared.
    assert only(report, "bold").message == (
        "Bold and underlines leave out GPT-3.5 Turbo 1106, which is better than everything that "
        "is marked in 10 of 11 columns. Say so beside the table."
    )
    quantized = lint(BIOMISTRAL_QUANTIZED)
    assert quantized.findings == ()
    assert (quantized.num_tables, quantized.num_results) == (1, 0)


def test_a_number_from_another_task_set_is_traced() -> None:
    report = lint(f"{BIOMISTRAL}\n{OPENBIOLLM_7B}")
    messages = [each.message for each in report.findings if each.level == "error"]
    assert len(messages) == 2
    assert all(
        "It is the mean of the same row's 10 cells in the table at line 1: a number of another "
        "task set." in message
        for message in messages
    )


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        # 50.05 and 61.15 average 55.6; rounding of cells and average is allowed for.
        (rows("x | 50.0 | 61.2 | 55.6 | 55.6", "y | 1.0 | 2.0 | 3.0 | 2.0"), []),
        (rows("x | 50.0 | 61.2 | 55.6 | 55.7", "y | 1.0 | 2.0 | 3.0 | 2.0"), []),
        (rows("x | 50.0 | 61.2 | 55.6 | 55.8", "y | 1.0 | 2.0 | 3.0 | 2.0"), [("error", 3)]),
        # Whole numbers among decimals have lost their zeros.
        (rows("x | 50 | 61.25 | 55.65 | 55.9", "y | 1.0 | 2.0 | 3.0 | 2.0"), [("error", 3)]),
        # Shares, averaged in percent.
        (rows("x | 0.50 | 0.60 | 0.55 | 55.0", "y | 0.1 | 0.2 | 0.3 | 20"), []),
        # German decimals, HTML, percent signs, deviations, marks.
        (rows("x | 50,5 | 60,5 | 55,5 | **55,5**", "y | 1,0 | 2,0 | 3,0 | 2,9"), [("error", 4)]),
        (rows("x | 50 % | 60 % | 55 ± 1 % | 55.0 %", "y | 1% | 2% | 3% | 2.7%"), [("error", 4)]),
        # A single row, and two rows that both are wrong.
        (rows("x | 50.0 | 60.0 | 55.0 | 57.0"), [("error", 3)]),
        (
            rows("x | 50.0 | 60.0 | 55.0 | 57", "y | 1.0 | 2.0 | 3.0 | 2.5"),
            [("error", 3), ("error", 4)],
        ),
        # A habit: all rows average something that is not shown.
        (
            rows(*(f"m{at} | 50.0 | 60.0 | 55.0 | 5{at}.{at}" for at in (1, 2, 3))),
            [("warning", 3)],
        ),
    ],
)
def test_averages(table: str, expected: list[tuple[str, int]]) -> None:
    assert of(lint(table), "average") == expected


def test_averages_of_groups_and_of_averages() -> None:
    heads = "Model | A | B | Avg | C | D | Avg | Overall Avg"
    good = "x | 10.0 | 20.0 | 15.0 | 30.0 | 50.0 | 40.0 | 27.5"
    bad = "z | 1.0 | 2.0 | 1.5 | 3.0 | 4.0 | 3.9 | 2.5"
    table = rows(good, "y | 1.0 | 3.0 | 2.0 | 3.0 | 5.0 | 4.0 | 3.0", bad, heads=heads)
    found = only(lint(table), "average")
    assert (found.level, found.line) == ("error", 5)
    assert "3.9 is not the mean of its 2 cells, which is 3.50" in found.message


def test_measures_and_settings_are_not_averaged() -> None:
    heads = "Model | Bits | VRAM GB ↓ | A ↑ | B ↑ | Perplexity | tokens/s | Average"
    table = rows(
        "x | 4 | 4.7 | 50.0 | 60.0 | 6.1 | 90 | 55.0",
        "y | 8 | 8.0 | 52.0 | 61.0 | 6.0 | 70 | 56.5",
        heads=heads,
    )
    assert lint(table).findings == ()


def test_models_in_columns() -> None:
    table = rows(
        "A | 50.0 | **61.0**", "B | **70.0** | 60.0", "Average | 60.0 | 60.9",
        heads="Benchmark | x | y",
    )  # fmt: skip
    found = only(lint(table), "average")
    assert (found.level, found.line) == ("error", 5)
    assert found.message.startswith("y: the average 60.9 is not the mean of its 2 cells")
    assert not of(lint(table), "bold")
    wrong = table.replace("**70.0**", "70.0").replace("| 60.0 |\n", "| **60.0** |\n", 1)
    assert of(lint(wrong), "bold") == [("error", 4)]


@pytest.mark.parametrize(
    ("sizes", "average", "expected"),
    [
        ("n | 100 | 300", "57.5", []),
        ("n | 100 | 300", "55.0", []),
        ("n | 100 | 300", "59.0", ["Weighted by the sizes shown it is 57.50."]),
    ],
)
def test_sizes_that_are_shown_may_weigh(sizes: str, average: str, expected: list[str]) -> None:
    table = rows(
        f"{sizes} | ", f"x | 50.0 | 60.0 | {average}", "y | 10.0 | 20.0 | 15.0",
        heads="Model | A | B | Avg",
    )  # fmt: skip
    messages = [each.message for each in lint(table).findings if each.code == "average"]
    assert [message.partition("which is 55.00. ")[2] for message in messages] == expected


def test_a_weighted_average_lies_between_its_cells() -> None:
    heads = "Model | A | B | Micro Avg"
    table = rows("x | 50.0 | 60.0 | 58.1", "y | 50.0 | 60.0 | 60.9", heads=heads)
    found = only(lint(table), "average")
    assert (found.level, found.line) == ("error", 4)
    assert "outside the range of its cells, 50 to 60" in found.message


def test_rows_with_missing_tasks_are_not_averaged_beside_full_ones() -> None:
    found = only(
        lint(rows("x | 50.0 | 60.0 | 70.0 | 60.0", "y | 50.0 | – | 72.0 | 61.0")), "task-set"
    )
    assert (found.level, found.line) == ("warning", 4)
    assert "over 2 of 3 tasks (without 'B')" in found.message
    # All rows without it: the column is empty for everybody, and nothing is mixed.
    assert not of(lint(rows("x | 50 | – | 70 | 60", "y | 50 | – | 72 | 61")), "task-set")


MARKS = "Model | A | Perplexity | Latency ↓ | Quux"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("x | **2.5** | 9 | 9 | 1", "y | 1.5 | **3** | **4** | 1", "z | 2.0 | 5 | 6 | 1"), []),
        (("x | 2.5 | 9 | 9 | 1", "y | **2.4** | 3 | 4 | 1", "z | 2.0 | 5 | 6 | 1"),
         [("error", 4)]),
        (("x | 2.5 | **9** | 9 | 1", "y | 1 | 3 | 4 | 1", "z | 2.0 | 5 | 6 | 1"),
         [("error", 3)]),
        # Perhaps less is better, under a head that says nothing.
        (("x | 2.5 | 9 | 9 | **1**", "y | 1 | 3 | 4 | 2", "z | 2 | 5 | 6 | 3"), [("warning", 3)]),
        (("x | 2.5 | 9 | **6** | 1", "y | 1 | 3 | 4 | 1", "z | 2.0 | 5 | 7 | 1"), [("error", 3)]),
        # A tie: both may be bold; one alone is a hint.
        (("x | **2.5** | 9 | 9 | 1", "y | **2.5** | 3 | 4 | 1"), []),
        (("x | **2.5** | 9 | 9 | 1", "y | 2.5 | 3 | 4 | 1"), [("hint", 4)]),
        # The card's own model, bold throughout.
        (("**x** | **2.5** | **9** | **9** | **1**", "y | 1 | 3 | 4 | 0"), [("warning", 3)]),
        # Each group its own best.
        (("x | **2.5** | 1 | 1 | 1", "y | 2.4 | 1 | 1 | 1", " | | | | ",
          "z | **9.5** | 1 | 1 | 1", "w | 9.4 | 1 | 1 | 1"), []),
        (("x | **2.5** | 1 | 1 | 1", "y | 2.6 | 1 | 1 | 1", " | | | | ",
          "z | **9.5** | 1 | 1 | 1", "w | 9.4 | 1 | 1 | 1"), [("error", 3)]),
    ],
)  # fmt: skip
def test_bold(lines: tuple[str, ...], expected: list[tuple[str, int]]) -> None:
    report = lint(rows(*lines, heads=MARKS))
    assert of(report, "bold") == expected


def test_a_caption_may_say_that_less_is_better() -> None:
    lines = ("x | **2.5** | 0.3", "y | 3.5 | **0.2**", "z | 4.5 | 0.4")
    table = rows(*lines, heads="Model | Airfoil | Abalone")
    assert of(lint(table), "bold") == [("warning", 3), ("warning", 4)]
    assert of(lint(f"Table 1: MAE of three runs.\n\n{table}"), "bold") == []
    neither = table.replace("3.5", "**3.5**").replace("**2.5**", "2.5")
    assert of(lint(f"Table 1: MAE of three runs.\n\n{neither}"), "bold") == [("error", 6)]


def test_bold_that_marks_pairs_is_said_once() -> None:
    # Each model beside itself with retrieval: the better of the two is bold.
    lines = (
        "GPT-5 | 65.2 | 91.3 | 80.9", "GPT-5 + RAG | 64.8 | **91.6** | **80.8**",
        "Gemma | **40.8** | **44.1** | **45.6**", "Gemma + RAG | 38.2 | 41.8 | 43.4",
    )  # fmt: skip
    found = only(lint(rows(*lines, heads="Model | AfriMedQA | MedQA | MedMCQA")), "bold")
    assert (found.level, found.line) == ("warning", 5)
    assert found.message.startswith("2 of 3 columns have several different bold values")


def test_differences_are_no_model() -> None:
    table = rows(
        "arc_easy | 56.6 | **62.4** | +5.8", "WikiPPL | 26.2 | **22.4** | -3.8",
        heads="Task | base | ours | Δ",
    )  # fmt: skip
    assert lint(table).findings == ()


def test_a_setting_before_the_tasks_is_not_averaged() -> None:
    lines = ("a | 0.75 | 27.2 | 30.4 | 28.8", "b | 0.34 | 24.9 | 27.1 | 26.0")
    more = (*lines, "c | 0.75 | 26.9 | 30.3 | 28.6")
    heads = "run | τ | hellaswag | arc_easy | avg"
    assert of(lint(rows(*more, heads=heads)), "average") == []
    # Two rows are too few to leave a column out: they would explain too much.
    assert of(lint(rows(*lines, heads=heads)), "average") == [("error", 3), ("error", 4)]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("x | **9** | 1", "y | <u>8</u> | 2", "z | 7 | <u>3</u>"), []),
        (("x | **9** | 1", "y | 8 | 2", "z | <u>7</u> | 3"), [("error", 5)]),
        (("x | **9** | 1", "y | 8 | 2", "z | __7__ | 3"), [("error", 5)]),
        (("x | **9** | 1", "y | <u>9</u> | 2", "z | 7 | 3"), []),
        (("x | <u>9</u> | 1", "y | 8 | 2", "z | 7 | 3"), [("error", 3)]),
        (("x | **9** | 1", "y | <u>8</u> | 2", "z | <u>8</u> | 3"), []),
    ],
)
def test_underlines(lines: tuple[str, ...], expected: list[tuple[str, int]]) -> None:
    # The second column's own second is its smallest: perplexity.
    report = lint(rows(*lines, heads="Model | A | PPL").replace("<u>3</u>", "3"))
    assert of(report, "underline") == expected


def test_the_second_of_a_column_where_less_is_better() -> None:
    lines = ("x | 1 | **3.0**", "y | 2 | 3.1", "z | 3 | <u>3.2</u>")
    found = only(lint(rows(*lines, heads="Model | A | PPL")), "underline")
    assert (found.line, found.message) == (
        5, "z: underlined 3.2 under 'PPL' is not the second; y has 3.1.",
    )  # fmt: skip


def test_values_that_cannot_be() -> None:
    heads = "Model | Accuracy | Elo | Δ Accuracy | MMLU (5-shot)"
    report = lint(rows("x | 101.5 | 1250 | -2.0 | 70.0", "y | 71.5 | 1100 | 1.0 | -3", heads=heads))
    assert of(report, "impossible") == [("error", 3), ("error", 4)]


def test_scales_that_are_mixed() -> None:
    report = lint(rows("x | 0.745", "y | 71.5", "z | 69.0", heads="Model | MMLU"))
    assert (only(report, "scale").level, only(report, "scale").line) == ("warning", 3)


@pytest.mark.parametrize(
    ("second", "what"),
    [
        ("x | 50.0 | 60.0 | 70.0 | 60.0", "the same row"),
        ("x | 51.0 | 60.0 | 70.0 | 60.3", "other values for this row"),
        ("y | 50.0 | 60.0 | 70.0 | 60.0", "the same 3 scores"),
    ],
)
def test_rows_that_come_twice(second: str, what: str) -> None:
    found = only(lint(rows("x | 50.0 | 60.0 | 70.0 | 60.0", second)), "duplicate")
    assert (found.level, found.line) == ("warning", 4)
    assert found.message.endswith(f"at line 3 has {what}.")


def test_rows_longer_than_their_head() -> None:
    found = only(lint(rows("x | 50.0 | 60.0 | 70.0 | 60.0 | 9")), "shape")
    assert (found.level, found.line) == ("warning", 3)
    assert "has 6 cells, its head 5" in found.message


CLAIM = "Our model significantly outperforms all others.\n\n"


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (CLAIM + rows("x | 50.0", heads="Model | MMLU"), [("warning", 1)]),
        (CLAIM + rows("x | 50.0 ± 1.2", heads="Model | MMLU"), []),
        (CLAIM + rows("x | 50.0 (95% CI 48–52)", heads="Model | MMLU"), []),
        (CLAIM + "Exact McNemar test, p < 0.01.\n\n" + rows("x | 5", heads="Model | MMLU"), []),
        # A test in another section is not this claim's.
        (CLAIM + "# Methods\np < 0.01\n" + rows("x | 5", heads="Model | MMLU"), [("warning", 1)]),
        ("State-of-the-art.\n\n" + rows("x | 5", heads="Model | MMLU"), [("warning", 1)]),
        (CLAIM, []),
        ("A significant number of tokens.\n\n" + rows("x | 5", heads="Model | MMLU"), []),
    ],
)
def test_claims(card: str, expected: list[tuple[str, int]]) -> None:
    assert of(lint(card), "claim") == expected


@example([[0, 0, 1], [0, 0, 0]], 0, 6)
@given(st.lists(st.lists(st.integers(0, 10_000), min_size=3, max_size=3), min_size=2, max_size=6),
       st.integers(0, 5), st.integers(6, 90))  # fmt: skip
def test_a_mean_that_is_right_is_never_wrong_and_one_that_is_wrong_is(
    scores: list[list[int]], at: int, off: int
) -> None:
    def line(number: int, row: list[int], shift: float) -> str:
        cells = " | ".join(f"{score / 100:.2f}" for score in row)
        return f"m{number} | {cells} | {sum(row) / 300 + shift:.1f}"

    right = [line(number, row, 0.0) for number, row in enumerate(scores)]
    assert of(lint(rows(*right)), "average") == []
    at %= len(scores)
    changed = line(at, scores[at], off / 10)
    wrong = [*right[:at], changed, *right[at + 1 :]]
    # The mean of tiny scores may have been printed in percent: half a unit of 0.01, times 100, and
    # half a unit of 0.1.
    printed = float(changed.rpartition("| ")[2])
    is_percent = abs(sum(scores[at]) / 3 - printed) <= 0.55
    expected = [] if is_percent else [("error", at + 3)]
    assert of(lint(rows(*wrong)), "average") == expected


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = tmp_path / "README.md"
    card.write_text(OPENBIOLLM_7B)
    assert run(["lint", str(card)]) == 1
    shown = capsys.readouterr().out
    assert "4  error  average   GPT-3.5 Turbo 1106: the average 66.0 is not the mean" in shown
    assert shown.endswith("1 table, 1 with scores: 2 errors, 0 warnings, 2 hints.\n")
    assert run(["lint", str(card), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert (content["num_errors"], content["num_tables"]) == (2, 1)
    card.write_text(BIOMISTRAL)
    assert run(["lint", str(card)]) == 0
    capsys.readouterr()
    card.write_text("Nothing.")
    assert run(["lint", str(card)]) == 0
    assert "has no tables" in capsys.readouterr().out
    assert run(["lint", str(tmp_path / "none.md")]) == 2
    assert "cannot be read: No such file or directory." in capsys.readouterr().err

"""The folder of a report: whole or not there, and never over anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forge.cli.app import run
from forge.core.errors import OutputError, ResultsError
from forge.report import folder
from forge.report.comparison import Comparison
from forge.report.folder import MARKER, check_place, write_folder, write_report
from tests.report import results_factory as world

Capture = pytest.CaptureFixture[str]
TEXTS = ("md", "tex", "csv", "json")


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_a_report_has_what_was_asked_for(planted: Path, tmp_path: Path) -> None:
    out = tmp_path / "reports" / "mine"
    written = write_report(out, results=planted, formats=["html", "md", "svg"])
    found = contents(out)
    assert tuple(name for name in found if name != MARKER) == written.files
    assert {"index.html", "report.md", "charts/pareto.svg"} <= set(found)
    assert "report.json" not in found
    assert "recipes/source_7b-awq.yaml" in found
    assert b"source_7b-awq" in found["index.html"]
    assert [path.name for path in out.parent.iterdir()] == ["mine"]
    assert out.stat().st_mode & 0o777 == 0o755


def test_the_same_results_give_the_same_bytes(planted: Path, tmp_path: Path) -> None:
    formats = [*TEXTS, "html", "svg"]
    write_report(tmp_path / "a", results=planted, formats=formats)
    write_report(tmp_path / "b", results=planted, formats=formats)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_report_is_replaced_as_a_whole(comparison: Comparison, tmp_path: Path) -> None:
    out = tmp_path / "report"
    write_folder(comparison, out, formats=TEXTS)
    write_folder(comparison, out, formats=["md"])
    assert "report.tex" not in contents(out)
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_report_that_fails_leaves_the_old_one(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report"
    write_folder(comparison, out, formats=["md"])
    before = contents(out)

    def stop(_: Comparison) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "render_json", stop)
    with pytest.raises(KeyboardInterrupt):
        write_folder(comparison, out, formats=TEXTS)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_folder_of_something_else_is_left(comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"is no report of forge's \(it has no .forge-report\)"):
        write_folder(comparison, tmp_path, formats=["md"])
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_a_note_in_a_report_is_not_lost(comparison: Comparison, tmp_path: Path) -> None:
    out = tmp_path / "report"
    write_folder(comparison, out, formats=["md"])
    (out / "tables").mkdir()
    (out / "tables" / "mine.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"holds what no report put there: tables/mine\.csv"):
        write_folder(comparison, out, formats=["md"])


@pytest.mark.parametrize("marker", ["", "[]", "{}", '{"schema": "other"}', "{" * 5000])
def test_a_marker_of_another_kind_marks_nothing(tmp_path: Path, marker: str) -> None:
    (tmp_path / MARKER).write_text(marker)
    with pytest.raises(OutputError, match="is no report of forge's"):
        check_place(tmp_path)


def test_a_file_or_a_link_in_the_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(OutputError, match="exists and is not a folder"):
            check_place(tmp_path / name)


def test_an_empty_folder_is_taken(comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    write_folder(comparison, tmp_path / "report", formats=["md"])
    assert (tmp_path / "report" / "report.md").is_file()


def test_png_is_left_out_with_a_notice_where_nobody_asked(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder.importlib.util, "find_spec", lambda name: None)
    written = write_report(tmp_path / "report", results=planted)
    assert not [name for name in written.files if name.endswith(".png")]
    assert written.notices[0].startswith("PNG files are left out")


def test_an_unknown_format(planted: Path, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"There is no report format 'htm'\. Did you mean"):
        write_report(tmp_path / "report", results=planted, formats=["htm"])


def test_the_command_prints_verdicts_and_writes(
    planted: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "report"
    code = run(
        ["report", "--results", str(planted), "--out", str(out), "--margin", "2",
         "--formats", "html,csv", "--models", f"{world.SOURCE}, {world.SAME}"]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 0
    assert printed.startswith("Release source_7b-awq: the smallest that is not worse than")
    assert "source_7b-awq: Not worse than source_7b by more than 2.0 points" in printed
    assert printed.endswith(f"{out}/index.html\n")
    assert (out / "tables" / "models.csv").is_file()


def test_the_command_prints_json(planted: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "report"
    assert run(["report", "--results", str(planted), "--out", str(out), "--formats", "md",
                "--margin", "2", "--json"]) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["recommended"] == world.MERGE
    assert {each["model"]: each["verdict"] for each in found["verdicts"]}[world.WORSE] == "worse"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--results", "none.db"], "There is no results file 'none.db'."),
        (["--baseline", "sorce_7b"], "Did you mean 'source_7b'?"),
        (["--margin", "0"], "A margin of 0 points is out of range"),
        (["--formats", "svgs"], "There is no report format 'svgs'. Did you mean 'svg'?"),
        (["--out", "/"], "is no name for a report"),
        (["--formats", "md", "--open"], "--open needs the page"),
    ],
)
def test_wrong_inputs_give_one_message(
    planted: Path, tmp_path: Path, capsys: Capture, options: list[str], message: str
) -> None:
    common = ["report", "--results", str(planted), "--out", str(tmp_path / "report")]
    assert run([*common, *options]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out
    assert not (tmp_path / "report").exists()

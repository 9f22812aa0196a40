"""Files of strangers are read within limits, and what is wrong with them is said by line."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from forge.core.errors import EvaluationError
from forge.evaluate import rows
from forge.evaluate.rows import read_rows

VALUES = [{"a": 1}, {"a": 2}, {"a": [None, "ü"]}]


def _written(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def _refusal(path: Path, *, member: str | None = None) -> str:
    with pytest.raises(EvaluationError) as caught:
        read_rows(path, member=member)
    return str(caught.value).replace(str(path), "FILE")


def test_every_format_holds_the_same_rows(tmp_path: Path) -> None:
    lines = "".join(json.dumps(value) + "\r\n" for value in VALUES)
    found = read_rows(_written(tmp_path, "a.jsonl", "\ufeff" + lines + "\n"))
    assert [row.values for row in found] == VALUES
    assert [row.place for row in found] == ["line 1", "line 2", "line 3"]
    found = read_rows(_written(tmp_path, "a.json", json.dumps(VALUES)))
    assert [row.values for row in found] == VALUES
    assert found[2].place == "record 3"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("data/inner/a.jsonl", lines)
        archive.writestr("data/inner/b.json", json.dumps(VALUES))
    assert [row.values for row in read_rows(tmp_path / "a.zip", member="inner/a.jsonl")] == VALUES
    found = read_rows(tmp_path / "a.zip", member="data/inner/b.json")
    assert [row.values for row in found] == VALUES


def test_parquet_rows_are_plain_values(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    values = [
        {"question": "q", "choices": ["a", "b"], "context": {"contexts": ["x"]}, "answer": 1},
        {"question": "r", "choices": ["c", "d"], "context": {"contexts": []}, "answer": 0},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(values), tmp_path / "a.parquet")
    found = read_rows(tmp_path / "a.parquet")
    assert [row.values for row in found] == values
    assert found[1].place == "row 2"
    assert "'FILE' cannot be read as Parquet" in _refusal(_written(tmp_path, "b.parquet", "no"))


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = _written(tmp_path, "a.jsonl", '{"a": 1}\n')
    assert read_rows(path)[0].values == {"a": 1}
    path.write_text('{"a": 22}\n')
    assert read_rows(path)[0].values == {"a": 22}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", "", "'FILE' is empty."),
        ("a.jsonl", "\n \n", "'FILE' is empty."),
        ("a.json", "[]", "'FILE' is empty."),
        ("a.jsonl", '{"a": 1}\nnonsense\n',
         "'FILE' line 2 is not JSON; each line is one record in braces."),
        ("a.jsonl", b'{"a": "\xff"}\n',
         "'FILE' line 1 is not JSON; each line is one record in braces."),
        ("a.jsonl", '[1]\n{"a": 1}\n"x"\n',
         "'FILE' has 2 problems:\n  line 1 is no record in braces.\n"
         "  line 3 is no record in braces."),
        ("a.jsonl", "[" * 100_000,
         "'FILE' line 1 is not JSON; each line is one record in braces."),
        ("a.json", '{"a": 1}', "'FILE' must be a list of records."),
        ("a.json", "[1]", "'FILE' must be a list of records."),
    ],
)  # fmt: skip
def test_what_is_no_record_is_said_with_its_line(
    name: str, data: bytes | str, message: str, tmp_path: Path
) -> None:
    assert _refusal(_written(tmp_path, name, data)) == message


def test_many_problems_are_counted(tmp_path: Path) -> None:
    message = _refusal(_written(tmp_path, "a.jsonl", "x\n" * 20))
    assert message.startswith("'FILE' has 20 problems:\n  line 1 is not JSON")
    assert message.endswith("\n  and 12 more")
    assert len(message.splitlines()) == 10


def test_sizes_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 1 << 20)
    line = json.dumps({"a": "x" * (1 << 20)})
    path = _written(tmp_path, "a.jsonl", f'{{"a": 1}}\n{line}\n')
    assert _refusal(path) == "'FILE' line 2 is longer than 1 MiB."
    monkeypatch.setattr(rows, "MAX_FILE_BYTES", 1 << 20)
    assert _refusal(path) == "'FILE' is larger than 1 MiB."


def test_an_archive_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", b" " * (2 << 20))
    monkeypatch.setattr(rows, "MAX_FILE_BYTES", 1 << 20)
    assert _refusal(path, member="a.jsonl") == "'FILE' has a 'a.jsonl' larger than 1 MiB."


def test_an_archive_must_hold_the_file_once(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/a.jsonl", "{}")
        archive.writestr("y/a.jsonl", "{}")
    assert _refusal(path, member="a.jsonl") == "'FILE' has 2 files 'a.jsonl'; it must have one."
    assert _refusal(path, member="b.jsonl") == "'FILE' has 0 files 'b.jsonl'; it must have one."
    assert "is no zip file" in _refusal(_written(tmp_path, "b.zip", "no"), member="a.jsonl")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    assert _refusal(tmp_path / "no.jsonl") == "'FILE' cannot be read: No such file or directory."

"""``forge verify`` of a quantized checkpoint: the table, the exit codes, and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forge import api
from forge.cli.app import run
from tests.factory import tiny_checkpoint
from tests.verify.quantized_outputs import edit_array, quantize, rewrite

Capture = pytest.CaptureFixture[str]
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint(Path("source"), hidden=64)
    quantize(Path("source"), Path("out"), "awq-gemm")
    return tmp_path


def test_the_checks_are_a_table(place: Path, capsys: Capture) -> None:
    assert run(["verify", "out", "--against", "source", "--quick", "--quiet"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("out is what its manifest says: ")
    rows = [line.split("  ") for line in text.splitlines() if line[:1] in "12345"]
    states = [[cell.strip() for cell in row if cell][1] for row in rows if row[0]]
    assert states == ["passed", "passed", "passed", "skipped", "skipped"]
    assert "left out by --quick" in text
    assert "WORST LAYERS" in text


def test_a_fault_is_named_and_exits_with_1(place: Path, capsys: Capture) -> None:
    def zero(tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
        edit_array(tensors, f"{UP}.scales", lambda scales: scales * (scales != scales[1, 3]))

    rewrite(place / "out", zero)
    assert run(["verify", "out", "--against", "source", "--quiet"]) == 1
    captured = capsys.readouterr()
    assert f"'{UP}' has 1 of 256 groups that differ" in captured.out
    assert "left out, because what would be loaded is wrong" in captured.out
    assert captured.err == "error: out: 1 fault.\n"


def test_the_report_as_json(place: Path, capsys: Capture) -> None:
    assert run(["verify", "out", "--against", "source", "--quick", "--quiet", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["ok"] is True
    assert record["quantized"]["format"] == "awq-gemm"
    assert [check["state"] for check in record["quantized"]["checks"]][:3] == ["passed"] * 3
    assert len(record["quantized"]["worst_layers"]) == 5


def test_an_inspection_says_how_it_was_quantized(place: Path, capsys: Capture) -> None:
    shape = api.plan_quantize(
        api.load_quantize_recipe(options={"model": "source", "method": "bnb", "type": ["nf4"]})
    )
    api.quantize(
        api.load_quantize_recipe(options={"model": "source", "method": "bnb", "type": ["nf4"]}),
        place / "nf4", verification="quick",
    )  # fmt: skip
    assert run(["inspect", "nf4"]) == 0
    text = capsys.readouterr().out
    assert "Quantized by bnb to bnb-nf4, forge" in text
    assert f"layers      {len(shape.linears)} linear layers" in text
    assert "error       skipped" not in text
    assert "layout      passed" in text
    assert "load        skipped: left out by --quick" in text
    assert "Merged by" not in text
    assert run(["inspect", "nf4", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["quantize"]["variant"]["format"] == "bnb-nf4"
    assert record["num_parameters"] == shape.num_parameters


def test_a_source_that_is_not_there_exits_with_2(place: Path, capsys: Capture) -> None:
    assert run(["verify", "out", "--against", "./nothing", "--quiet"]) == 2
    assert "nothing" in capsys.readouterr().err

"""``forge lora extract``: what it prints, where it writes, and that it says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forge.cli.app import run
from tests.factory import tiny_checkpoint

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_checkpoint(tmp_path / "base", vocab=40)
    tiny_checkpoint(tmp_path / "tuned", vocab=40, tune=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def _extract(*arguments: str) -> int:
    return run(["lora", "extract", "tuned", "--base", "base", *arguments])


def test_prints_a_row_for_each_kind(capsys: Capture) -> None:
    assert _extract("--rank", "4", "--no-divergence", "-q") == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["model.layers.*.mlp.up_proj.weight", "2", "factors", "4"] in [row[:4] for row in lines]
    assert "adapters/tuned-r4" in out
    assert "of the energy; 33 tensors" in out
    assert "KL" not in out
    assert Path("adapters/tuned-r4/adapter_model.safetensors").is_file()


def test_lists_every_tensor_when_asked(capsys: Capture) -> None:
    assert _extract("--energy", "0.5", "--tensors", "--no-divergence", "-q") == 0
    out = capsys.readouterr().out
    assert "model.layers.1.self_attn.k_proj.weight" in out
    assert Path("adapters/tuned-e0.5").is_dir()


def test_json(capsys: Capture) -> None:
    assert _extract("--rank", "2", "--json", "--no-divergence", "--out", "here", "-q") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["out"] == "here"
    assert 0 < record["kept"] < 1
    assert record["divergence"] is None
    assert {row["fate"] for row in record["tensors"]} == {"factors", "whole", "lost"}
    assert record["notices"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give a rank"),
        (("--rank", "0"), "rank of 0"),
        (("--rank", "900"), "beyond every matrix"),
        (("--energy", "nan"), "not nan"),
        (("--rank", "2", "--dtype", "int4"), "not int4"),
    ],
)
def test_wrong_options_are_one_error(
    capsys: Capture, arguments: tuple[str, ...], message: str
) -> None:
    assert _extract(*arguments, "--no-divergence", "-q") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert "Traceback" not in said
    assert not Path("adapters").exists()


def test_the_divergence_is_printed_and_recorded(capsys: Capture) -> None:
    pytest.importorskip("transformers")
    text = Path("text.txt")
    text.write_text("aspirin treats pain and fever in adults but not in children " * 20)
    assert _extract("--rank", "16", "--embeddings", "full", "--text", "text.txt", "-q") == 0
    assert "KL from the fine-tune 0.0000" in capsys.readouterr().out
    manifest = json.loads(Path("adapters/tuned-r16/forge_manifest.json").read_text())
    found = manifest["divergence"]
    assert found["text"] == "text.txt"
    assert 0 <= found["mean"] < 1e-4
    assert run(["divergence", "base", "--against", "tuned", "--text", "text.txt", "--json"]) == 0
    without = json.loads(capsys.readouterr().out)["figures"]["mean"]
    assert without > 10 * found["mean"]
    assert run(["verify", "adapters/tuned-r16", "-q"]) == 0


def test_what_cannot_be_measured_is_said(capsys: Capture) -> None:
    pytest.importorskip("transformers")
    for name in ("base", "tuned"):
        for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            Path(name, file).unlink()
    assert _extract("--rank", "4") == 0
    assert "divergence was not measured" in capsys.readouterr().err
    manifest = json.loads(Path("adapters/tuned-r4/forge_manifest.json").read_text())
    assert "tokenizer" in manifest["divergence"]["skipped"]

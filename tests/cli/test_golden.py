"""Help texts, error messages and reports, word by word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forge.cli.app import run
from tests.cli.golden import check_golden
from tests.factory import tiny_checkpoint
from tests.verify.published import describe, write_manifest

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _fixed_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


VERBS = [
    "", "merge", "moe", "check", "methods", "calibrate", "quantize", "convert", "lora",
    "lora extract", "generate", "profile", "eval", "divergence", "report", "lint", "results",
    "inspect", "verify", "diff",
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str, capsys: Capture) -> None:
    assert run([*verb.split(), "--help"]) == 0
    check_golden(f"help_{verb.replace(' ', '_') or 'forge'}", capsys.readouterr().out)


@pytest.mark.parametrize("method", ["", "dare_ties", "karcher", "arcee_fusion"])
def test_methods(method: str, capsys: Capture) -> None:
    assert run(["methods", *method.split()]) == 0
    check_golden(f"methods_{method or 'all'}", capsys.readouterr().out)


BROKEN = """\
merge_method: dare_tise
base_model: base
models:
  - model: a
    parameters: {weight: 0.5, density: 7}
sed: 3
"""


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("broken_recipe", ["check", "broken.yaml"]),
        ("wrong_size", ["merge", "dare.yaml", "--max-shard-size", "big"]),
        ("no_folder", ["inspect", "nothing"]),
        ("no_manifest", ["verify", "base"]),
        ("no_weights", ["inspect", "empty"]),
        ("wrong_seed", ["merge", "dare.yaml", "--seed", "-1"]),
        ("wrong_threads", ["merge", "dare.yaml", "--threads", "0"]),
        ("wrong_engine", ["merge", "dare.yaml", "--engine", "mergkit"]),
        ("output_exists", ["merge", "dare.yaml", "--out", "empty/..", "--quiet"]),
        ("foreign_output", ["merge", "dare.yaml", "--out", "base", "--overwrite", "--quiet"]),
    ],
)
def test_errors(name: str, arguments: list[str], workplace: Path, capsys: Capture) -> None:
    (workplace / "broken.yaml").write_text(BROKEN)
    (workplace / "empty").mkdir()
    before = sorted(path.as_posix() for path in workplace.rglob("*"))
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sorted(path.as_posix() for path in workplace.rglob("*")) == before
    check_golden(f"error_{name}", captured.err)


def fine_tune(folder: Path) -> None:
    """Write a checkpoint whose manifest has statistics that differ by layer."""
    tiny_checkpoint(folder, layers=4, fill=lambda name, shape: 0.5)
    manifest = describe(folder)
    tensors = manifest["tensors"]
    assert isinstance(tensors, dict)
    for name, record in tensors.items():
        layer = next((int(part) for part in name.split(".") if part.isdigit()), 0)
        record["norms"] = [1.0 + layer, 2.0]
        record["cosines"] = [0.25 * layer]
        record["conflict_share"] = 0.1 * layer
    write_manifest(folder, manifest)


def test_inspect_a_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    fine_tune(Path("merged"))
    assert run(["inspect", "merged"]) == 0
    check_golden("inspect_merged", capsys.readouterr().out)
    assert run(["inspect", "merged", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["merge"]["models"] == ["a", "b"]


def test_inspect_a_plain_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint(Path("plain"), layers=2)
    assert run(["inspect", "plain", "--layers"]) == 0
    check_golden("inspect_plain_layers", capsys.readouterr().out)


def test_diff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint(Path("a"), fill=lambda name, shape: 1.0)
    tiny_checkpoint(
        Path("b"),
        fill=lambda name, shape: 3.0 if "layers.1.mlp" in name else 1.0,
        config_overrides={"rope_theta": 5e5},
        chat_template=None,
    )
    assert run(["diff", "a", "b", "--top", "2", "--quiet"]) == 0
    check_golden("diff", capsys.readouterr().out)


def test_verify_names_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    fine_tune(Path("merged"))
    assert run(["verify", "merged", "--quiet"]) == 0
    check_golden("verify_ok", capsys.readouterr().out)
    Path("merged/generation_config.json").unlink()
    Path("merged/notes.txt").write_text("x")
    assert run(["verify", "merged", "--quiet"]) == 1
    captured = capsys.readouterr()
    check_golden("verify_differs", captured.out + captured.err)
    assert run(["verify", "merged", "--quiet", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False

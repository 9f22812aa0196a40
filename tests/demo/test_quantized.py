"""The demonstration's quantized formats: recipes, and a table of what manifests record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demo import quantized, run
from demo.base_model import DemoError
from forge import api

PASSED = [{"check": name, "state": "passed", "summary": ""} for name in ("load", "divergence")]


def write_manifest(folder: Path, *, kl: float, rtn: float | None, checks: object = PASSED) -> Path:
    folder.mkdir(parents=True)
    record = {
        "checks": checks,
        "consumer": "a program",
        "divergence": {
            "mean": kl, "same_top_share": 0.75, "perplexity_ratio": 1.25, "num_positions": 4080,
        },
        "rtn_divergence": None if rtn is None else {"mean": rtn},
    }  # fmt: skip
    files = {
        "a.safetensors": {"bytes": 30_000_000},
        "b.safetensors": {"bytes": 20_000_000},
        "config.json": {"bytes": 900},
    }
    manifest = {"verification": record, "files": files}
    (folder / "forge_manifest.json").write_text(json.dumps(manifest))
    return folder


def test_the_recipes_make_five_formats_of_the_dare_merge() -> None:
    formats = []
    for name in quantized.RECIPES:
        recipe = api.load_quantize_recipe(run.ROOT / "quant_configs" / f"{name}.yaml")
        assert recipe.model is not None
        assert recipe.model.path == f"{run.OUTPUT}/SmolLM2-135M-dare"
        formats += [
            (variant.format, variant.bits, variant.group_size) for variant in recipe.variants
        ]
    assert [name for name, _, _ in formats] == [
        "awq-gemm", "awq-gemv", "bnb-nf4", "bnb-fp4", "bnb-int8",
    ]  # fmt: skip
    assert {size for name, _, size in formats if name.startswith("awq")} == {64}
    assert "dare" in run.METHODS


def test_the_table_holds_what_the_manifests_record(tmp_path: Path) -> None:
    rows = [
        quantized.read_variant(write_manifest(tmp_path / "awq-gemm", kl=0.125, rtn=0.5)),
        quantized.read_variant(write_manifest(tmp_path / "bnb-nf4", kl=0.25, rtn=None)),
    ]
    replies = {str(row.folder): f"I am {row.folder.name}." for row in rows}
    lines = quantized.summary(rows, 100_000_000, replies).splitlines()
    table = [line.split() for line in lines if line.startswith(("bf16", "awq-gemm ", "bnb-nf4 "))]
    figures = ["50.0", "MB", "50%"]
    assert table == [
        ["bf16", "100.0", "MB", "100%", "0.0000", "100.0%", "×", "1.000"],
        ["awq-gemm", *figures, "0.1250", "75.0%", "×", "1.250", "a", "program"],
        ["bnb-nf4", *figures, "0.2500", "75.0%", "×", "1.250", "a", "program"],
    ]
    text = " ".join(" ".join(lines).split())
    assert "over 4,080 tokens" in text
    assert "rounding to nearest with AWQ's bits and groups has 0.5000" in text
    assert lines[-2:] == ["bnb-nf4:", "    I am bnb-nf4."]


def test_a_check_that_was_left_out_ends_the_demonstration(tmp_path: Path) -> None:
    checks = [PASSED[0], {"check": "divergence", "state": "skipped", "summary": "no memory"}]
    folder = write_manifest(tmp_path / "x", kl=0.1, rtn=0.2, checks=checks)
    with pytest.raises(DemoError, match="is not proved: divergence: no memory"):
        quantized.read_variant(folder)


def test_variants_that_do_not_load_end_the_demonstration(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="could not be run"):
        quantized.replies_in_fresh_process([tmp_path / "nothing"])

"""Whole merges by the methods that know how deep a layer stands or what singular vectors it has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from forge import api
from forge.merge.catalog import METHODS
from forge.recipes.merge_recipe import parse_merge_recipe
from tests.factory import read_values, tiny_checkpoint
from tests.reference import methods as reference

LAYERS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("strategies")
    for number, name in enumerate(("base", "med", "chat")):
        tiny_checkpoint(root / name, tune=number or None, dtype="F32", layers=LAYERS)
    return root


def recipe(folder: Path, method: str, *, weight: float = 1.0, **parameters: object) -> dict:  # type: ignore[type-arg]
    return {
        "merge_method": method,
        "base_model": str(folder / "base"),
        "models": [
            {"model": str(folder / "med"), "parameters": {"weight": weight}},
            {"model": str(folder / "chat"), "parameters": {"weight": weight}},
        ],
        "parameters": parameters,
    }


def merged(folder: Path, out: Path, value: Mapping[str, object], **options: int) -> dict:  # type: ignore[type-arg]
    api.merge(parse_merge_recipe(value, METHODS), out, **options)
    return read_values(out)


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "iso_cts"])
def test_spectral_merges_equal_the_reference_whatever_the_threads(
    folder: Path, tmp_path: Path, method: str
) -> None:
    values = merged(folder, tmp_path / "a", recipe(folder, method), threads=1)
    again = merged(folder, tmp_path / "b", recipe(folder, method), threads=3)
    models = [read_values(folder / name) for name in ("base", "med", "chat")]
    for name, value in values.items():
        base, *tunes = (model[name].astype(np.float64) for model in models)
        if value.ndim == 2 and ".layers." in name:
            expected = getattr(reference, method)(base, tunes, weights=[1, 1])
        else:
            expected = base + np.mean([tune - base for tune in tunes], axis=0)
        assert np.abs(value - expected).max() <= 1e-6 * np.abs(expected).max(), name
        assert value.tobytes() == again[name].tobytes()
    manifest = json.loads((tmp_path / "a" / "forge_manifest.json").read_text())
    said = manifest["tensors"]
    assert said["model.embed_tokens.weight"]["fallback"] == "mean: outside the layers"
    assert "fallback" not in said["model.layers.1.mlp.up_proj.weight"]


def test_lines_is_task_arithmetic_with_a_ramp(folder: Path, tmp_path: Path) -> None:
    """Byte for byte; embeddings, last norm and head get what the first layer gets."""
    ramp = {"lambda": [0.25, 1.0]}
    plain = merged(folder, tmp_path / "ramp", recipe(folder, "task_arithmetic", **ramp))
    scaled = recipe(folder, "lines", alpha=0.25, beta=0.75)
    lines = merged(folder, tmp_path / "lines", scaled)
    assert lines.keys() == plain.keys()
    for name, value in lines.items():
        assert value.tobytes() == plain[name].tobytes(), name


def test_lines_by_default_goes_from_the_mean_to_the_sum(folder: Path, tmp_path: Path) -> None:
    values = merged(folder, tmp_path / "out", recipe(folder, "lines", weight=0.5))
    base, med, chat = (read_values(folder / name) for name in ("base", "med", "chat"))
    for name, layer in (
        ("model.embed_tokens.weight", None),
        ("model.layers.0.mlp.up_proj.weight", 1),
        ("model.layers.2.mlp.up_proj.weight", 3),
        ("lm_head.weight", None),
    ):
        expected = reference.lines(
            base[name].astype(np.float64),
            [med[name], chat[name]],
            weights=[0.5, 0.5],
            layer=layer,
            num_layers=LAYERS,
        )
        np.testing.assert_allclose(values[name], expected, atol=1e-7)

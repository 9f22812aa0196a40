"""A calibrated quantization resumes block by block, on the tokens that it began with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from forge.checkpoints.progress import Silence
from forge.quantize import calibrated
from forge.quantize.calibration.stored import TOKENS_FILE, digest, load_tokens
from forge.quantize.run import run_quantize
from forge.recipes.quantize_types import QuantizeRecipe
from tests.quantize.models import llama_config, write_model
from tests.quantize.quantize_process import recipe_of
from tests.quantize.test_run import num_finished, tree

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

pytestmark = pytest.mark.filterwarnings("ignore")

FORMATS = ["awq-gemm", "compressed-tensors"]


class InterruptionError(Exception):
    """Stands for Ctrl-C."""


class Interrupting(Silence):
    """Interrupts when so many bytes of tensors have been written."""

    def __init__(self, after_bytes: int) -> None:
        self._left = after_bytes

    def advance(self, num_bytes: int) -> None:
        """Count, and interrupt."""
        self._left -= num_bytes
        if self._left < 0:
            raise InterruptionError


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QuantizeRecipe:
    """Return a recipe for a tiny model with stored tokens; forge's cache is a folder of its own."""
    monkeypatch.setattr(calibrated, "cache_root", lambda: tmp_path / "cache")
    model = write_model(tmp_path / "model", llama_config(layers=4), shards=2)
    tokens = np.random.default_rng(0).integers(0, 40, (4, 32))
    np.save(tmp_path / "tokens.npy", tokens.astype(np.int32))
    return recipe_of(model, "awq", FORMATS, tokens=tmp_path / "tokens.npy")


def test_an_interrupted_search_goes_on_and_ends_in_the_same_bytes(
    recipe: QuantizeRecipe, tmp_path: Path
) -> None:
    whole = run_quantize(recipe, tmp_path / "whole", threads=1)
    expected = tree(tmp_path / "whole")
    size = sum(output.output_bytes for output in whole.outputs)
    for share in (0.3, 0.7):
        out = tmp_path / f"out-{share}"
        with pytest.raises(InterruptionError):
            run_quantize(recipe, out, threads=2, progress=Interrupting(int(share * size)))
        kept = num_finished(out)
        assert 0 < kept < whole.num_tensors
        again = run_quantize(recipe, out, threads=3)
        assert again.resumed_tensors == kept
        assert tree(out) == expected


def test_tokens_lie_beside_the_output_and_are_named_in_its_manifest(
    recipe: QuantizeRecipe, tmp_path: Path
) -> None:
    result = run_quantize(recipe, tmp_path / "out")
    tokens = np.load(tmp_path / "tokens.npy").astype(np.int64)
    for output in result.outputs:
        assert np.array_equal(load_tokens(output.out / TOKENS_FILE), tokens)
        manifest = json.loads((output.out / "forge_manifest.json").read_text())
        assert manifest["calibration"]["sha256"] == digest(tokens)
        assert len(manifest["modules"]) == 4 * 7
        assert all(row["error"] > 0 for row in manifest["modules"].values())
        assert manifest["recipe"]["calibration"]["path"] == "tokens.npy"
    assert not any((tmp_path / "cache").rglob("*.npy"))


def test_an_unfinished_run_keeps_its_tokens(
    recipe: QuantizeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recipe.calibration is not None
    calls = 0

    def changing(*_: object, **__: object) -> npt.NDArray[np.int64]:
        nonlocal calls
        calls += 1
        return np.random.default_rng(calls).integers(0, 40, (4, 32))

    monkeypatch.setattr(calibrated, "calibration_tokens", changing)
    one = dataclasses.replace(recipe, variants=recipe.variants[:1])
    with pytest.raises(InterruptionError):
        run_quantize(one, tmp_path / "out", progress=Interrupting(15_000))
    again = run_quantize(one, tmp_path / "out")
    assert calls == 1
    assert again.resumed_tensors > 0
    first = np.random.default_rng(1).integers(0, 40, (4, 32))
    assert np.array_equal(load_tokens(tmp_path / "out" / TOKENS_FILE), first)
    # Another output begins anew, with tokens of its own.
    run_quantize(one, tmp_path / "other")
    assert calls == 2

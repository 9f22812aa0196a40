"""Every recipe of quant_configs really runs, on a tiny stand-in for its model, and is verified."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from forge import api
from forge.recipes.quantize_recipe import CalibrationRecipe
from forge.recipes.reference import ModelReference
from tests.factory import tiny_checkpoint

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "quant_configs").glob("*.yaml"))
METHODS = {"awq": "awq", "compressed-tensors": "compressed-tensors", "bnb": "bitsandbytes"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that groups of 128 divide, as they do those of 7B."""
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "model", hidden=128, layers=2)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_runs(path: Path, model: Path, tmp_path: Path) -> None:
    shipped = api.load_quantize_recipe(path)
    recipe = dataclasses.replace(shipped, model=ModelReference(str(model)))
    if shipped.calibration is not None:
        assert shipped.calibration.source == "self"
        recipe = dataclasses.replace(recipe, calibration=CalibrationRecipe(samples=4, tokens=64))
    plan = api.plan_quantize(recipe, out=tmp_path / "out")
    result = api.quantize(recipe, tmp_path / "out", threads=2, verification="quick")
    assert [output.format for output in result.outputs] == [
        variant.format for variant in shipped.variants
    ]
    for output, planned, variant in zip(
        result.outputs, plan.outputs, shipped.variants, strict=True
    ):
        assert output.output_bytes == pytest.approx(planned.output_bytes, rel=0.01)
        config = json.loads((output.out / "config.json").read_text())["quantization_config"]
        family = variant.format.partition("-")[0]
        assert config["quant_method"] == METHODS.get(variant.format, METHODS.get(family))
        kept = api.load_quantize_recipe(output.out / "quantize_recipe.yaml")
        assert (kept.method, kept.variants, kept.search) == (
            shipped.method, (variant,), shipped.search,
        )  # fmt: skip
        has_tokens = (output.out / "calibration_tokens.npy").is_file()
        assert has_tokens == (shipped.calibration is not None)

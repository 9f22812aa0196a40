"""Every recipe of quant_configs is right, documented, and says what was published."""

from __future__ import annotations

from pathlib import Path

import pytest

from forge.formats.catalog import FORMATS
from forge.quantize.catalog import QUANT_METHODS
from forge.recipes.quantize_recipe import (
    Choices,
    Variant,
    find_quantize_recipe,
    load_quantize_recipe,
    parse_quantize_recipe,
)
from forge.recipes.reference import ModelReference

FOLDER = Path(__file__).resolve().parents[2] / "quant_configs"
SHIPPED = sorted(FOLDER.glob("*.y*ml"))
CHOICES = Choices.of(QUANT_METHODS, FORMATS)

BIOMISTRAL = {
    "biomistral_awq_gemm": ("awq", Variant("awq-gemm", 4, 128)),
    "biomistral_awq_gemv": ("awq", Variant("awq-gemv", 4, 128)),
    "biomistral_bnb4": ("bnb", Variant("bnb-nf4", 4, 64)),
    "biomistral_bnb8": ("bnb", Variant("bnb-int8", 8, 0)),
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_loads_and_round_trips(path: Path) -> None:
    recipe = load_quantize_recipe(path, CHOICES)
    assert parse_quantize_recipe(recipe.resolved(), CHOICES) == recipe
    assert all(line.startswith("# ") for line in path.read_text().splitlines()[:2])
    # The only thing to be told is who reads a layout.
    known = {FORMATS[variant.format].notice for variant in recipe.variants}
    assert set(recipe.notices) == known - {None}


@pytest.mark.parametrize("name", BIOMISTRAL)
def test_the_rows_of_the_published_table(name: str) -> None:
    recipe = load_quantize_recipe(FOLDER / f"{name}.yaml", CHOICES)
    method, variant = BIOMISTRAL[name]
    assert recipe.model == ModelReference("BioMistral/BioMistral-7B")
    assert (recipe.method, recipe.variants) == (method, (variant,))


@pytest.mark.parametrize(
    "text",
    ["awq_both", "awq_both.yaml", "configs/awq_both.yaml", "quant_configs/awq_both.yaml"],
)
def test_found_from_anywhere(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_quantize_recipe(text).resolve() == FOLDER / "awq_both.yaml"


def test_the_package_carries_them() -> None:
    import forge

    assert (Path(forge.__file__).parent / "quant_configs").resolve() == FOLDER

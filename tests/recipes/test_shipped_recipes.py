"""Every recipe that comes with forge is right, and the published ones say what was published."""

from __future__ import annotations

from pathlib import Path

import pytest

from forge.core.dtypes import BY_TORCH_NAME
from forge.merge.catalog import METHODS
from forge.recipes.merge_recipe import load_merge_recipe, parse_merge_recipe
from forge.recipes.moe_recipe import load_moe_recipe, parse_moe_recipe
from forge.recipes.reference import ModelReference

FOLDER = Path(__file__).resolve().parents[2] / "merge_configs"
INSTRUCT = ModelReference("mistralai/Mistral-7B-Instruct-v0.1")
BIOMISTRAL = ModelReference("BioMistral/BioMistral-7B")
MIXTURES = sorted(FOLDER.glob("*_moe.yaml"))
SHIPPED = sorted(set(FOLDER.glob("*.y*ml")) - set(MIXTURES))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_loads_without_a_notice_and_round_trips(path: Path) -> None:
    recipe = load_merge_recipe(path, METHODS)
    assert recipe.notices == ()
    assert recipe.dtype in BY_TORCH_NAME
    assert parse_merge_recipe(recipe.resolved(), METHODS) == recipe
    head = path.read_text().splitlines()[:2]
    assert all(line.startswith("# ") for line in head)


@pytest.mark.parametrize("path", MIXTURES, ids=lambda path: path.stem)
def test_mixtures_load_without_a_notice_and_round_trip(path: Path) -> None:
    recipe = load_moe_recipe(path)
    assert recipe.notices == ()
    assert recipe.dtype in BY_TORCH_NAME
    assert parse_moe_recipe(recipe.resolved()) == recipe
    head = path.read_text().splitlines()[:2]
    assert all(line.startswith("# ") for line in head)


def test_the_mixture_of_biomistral() -> None:
    (path,) = MIXTURES
    recipe = load_moe_recipe(path)
    assert (recipe.base_model, recipe.gate_mode) == (INSTRUCT, "hidden")
    assert [entry.source_model for entry in recipe.experts] == [BIOMISTRAL, INSTRUCT]
    assert all(len(entry.positive_prompts) >= 4 for entry in recipe.experts)


@pytest.mark.parametrize(
    ("name", "method", "extra"),
    [
        ("biomistral_dare", "dare_ties", ("int8_mask", True)),
        ("biomistral_ties", "ties", ("normalize", True)),
    ],
)
def test_biomistral_by_task_vectors(name: str, method: str, extra: tuple[str, bool]) -> None:
    recipe = load_merge_recipe(FOLDER / f"{name}.yaml", METHODS)
    assert (recipe.merge_method, recipe.base_model, recipe.dtype) == (method, INSTRUCT, "bfloat16")
    assert [(entry.model, bool(entry.parameters)) for entry in recipe.models] == [
        (INSTRUCT, False),
        (BIOMISTRAL, True),
    ]
    for parameter in ("density", "weight"):
        assert recipe.value(parameter, tensor="x", position=0.7, model=BIOMISTRAL) == 0.5
    assert recipe.value(extra[0], tensor="x", position=0) is extra[1]


def test_biomistral_by_slerp() -> None:
    recipe = load_merge_recipe(FOLDER / "biomistral_slerp.yaml", METHODS)
    assert (recipe.merge_method, recipe.base_model) == ("slerp", INSTRUCT)
    (part,) = recipe.effective_slices({INSTRUCT: 32, BIOMISTRAL: 32})
    assert [(s.model, s.start, s.end) for s in part.sources] == [
        (INSTRUCT, 0, 32),
        (BIOMISTRAL, 0, 32),
    ]
    assert recipe.resolved()["parameters"] == {
        "t": [
            {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
            {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
            {"value": 0.5},
        ]
    }

"""mergekit, run as a black box, reads the shipped recipes and evaluates settings as we do."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from forge.merge.catalog import METHODS
from forge.recipes.document import read_documents
from forge.recipes.merge_recipe import parse_merge_recipe

FOLDER = Path(__file__).resolve().parents[2] / "merge_configs"
OWN_KEYS = ("seed", "allow_nonfinite", "max_shard_size")
TENSORS = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight", "x")

SCRIPT = """
import json, sys
from mergekit.config import MergeConfiguration, evaluate_setting
asked = json.load(sys.stdin)
for recipe in asked["recipes"]:
    MergeConfiguration.model_validate(recipe)
parsed = [
    MergeConfiguration.model_validate(
        {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": setting}}]}
    ).models[0].parameters["weight"]
    for setting in asked["settings"]
]
answers = [
    [evaluate_setting(name, setting, t, validate=lambda value: value) for setting in parsed]
    for name, t in asked["questions"]
]
print("ANSWERS" + json.dumps(answers))
"""


@pytest.mark.skipif(importlib.util.find_spec("mergekit") is None, reason="needs forge[mergekit]")
def test_mergekit_agrees() -> None:
    draw = random.Random(1)
    gradients = [[round(draw.uniform(-1, 1), 3) for _ in range(n)] for n in range(2, 9)]
    settings: list[object] = [0.25, *gradients]
    for first, second in pairwise(gradients):
        settings.append([{"filter": "mlp", "value": first}, {"filter": "*", "value": second}])
        settings.append([{"filter": "self_attn", "value": second}, {"filter": "q_", "value": 1}])
    questions = [(name, t) for name in TENSORS for t in (0, 0.1, 1 / 3, 0.5, 0.77, 31 / 32, 1)]
    merges = sorted(set(FOLDER.glob("*.yaml")) - set(FOLDER.glob("*_moe.yaml")))
    recipes = [part.value for path in merges for part in read_documents(path)]
    shared = [
        {key: value for key, value in recipe.items() if key not in OWN_KEYS}
        for recipe in recipes
        if isinstance(recipe, dict)
    ]
    assert len(shared) == len(recipes) > 5
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        input=json.dumps({"recipes": shared, "settings": settings, "questions": questions}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.split("ANSWERS")[1])
    for index, setting in enumerate(settings):
        recipe = parse_merge_recipe(
            {
                "merge_method": "linear",
                "models": [{"model": "a", "parameters": {"weight": setting}}],
            },
            METHODS,
        )
        for (tensor, position), expected in zip(questions, answers, strict=True):
            found = recipe.value(
                "weight", tensor=tensor, position=position, model=recipe.models[0].model
            )
            if expected[index] is None:
                assert found is None
            else:
                assert found == pytest.approx(expected[index], abs=1e-12)

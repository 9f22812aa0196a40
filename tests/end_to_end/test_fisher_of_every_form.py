"""Fisher statistics of models that transformers renames and stacks when it loads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from forge import api
from forge.merge.catalog import METHODS
from forge.recipes.merge_recipe import parse_merge_recipe
from tests.architectures.rows import FIRST, ROWS, SECOND, write_row
from tests.factory import read_values

UP = "model.layers.1.mlp.experts.{}.up_proj.weight"
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


def calibrated(root: Path, name: str, *, rows: int = 3) -> Path:
    tokens = np.random.default_rng(0).integers(4, 30, (rows, 9)).astype("<i4")
    np.save(root / "tokens.npy", tokens)
    out = root / f"{name}-fisher"
    api.calibrate(
        str(root / name), "fisher", out, calibration={"calibration": str(root / "tokens.npy")},
        labels="text",
    )  # fmt: skip
    return out


def notices(folder: Path) -> list[str]:
    found = json.loads((folder / "forge_manifest.json").read_text())["notices"]
    return [str(each) for each in found]


def squares(folder: Path, tokens: np.ndarray) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Return the mean squares of gradients by the names that transformers has for weights."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, experts_implementation="eager"
    ).eval()
    sums: dict[str, torch.Tensor] = {}
    for row in torch.from_numpy(tokens.astype(np.int64)):
        model.zero_grad()
        logs = torch.log_softmax(model(row[None]).logits[0, :-1], dim=-1)
        logs.gather(1, row[1:, None]).sum().backward()
        for name, parameter in model.named_parameters():
            sums[name] = sums.get(name, 0) + parameter.grad**2
    count = tokens.shape[0] * (tokens.shape[1] - 1)
    return {name: (total / count).numpy() for name, total in sums.items()}


def test_each_expert_has_its_slice_of_the_stacks_statistics(tmp_path: Path) -> None:
    root = write_row("DeepSeek-V3", tmp_path)
    held = read_values(calibrated(root, FIRST))
    expected = squares(root / FIRST, np.load(root / "tokens.npy"))
    stack = expected["model.layers.1.mlp.experts.gate_up_proj"]
    half = stack.shape[1] // 2
    for number in range(stack.shape[0]):
        for role, part in (("gate", stack[number, :half]), ("up", stack[number, half:])):
            found = held[UP.format(number).replace("up_proj", f"{role}_proj")]
            assert np.abs(found - part).max() <= 1e-3 * np.abs(stack).max()
    assert sum(held[UP.format(number)].any() for number in range(stack.shape[0])) > 1
    (said,) = [each for each in notices(tmp_path / f"{FIRST}-fisher") if "statistics" in each]
    assert said.startswith(f"1 of {len(held) + 1} tensors have no statistics")
    assert BIAS in said


def test_a_merge_names_the_tensors_that_fall_back_to_the_mean(tmp_path: Path) -> None:
    root = write_row("DeepSeek-V3", tmp_path)
    for name in (FIRST, SECOND):
        calibrated(root, name, rows=1)
    recipe = {
        "merge_method": "fisher",
        "models": [
            {
                "model": str(root / name),
                "statistics": str(root / f"{name}-fisher"),
                "parameters": {"weight": 1.0},
            }
            for name in (FIRST, SECOND)
        ],
    }
    parsed = parse_merge_recipe(recipe, METHODS)
    found = [each for each in api.check(parsed).findings if each.code == "statistics"]
    assert [each.level for each in found] == ["notice"]
    api.merge(parsed, tmp_path / "out")
    tensors = json.loads((tmp_path / "out" / "forge_manifest.json").read_text())["tensors"]
    fallen = [name for name, each in tensors.items() if "fallback" in each]
    assert fallen == [BIAS]
    assert found[0].message in notices(tmp_path / "out")
    assert f"1 of {len(tensors)} tensors" in found[0].message
    assert f"'{BIAS}'" in found[0].message


@pytest.mark.parametrize("title", ["LLaVA", pytest.param("Gemma 3", marks=pytest.mark.slow)])
def test_a_language_tower_has_statistics_under_the_names_of_its_file(
    title: str, tmp_path: Path
) -> None:
    root = write_row(title, tmp_path)
    held = read_values(calibrated(root, FIRST))
    stored = read_values(root / FIRST)
    assert (
        ROWS[title].family == json.loads((root / FIRST / "config.json").read_text())["model_type"]
    )
    assert set(held) < set(stored)
    without = set(stored) - set(held)
    assert without
    assert all("vision" in name or "projector" in name for name in without)
    assert all(values.any() for name, values in held.items() if "norm" in name)
    (said,) = [each for each in notices(tmp_path / f"{FIRST}-fisher") if "statistics" in each]
    assert said.startswith(f"{len(without)} of {len(stored)} tensors")

"""Merging mixtures of one kind: expert by expert, routers too, with a warning about those."""

from __future__ import annotations

from pathlib import Path

import pytest

from forge.checkpoints.checkpoint import open_checkpoint
from forge.merge.catalog import METHODS
from forge.merge.check.preflight import check_merge
from forge.merge.run import run_merge
from forge.recipes.merge_recipe import MergeRecipe, parse_merge_recipe

ROUTER = {
    "mixtral": "block_sparse_moe.gate.weight", "qwen2_moe": "mlp.gate.weight",
    "qwen3_moe": "mlp.gate.weight",
}  # fmt: skip


def recipe_of(roots: list[Path], **keys: object) -> MergeRecipe:
    models = [
        {"model": str(root), "parameters": {"weight": weight}}
        for root, weight in zip(roots, (0.25, 0.75), strict=True)
    ]
    return parse_merge_recipe({"merge_method": "linear", "models": models, **keys}, METHODS)


@pytest.mark.parametrize("case", ROUTER)
def test_a_merge_of_mixtures_computes_the_mean_of_their_weights(tmp_path: Path, case: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from tests.architectures.tiny_models import save_tiny

    roots = [tmp_path / "a", tmp_path / "b"]
    models = [save_tiny(case, root, seed=seed) for seed, root in enumerate(roots)]
    recipe = recipe_of(roots)
    report = check_merge(recipe, {m: open_checkpoint(m) for m in recipe.references()})
    (warning,) = [finding for finding in report.warnings if finding.code == "routers"]
    # Qwen 2's second layer is dense, and each sparse one has a gate of a shared expert, too.
    is_shared = case == "qwen2_moe"
    assert warning.message == (
        f"'model.layers.0.{ROUTER[case]}' and 1 more are routers, and a merged router can send "
        "tokens to experts that none of the models would choose; a filter on "
        f"'{ROUTER[case]}' can keep one model's."
    )
    out = tmp_path / "out"
    run_merge(recipe, out, threads=1)
    merged, loading = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    reference, other = models[1], models[0].state_dict()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.copy_(0.25 * other[name] + 0.75 * parameter)
        tokens = torch.arange(1, 25)[None]
        torch.testing.assert_close(
            merged(tokens).logits, reference(tokens).logits, rtol=1e-4, atol=1e-4
        )
    assert is_shared == any("shared_expert_gate" in name for name, _ in merged.named_parameters())


def test_a_filter_keeps_one_models_routers(tmp_path: Path) -> None:
    from tests.architectures.tiny_models import save_tiny
    from tests.factory import read_values

    roots = [tmp_path / "a", tmp_path / "b"]
    for seed, root in enumerate(roots):
        save_tiny("qwen3_moe", root, seed=seed)
    value = recipe_of(roots).resolved()
    for model, weight in zip(value["models"], (0, 1), strict=True):  # type: ignore[call-overload]
        model["parameters"] = {
            "weight": [{"filter": "mlp.gate.weight", "value": weight}, {"value": 0.5}]
        }
    run_merge(parse_merge_recipe(value, METHODS), tmp_path / "out", threads=1)
    found, theirs = read_values(tmp_path / "out"), read_values(roots[1])
    name = "model.layers.0.mlp.gate.weight"
    assert (found[name] == theirs[name]).all()
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    assert (found[name] != theirs[name]).any()

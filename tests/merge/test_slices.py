"""Stacks of layers load, and compute what the layers that were taken compute in that order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from forge.cli.app import run
from forge.merge.catalog import METHODS
from forge.merge.run import run_merge
from forge.recipes.merge_recipe import parse_merge_recipe
from tests.factory import read_values, tiny_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMMON: dict[str, object] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "num_hidden_layers": 6,
}  # fmt: skip
WINDOW = {"sliding_window": 4, "use_sliding_window": True}
MIXTURE = {
    "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "mlp_only_layers": [1], "decoder_sparse_step": 2,
}  # fmt: skip
# The family, what its config says, and what to delete so that the rule over numbers alone is left.
FAMILIES: dict[str, tuple[str, dict[str, object], tuple[str, ...]]] = {
    "llama": ("llama", {}, ()),
    "qwen3 windows": ("qwen3", {**WINDOW, "max_window_layers": 3}, ()),
    "qwen3 windows by rule": ("qwen3", {**WINDOW, "max_window_layers": 3}, ("layer_types",)),
    "gemma2 by rule": ("gemma2", {"sliding_window": 4}, ("layer_types",)),
    "gemma3 by rule": (
        "gemma3_text", {"sliding_window": 4, "sliding_window_pattern": 3}, ("layer_types",),
    ),
    "smollm3": ("smollm3", {**WINDOW, "no_rope_layer_interval": 2}, ()),
    "smollm3 by rule": (
        "smollm3", {**WINDOW, "no_rope_layer_interval": 2}, ("layer_types", "no_rope_layers"),
    ),
    "qwen3 mixture": ("qwen3_moe", MIXTURE, ()),
}  # fmt: skip
STACK = ((0, 0, 2), (1, 1, 4), (0, 2, 3), (0, 5, 6))


def build(family: str, settings: dict[str, object], seed: int) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[family](**COMMON | settings), dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():
            centre = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
    return model.eval()


def merge(value: dict[str, object], out: Path) -> Path:
    run_merge(parse_merge_recipe(value, METHODS), out, threads=1)
    return out


def slices_of(roots: Sequence[Path], stack: Sequence[tuple[int, int, int]]) -> list[object]:
    return [
        {"sources": [{"model": str(roots[model]), "layer_range": [start, end]}]}
        for model, start, end in stack
    ]


@pytest.mark.parametrize("case", FAMILIES)
def test_a_stack_computes_what_its_layers_do(tmp_path: Path, case: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    family, settings, deleted = FAMILIES[case]
    models = [build(family, settings, seed) for seed in (1, 2)]
    roots = [tmp_path / "a", tmp_path / "b"]
    for model, root in zip(models, roots, strict=True):
        model.save_pretrained(root)
        path = root / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in config.items() if k not in deleted}))
    recipe = {"merge_method": "passthrough", "slices": slices_of(roots, STACK)}
    out = merge(recipe, tmp_path / "out")

    taken = [(m, layer) for m, start, end in STACK for layer in range(start, end)]
    said: dict[str, object] = {"num_hidden_layers": len(taken)}
    for key in ("layer_types", "no_rope_layers"):
        lists = [getattr(model.config, key, None) for model in models]
        if lists[0] is not None and family != "qwen3_moe":
            said[key] = [lists[m][layer] for m, layer in taken]
    if family == "qwen3_moe":
        dense = [layer == 1 or (layer + 1) % 2 != 0 for _, layer in taken]
        said |= {
            "mlp_only_layers": [n for n, flag in enumerate(dense) if flag],
            "decoder_sparse_step": 1,
        }
    reference = build(family, {**settings, **said}, 3)
    states = [model.state_dict() for model in models]
    for name, parameter in reference.state_dict().items():
        model, source = 0, name
        if ".layers." in name:
            number = int(name.split(".")[2])
            model, layer = taken[number]
            source = name.replace(f".layers.{number}.", f".layers.{layer}.")
        parameter.copy_(states[model][source])
    result, report = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokens = torch.arange(1, 21)[None]
    with torch.no_grad():
        found, expected = result(tokens).logits, reference(tokens).logits
        unlike = models[0](tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - unlike).abs().max() > 0.1


def test_a_layer_whose_outputs_are_scaled_to_zero_is_no_layer(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = build("llama", {}, 1)
    root = tmp_path / "a"
    model.save_pretrained(root)
    silent = [{"filter": "o_proj", "value": 0}, {"filter": "down_proj", "value": 0}, {"value": 1}]
    slices = slices_of([root], [(0, 0, 4), (0, 1, 4), (0, 4, 6)])
    slices[1]["sources"][0]["parameters"] = {"scale": silent}  # type: ignore[index]
    out = merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    result = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert result.config.num_hidden_layers == 9
    tokens = torch.arange(1, 21)[None]
    with torch.no_grad():
        torch.testing.assert_close(result(tokens).logits, model(tokens).logits)


SEVERAL = """\
merge_method: passthrough
slices:
  - sources: [{model: ./a, layer_range: [0, 2]}]
  - merge_method: linear
    parameters: {weight: 0.5}
    sources:
      - {model: ./a, layer_range: [2, 4]}
      - {model: ./b, layer_range: [1, 3]}
  - merge_method: task_arithmetic
    base_model: ./a
    sources:
      - {model: ./a, layer_range: [3, 4]}
      - {model: ./b, layer_range: [3, 4], parameters: {weight: 0.25}}
"""


def test_each_slice_has_its_own_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate("ab"):
        tiny_checkpoint(tmp_path / name, tune=number or None, layers=4, dtype="F32")
    (tmp_path / "recipe.yaml").write_text(SEVERAL)
    monkeypatch.chdir(tmp_path)
    assert run(["merge", "recipe.yaml", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("passthrough + linear + task_arithmetic → merges/recipe\n")
    (row,) = [line for line in shown.splitlines() if line.startswith("layers 2-3")]
    assert "linear normalize=true m1(weight=0.5) m2(weight=0.5)" in row
    table = [
        "LAYERS  METHOD           PARAMETERS     BYTES  FROM",
        "──────  ───────────────  ──────────  ────────  ────────────────",
        "0-1     passthrough          4.67 K  18.69 KB  ./a 0-1",
        "2-3     linear               4.67 K  18.69 KB  ./a 2-3, ./b 1-2",
        "4       task_arithmetic      2.34 K   9.34 KB  ./a 3, ./b 3",
    ]
    assert "\n".join(table) in shown
    assert run(["check", "recipe.yaml"]) == 0
    assert "\n".join(table) in capsys.readouterr().out
    assert run(["merge", "recipe.yaml", "--out", "out", "-q"]) == 0
    ours, theirs, found = (read_values(tmp_path / name) for name in ("a", "b", "out"))

    def at(layer: int, name: str) -> str:
        return f"model.layers.{layer}.{name}"

    for name in ("mlp.up_proj.weight", "self_attn.q_proj.weight", "input_layernorm.weight"):
        for layer in (0, 1):
            np.testing.assert_array_equal(found[at(layer, name)], ours[at(layer, name)])
        for layer in (2, 3):
            mean = (ours[at(layer, name)] + theirs[at(layer - 1, name)]) / 2
            np.testing.assert_allclose(found[at(layer, name)], mean, rtol=1e-6)
        base, other = ours[at(3, name)], theirs[at(3, name)]
        np.testing.assert_allclose(
            found[at(4, name)], base + 0.25 * (other - base), rtol=1e-5, atol=1e-7
        )
    # The embedding is the first slice's, norm and head are the last one's, with its method.
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    np.testing.assert_array_equal(found[embedding], ours[embedding])
    np.testing.assert_allclose(
        found[head], ours[head] + 0.25 * (theirs[head] - ours[head]), rtol=1e-5, atol=1e-7
    )
    manifest = json.loads((tmp_path / "out" / "forge_manifest.json").read_text())
    methods = {
        layer: manifest["tensors"][at(layer, "mlp.up_proj.weight")]["method"] for layer in range(5)
    }
    assert list(methods.values()) == [
        "passthrough", "passthrough", "linear", "linear", "task_arithmetic",
    ]  # fmt: skip
    resolved = parse_merge_recipe(manifest["recipe"], METHODS)
    assert resolved.resolved() == manifest["recipe"]
    assert [resolved.method_of(index).name for index in range(3)] == [
        "passthrough", "linear", "task_arithmetic",
    ]  # fmt: skip


def test_a_method_that_is_named_again_keeps_what_stands_at_the_top() -> None:
    source = {"model": "a", "layer_range": [0, 1]}
    value = {
        "merge_method": "passthrough",
        "parameters": {"scale": 2.0},
        "slices": [{"merge_method": "passthrough", "sources": [source]}],
    }
    recipe = parse_merge_recipe(value, METHODS)
    assert recipe.slices[0].method is None
    model = recipe.slices[0].sources[0].model
    assert recipe.value("scale", tensor="x", position=0, model=model, slice_index=0) == 2.0

"""Mixtures of models that are decoded when they are read, or were decoded before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from forge import api
from forge.core.errors import NonFiniteError
from forge.recipes.moe_recipe import parse_moe_recipe
from tests.factory import (
    read_values,
    tiny_checkpoint,
    to_bytes,
    write_safetensors,
    write_tokenizer,
)
from tests.merge.test_moe import build, recipe_of

pytest.importorskip("torch")
pytest.importorskip("transformers")


def _notices(out: Path) -> list[str]:
    found = json.loads((out / "forge_manifest.json").read_text())["notices"]
    return [str(each) for each in found]


@pytest.mark.parametrize("mode", ["hidden", "cheap_embed"])
def test_experts_and_base_may_be_gguf(tmp_path: Path, mode: str) -> None:
    """They give what their numbers give, saved in full precision; routers included."""
    gguf = pytest.importorskip("gguf")
    from tests.checkpoints.gguf.models import tiny_gguf

    expert = tiny_gguf("llama", tmp_path / "expert", kind="Q8_0")
    plain = {}
    for tensor in gguf.GGUFReader(expert.file).tensors:
        plain[tensor.name] = gguf.dequantize(tensor.data, tensor.tensor_type)
    base = tiny_gguf("llama", tmp_path / "base", kind="F32")
    for folder in (base.folder, tmp_path / "base" / "hf"):
        write_tokenizer(folder)
    value = recipe_of(base.folder, [base.folder, expert.folder], mode=mode)
    found = read_values(build(value, tmp_path / "out"))
    for layer in (0, 1):
        at = f"model.layers.{layer}.block_sparse_moe"
        for theirs, ours in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            np.testing.assert_array_equal(
                found[f"{at}.experts.1.{ours}.weight"],
                plain[f"blk.{layer}.ffn_{theirs}.weight"].astype(np.float32),
            )
    assert any(
        str(expert.folder) in each and "is a GGUF, not the model in full precision" in each
        for each in _notices(tmp_path / "out")
    )
    same = recipe_of(tmp_path / "base" / "hf", [tmp_path / "base" / "hf"] * 2, mode=mode)
    again = read_values(build(same, tmp_path / "same"))
    for name, values in again.items():
        if ".gate." in name:
            np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6)


def test_an_expert_that_was_dequantized_is_named(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", hidden=128)
    expert = tiny_checkpoint(tmp_path / "expert", hidden=128, tune=1)
    values = read_values(expert)
    for name, value in values.items():
        if value.ndim == 2 and ".layers." in name:
            groups = value.reshape(len(value), -1, 32)
            step = np.abs(groups).max(axis=-1, keepdims=True) / 7
            values[name] = (np.rint(groups / step) * step).reshape(value.shape)
    write_safetensors(
        expert / "model.safetensors",
        {name: ("BF16", value.shape, to_bytes(value, "BF16")) for name, value in values.items()},
    )
    recipe = recipe_of(base, [base, expert])
    found = [each for each in api.check(parse_moe_recipe(recipe)).findings if each.code == "grid"]
    assert [each.level for each in found] == ["warning"]
    assert f"'{expert}' is stored in bfloat16, but its weights lie on a grid" in found[0].message
    assert found[0].message in _notices(build(recipe, tmp_path / "out"))


def test_advice_about_a_nan_names_the_verb_that_it_is_for(tmp_path: Path) -> None:
    """A recipe of ``forge moe`` knows no ``allow_nonfinite``."""
    base = tiny_checkpoint(tmp_path / "base")
    expert = tiny_checkpoint(tmp_path / "expert", tune=1)
    values = read_values(expert)
    name = "model.layers.0.mlp.up_proj.weight"
    values[name].flat[3] = np.nan
    write_safetensors(
        expert / "model.safetensors",
        {name: ("BF16", value.shape, to_bytes(value, "BF16")) for name, value in values.items()},
    )
    with pytest.raises(NonFiniteError, match="'allow_nonfinite: true' in a recipe of 'forge merge"):
        build(recipe_of(base, [base, expert], mode="random"), tmp_path / "out")

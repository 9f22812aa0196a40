"""Tied and untied models together: the tied embedding enters as the head that it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from forge.merge.catalog import METHODS
from forge.merge.run import run_merge
from forge.recipes.merge_recipe import parse_merge_recipe
from forge.recipes.parameters import MethodRow
from tests.factory import read_values, tiny_checkpoint, to_bytes, write_safetensors

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
VALUES = {"weight": 0.5, "t": 0.3, "density": 0.5}
# passthrough has one model, so nothing to mix; what statistics say of a head is tested with them.
WITHOUT = ("passthrough", "regmean", "fisher")
MIXING = {
    row.name
    for row in METHODS
    if row.name not in WITHOUT
    and not row.statistics
    and all(p.name in VALUES for p in row.parameters if p.required)
}


def untied_copy(model: Path, root: Path) -> Path:
    """Write a tied model as an untied one of the same function."""
    root.mkdir()
    values = read_values(model)
    values[HEAD] = values[EMBEDDING]
    rows = {name: ("BF16", value.shape, to_bytes(value, "BF16")) for name, value in values.items()}
    write_safetensors(root / "model.safetensors", rows)
    config = json.loads((model / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    return root


def recipe_of(method: MethodRow, base: Path, other: Path, third: Path) -> dict[str, object]:
    needs = {row.name: row.scope for row in method.parameters if row.required}
    models = [other] if method.max_models == 1 else [other, third]
    value: dict[str, object] = {
        "merge_method": method.name,
        "models": [{"model": str(model)} for model in models],
        "parameters": {name: VALUES[name] for name in needs},
    }
    if method.base == "required":
        value["base_model"] = str(base)
    elif not method.base_is_merged:
        value["models"] = [{"model": str(model)} for model in (base, other)]
    else:
        value["models"] = [{"model": str(model)} for model in (base, other, third)]
    return value


@pytest.mark.parametrize("tied_first", [True, False], ids=["tied base", "untied base"])
@pytest.mark.parametrize("name", [row.name for row in METHODS if row.name in MIXING])
def test_every_method_merges_the_embedding_as_a_head(
    tmp_path: Path, name: str, tied_first: bool
) -> None:
    one = tiny_checkpoint(tmp_path / "t" / "one", tie=True, layers=1)
    two = tiny_checkpoint(tmp_path / "t" / "two", tune=1, layers=1)
    three = tiny_checkpoint(tmp_path / "t" / "three", tune=2, layers=1)
    copy = untied_copy(one, tmp_path / "one")
    outs = []
    for model in (one, copy):
        order = (model, two, three) if tied_first else (two, model, three)
        # The same names everywhere: they key the random drops.
        value = recipe_of(METHODS[name], *order)
        out = tmp_path / f"out{len(outs)}"
        run_merge(parse_merge_recipe(value, METHODS), out, threads=1)
        outs.append(read_values(out))
        if name != "passthrough":
            config = json.loads((out / "config.json").read_text())
            assert config["tie_word_embeddings"] is False
    assert outs[0].keys() == outs[1].keys()
    for tensor, values in outs[1].items():
        np.testing.assert_array_equal(outs[0][tensor], values, err_msg=tensor)


def test_weights_of_one_and_zero_give_each_parent_back(tmp_path: Path) -> None:
    tied = tiny_checkpoint(tmp_path / "tied", tie=True)
    untied = tiny_checkpoint(tmp_path / "untied", tune=1)
    head = {"tied": EMBEDDING, "untied": HEAD}
    for weights in ((1.0, 0.0), (0.0, 1.0)):
        models = [
            {"model": str(model), "parameters": {"weight": weight}}
            for model, weight in zip((tied, untied), weights, strict=True)
        ]
        out = tmp_path / f"out{weights[0]}"
        recipe = {"merge_method": "linear", "models": models}
        result = run_merge(parse_merge_recipe(recipe, METHODS), out, threads=1)
        parent = tied if weights[0] else untied
        np.testing.assert_array_equal(
            read_values(out)[HEAD], read_values(parent)[head[parent.name]]
        )
        notices = result.manifest["notices"]
        assert isinstance(notices, list)
        assert any("so the result is untied" in notice for notice in notices)


def test_a_head_left_over_in_a_tied_model_is_not_read(tmp_path: Path) -> None:
    tied = tiny_checkpoint(tmp_path / "tied", config_overrides={"tie_word_embeddings": True})
    untied = tiny_checkpoint(tmp_path / "untied", tune=1)
    models = [{"model": str(model), "parameters": {"weight": 0.5}} for model in (tied, untied)]
    recipe = {"merge_method": "linear", "models": models, "dtype": "float32"}
    run_merge(parse_merge_recipe(recipe, METHODS), tmp_path / "out", threads=1)
    ours, theirs = read_values(tied), read_values(untied)
    expected = (ours[EMBEDDING] + theirs[HEAD]) / 2
    np.testing.assert_allclose(read_values(tmp_path / "out")[HEAD], expected, rtol=1e-6)


@pytest.mark.parametrize("tied_first", [True, False])
def test_logits_of_a_mixed_merge(tmp_path: Path, tied_first: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from tests.architectures.tiny_models import tiny_model

    tied, untied = tiny_model("gemma3_text", seed=0), tiny_model("gemma3_text", seed=1)
    assert tied.config.tie_word_embeddings
    untied.config.tie_word_embeddings = False
    torch.manual_seed(2)
    untied.lm_head.weight = torch.nn.Parameter(torch.randn_like(untied.lm_head.weight) * 0.15)
    for name, model in (("tied", tied), ("untied", untied)):
        model.save_pretrained(tmp_path / name)
    models = [
        {"model": str(tmp_path / "tied"), "parameters": {"weight": 0.25}},
        {"model": str(tmp_path / "untied"), "parameters": {"weight": 0.75}},
    ]
    recipe = {"merge_method": "linear", "models": models if tied_first else models[::-1]}
    run_merge(parse_merge_recipe(recipe, METHODS), tmp_path / "out", threads=1)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64).eval()
    reference = untied.double()
    ours = {name: value.double() for name, value in tied.state_dict().items()}
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.copy_(0.25 * ours[name] + 0.75 * parameter)
    tokens = torch.arange(1, 25)[None]
    with torch.no_grad():
        expected, found = reference(tokens).logits, merged(tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_stacks_of_tied_and_untied_ends(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    tied = tiny_checkpoint(tmp_path / "tied", tie=True, dtype="F32")
    untied = tiny_checkpoint(tmp_path / "untied", tune=1, dtype="F32")
    for first, last in ((tied, untied), (untied, tied)):
        recipe = {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": str(first), "layer_range": [0, 2]}]},
                {"sources": [{"model": str(last), "layer_range": [1, 2]}]},
            ],
        }
        out = tmp_path / f"{first.name}-{last.name}"
        run_merge(parse_merge_recipe(recipe, METHODS), out, threads=1)
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        head = read_values(last)[EMBEDDING if last is tied else HEAD]
        assert model.config.num_hidden_layers == 3
        np.testing.assert_array_equal(model.lm_head.weight.detach().numpy(), head)
        np.testing.assert_array_equal(
            model.model.embed_tokens.weight.detach().numpy(), read_values(first)[EMBEDDING]
        )


@pytest.mark.parametrize("is_base_tied", [True, False])
def test_rows_of_new_tokens_come_from_heads_for_the_head(
    tmp_path: Path, is_base_tied: bool
) -> None:
    """A model that lacks a token borrows the row, so its task vector there is zero."""
    base = tiny_checkpoint(tmp_path / "base", tie=is_base_tied)
    other = tiny_checkpoint(
        tmp_path / "other", tune=1, tie=not is_base_tied, vocab=40, extra_tokens=["zoster"]
    )
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [{"model": str(other), "parameters": {"weight": 0.5}}],
        "tokenizer": {"source": "union"},
    }
    run_merge(parse_merge_recipe(recipe, METHODS), tmp_path / "out", threads=1)
    found, theirs = read_values(tmp_path / "out"), read_values(other)
    token = json.loads((other / "tokenizer.json").read_text())["model"]["vocab"]["zoster"]
    head = EMBEDDING if not is_base_tied else HEAD
    np.testing.assert_array_equal(found[EMBEDDING][token], theirs[EMBEDDING][token])
    np.testing.assert_array_equal(found[HEAD][token], theirs[head][token])
    ours = read_values(base)
    mean = (ours[EMBEDDING if is_base_tied else HEAD][4] + theirs[head][4]) / 2
    np.testing.assert_allclose(found[HEAD][4], mean, rtol=2**-7, atol=1e-5)

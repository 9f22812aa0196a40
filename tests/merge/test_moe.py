"""Mixtures of experts: equal experts are the dense model, and routers choose by prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge import api
from forge.merge.moe.gates import random_rows, rows_of_prompts
from forge.recipes.moe_recipe import parse_moe_recipe
from tests.factory import (
    read_values,
    tiny_checkpoint,
    to_bytes,
    write_safetensors,
    write_tokenizer,
)

TOKENS = list(range(1, 25))
PROMPTS = (
    ["aspirin treats pain", "fever"],
    ["adults but not"],
    ["children with flu", "flu in children", "but"],
)
FAMILIES = {
    "llama grouped": "mixtral", "mistral": "mixtral", "qwen2": "qwen2_moe", "qwen3": "qwen3_moe",
}  # fmt: skip


def save(case: str, root: Path, *, seed: int = 0) -> Path:
    """Save a tiny model of transformers with a tokenizer that fits it."""
    from tests.architectures.tiny_models import save_tiny

    save_tiny(case, root, seed=seed)
    if case == "qwen2":
        write_letters(root)
    else:
        write_tokenizer(root)
    return root


def write_letters(root: Path) -> None:
    """Write a tokenizer of letters, as pieces of bytes: so transformers reads all of Qwen 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = ["<|endoftext|>", "\u0120", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(root / "tokenizer.json"))
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>"}
    (root / "tokenizer_config.json").write_text(json.dumps(config))


def recipe_of(
    base: Path,
    experts: Sequence[Path],
    *,
    mode: str = "random",
    shared: dict[str, object] | None = None,
    **keys: object,
) -> dict[str, object]:
    items: list[dict[str, object]] = [{"source_model": str(expert)} for expert in experts]
    for item, prompts in zip(items, PROMPTS, strict=False):
        item["positive_prompts"] = prompts
    return {
        "base_model": str(base),
        "gate_mode": mode,
        "experts": items,
        **({} if shared is None else {"shared_experts": [shared]}),
        **keys,
    }


def build(value: dict[str, object], out: Path) -> Path:
    api.moe(parse_moe_recipe(value), out, threads=1)
    return out


def logits(root: Path, tokens: Sequence[int] = TOKENS) -> npt.NDArray[np.float32]:
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        root, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        found: npt.NDArray[np.float32] = model(torch.tensor([list(tokens)])).logits[0].numpy()
    return found


@pytest.mark.parametrize("per_token", [1, 3])
@pytest.mark.parametrize("case", FAMILIES)
def test_equal_experts_are_the_dense_model(tmp_path: Path, case: str, per_token: int) -> None:
    dense = save(case, tmp_path / "dense")
    # A shared expert that is scaled to nothing leaves the others alone.
    shared = {"source_model": str(dense), "residual_scale": 0} if case == "qwen2" else None
    value = recipe_of(
        dense, [dense] * 3, shared=shared, experts_per_token=per_token, seed=per_token
    )
    out = build(value, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == FAMILIES[case]
    assert config["num_experts_per_tok"] == per_token
    np.testing.assert_allclose(logits(out), logits(dense), rtol=1e-4, atol=1e-4)


def test_half_a_shared_expert_and_half_of_the_others_are_the_dense_model(tmp_path: Path) -> None:
    dense = save("qwen2", tmp_path / "dense")
    value = recipe_of(dense, [dense, dense], shared={"source_model": str(dense)})
    for item in value["experts"]:  # type: ignore[attr-defined]
        item["residual_scale"] = 0.5
    out = build(value, tmp_path / "out")
    # Its gate is zero, so its sigmoid is a half.
    np.testing.assert_allclose(logits(out), logits(dense), rtol=1e-4, atol=1e-4)
    scaled = read_values(out)["model.layers.1.mlp.experts.1.down_proj.weight"]
    np.testing.assert_array_equal(
        scaled, read_values(dense)["model.layers.1.mlp.down_proj.weight"] * np.float32(0.5)
    )


def test_what_a_config_leaves_out_is_not_filled_in_otherwise(tmp_path: Path) -> None:
    """The defaults of Llama and Mixtral differ in rotary base, epsilon, heads and window."""
    for case in ("llama", "mistral"):
        root = save(case, tmp_path / case)
        path = root / "config.json"
        config = json.loads(path.read_text())
        for key in ("rope_parameters", "rms_norm_eps", "max_position_embeddings", "head_dim",
                    "sliding_window", "initializer_range", "tie_word_embeddings"):  # fmt: skip
            config.pop(key, None)
        if case == "llama":
            config.pop("num_key_value_heads")
        path.write_text(json.dumps(config))
        out = build(recipe_of(root, [root, root]), tmp_path / f"{case}-out")
        np.testing.assert_allclose(logits(out), logits(root), rtol=1e-4, atol=1e-4)


def test_every_tensor_comes_from_where_it_should(tmp_path: Path) -> None:
    """Each model is filled with a number of its own, so a wrong source is a wrong number."""
    roots = [
        tiny_checkpoint(
            tmp_path / name,
            fill=lambda tensor, shape, number=number: np.float32(
                number + 16 * int(tensor.split(".")[2]) if ".layers." in tensor else number
            ),
        )
        for number, name in enumerate(("base", "one", "two"), start=1)
    ]
    out = build(recipe_of(roots[0], roots[1:]), tmp_path / "out")
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    for name, values in read_values(out).items():
        if name.endswith("block_sparse_moe.gate.weight"):
            assert values.shape == (2, 16)
            assert len(np.unique(values)) > 20
            continue
        layer = int(name.split(".")[2]) if ".layers." in name else 0
        owner = 1
        if ".experts." in name:
            parts = name.split(".")
            owner = int(parts[5]) + 2
            original = f"model.layers.{layer}.mlp.{names[parts[6]]}.weight"
            assert values.shape == read_values(roots[owner - 1])[original].shape
        np.testing.assert_array_equal(values, owner + 16 * layer, err_msg=name)
    assert len(read_values(out)) == 3 + 2 * (6 + 1 + 2 * 3)


def test_prompts_that_a_base_cannot_read_are_refused(tmp_path: Path) -> None:
    """Whatever its config calls the number of positions."""
    pytest.importorskip("transformers")
    from forge.checkpoints.checkpoint import open_checkpoint
    from forge.core.errors import IncompatibleError
    from forge.recipes.reference import ModelReference
    from forge.runtime.prompt_states import embedding_states

    root = tiny_checkpoint(
        tmp_path / "m", model_type="gpt2", config_overrides={"n_positions": 3}, tie=True
    )
    checkpoint = open_checkpoint(ModelReference(str(root)))
    with pytest.raises(IncompatibleError, match=r"'aspirin treats pain' has 4 tokens.* reads 3"):
        embedding_states(checkpoint, PROMPTS)


@pytest.mark.parametrize("case", ["llama grouped", "qwen2", "qwen3"])
def test_states_are_what_the_mlps_read(tmp_path: Path, case: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from forge.checkpoints.checkpoint import open_checkpoint
    from forge.recipes.reference import ModelReference
    from forge.runtime.prompt_states import embedding_states, hidden_states

    root = save(case, tmp_path / "model")
    checkpoint = open_checkpoint(ModelReference(str(root)))
    groups = (*PROMPTS, [])
    found = hidden_states(checkpoint, groups)
    model = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(root)
    # The first token is left out where the tokenizer puts it before every text.
    skip = 0 if case == "qwen2" else 1
    read: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
    for layer, kept in zip(model.model.layers, read, strict=True):
        layer.mlp.register_forward_pre_hook(
            lambda module, inputs, kept=kept: kept.append(inputs[0][0, skip:].mean(0))
        )
    embedded = np.zeros((4, 64))
    for number, prompts in enumerate(PROMPTS):
        for kept in read:
            kept.clear()
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            assert ids.shape[1] > 1
            assert bool(skip) == (ids[0, 0] == tokenizer.bos_token_id)
            with torch.no_grad():
                model(ids)
                rows = model.model.embed_tokens(ids)[0, skip:].mean(0).numpy()
            embedded[number] += rows / len(prompts)
        for layer, kept in enumerate(read):
            expected = torch.stack(kept).mean(0).numpy()
            np.testing.assert_allclose(found[layer, number], expected, rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(found[:, 3], 0)
    np.testing.assert_allclose(embedding_states(checkpoint, groups), embedded, rtol=1e-6)
    checkpoint.source.close()


@pytest.mark.parametrize("case", ["mistral", "qwen2", "qwen3"])
def test_a_router_chooses_the_expert_of_the_prompt(tmp_path: Path, case: str) -> None:
    """With experts equal to the base, what the routers read is what they were made from."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dense = save(case, tmp_path / "dense")
    shared = {"source_model": str(dense), "residual_scale": 0} if case == "qwen2" else None
    out = build(recipe_of(dense, [dense] * 3, mode="hidden", shared=shared), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    skip = 0 if case == "qwen2" else 1
    chosen: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
    for layer, kept in zip(model.model.layers, chosen, strict=True):
        layer.mlp.gate.register_forward_hook(
            lambda module, inputs, output, kept=kept: kept.append(output[0][skip:].mean(0))
        )
    for number, prompts in enumerate(PROMPTS):
        for kept in chosen:
            kept.clear()
        with torch.no_grad():
            for prompt in prompts:
                model(tokenizer(prompt, return_tensors="pt").input_ids)
        for kept in chosen:
            assert int(torch.stack(kept).mean(0).argmax()) == number


def test_cheap_embeddings_are_the_same_in_all_layers(tmp_path: Path) -> None:
    dense = save("mistral", tmp_path / "dense")
    out = build(recipe_of(dense, [dense] * 3, mode="cheap_embed"), tmp_path / "out")
    values = read_values(out)
    routers = [values[f"model.layers.{layer}.block_sparse_moe.gate.weight"] for layer in (0, 1)]
    np.testing.assert_array_equal(routers[0], routers[1])
    vocabulary = json.loads((dense / "tokenizer.json").read_text())["model"]["vocab"]
    table = read_values(dense)["model.embed_tokens.weight"].astype(np.float64)
    means = np.stack(
        [
            np.mean(
                [table[[vocabulary[w] for w in text.split()]].mean(0) for text in texts], axis=0
            )
            for texts in PROMPTS
        ]
    )
    units = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(routers[0], units - units.mean(0), rtol=1e-5, atol=1e-7)


STATES = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).normal(size=(4, 8)) + np.full(8, 2.0)
)


@settings(max_examples=50)
@given(STATES)
def test_every_expert_is_wanted_most_by_its_own_prompts(states: npt.NDArray[np.float64]) -> None:
    rows = rows_of_prompts(states, np.zeros_like(states), [False] * 4)
    assert list((states @ rows.T.astype(np.float64)).argmax(axis=1)) == [0, 1, 2, 3]
    np.testing.assert_allclose(rows.sum(axis=0), 0, atol=1e-6)


@settings(max_examples=50)
@given(STATES, STATES)
def test_negative_prompts_make_an_expert_less_wanted_there(
    states: npt.NDArray[np.float64], negative: npt.NDArray[np.float64]
) -> None:
    flags = [True, False, False, False]
    without = rows_of_prompts(states, negative, [False] * 4).astype(np.float64)
    rows = rows_of_prompts(states, negative, flags).astype(np.float64)
    units = states / np.linalg.norm(states, axis=1, keepdims=True)
    away = negative[0] / np.linalg.norm(negative[0]) - units.mean(axis=0)
    # Differences between rows are all that counts, and only that of the first has changed.
    np.testing.assert_allclose(
        (rows[0] - rows[1]) - (without[0] - without[1]), -away, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(rows[2] - rows[1], without[2] - without[1], atol=1e-6)


def test_random_routers_depend_on_seed_layer_and_expert_alone() -> None:
    def draw(seed: int, tensor: str, experts: int) -> npt.NDArray[np.float32]:
        return random_rows(seed, tensor, num_experts=experts, hidden_size=4096, deviation=0.02)

    rows = draw(1, "a", 4)
    np.testing.assert_array_equal(draw(1, "a", 2), rows[:2])
    assert len({draw(s, t, 1).tobytes() for s in (1, 2) for t in ("a", "b")}) == 4
    assert len({row.tobytes() for row in rows}) == 4
    assert abs(float(rows.std()) - 0.02) < 3e-4
    assert abs(float(rows.mean())) < 6e-4
    assert float(np.abs(rows).max()) < 0.02 * 3**0.5


def test_a_build_is_whole_hashed_and_not_repeated(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base")
    other = tiny_checkpoint(tmp_path / "other", tune=1)
    recipe = parse_moe_recipe(recipe_of(base, [base, other], name="Two", seed=7))
    result = api.moe(recipe, tmp_path / "out", threads=2)
    manifest = result.manifest
    assert manifest["kind"] == "moe"
    assert manifest["architecture"] == "mixtral"
    assert manifest["recipe"] == recipe.resolved()
    assert [entry["role"] for entry in manifest["inputs"]] == ["base", "expert"]  # type: ignore[attr-defined]
    assert any("routers are random" in text for text in manifest["notices"])  # type: ignore[attr-defined]
    assert api.verify(tmp_path / "out").ok
    again = api.moe(recipe, tmp_path / "out", threads=1)
    assert again.resumed_tensors == again.num_tensors == result.num_tensors
    assert again.manifest["content_digest"] == manifest["content_digest"]
    other_way = api.moe(recipe, tmp_path / "threads", threads=1)
    assert other_way.manifest["content_digest"] == manifest["content_digest"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "mixture of experts (mixtral)" in card
    assert str(tmp_path) not in card


def test_a_build_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from forge.checkpoints.sink import TensorSink

    base = tiny_checkpoint(tmp_path / "base")
    other = tiny_checkpoint(tmp_path / "other", tune=1)
    recipe = parse_moe_recipe(recipe_of(base, [base, other], mode="hidden"))
    whole = api.moe(recipe, tmp_path / "whole", threads=1)
    finish = TensorSink.finish

    def stop(sink: TensorSink, name: str, **record: Any) -> None:
        if len(sink.done) == 9:
            raise KeyboardInterrupt
        finish(sink, name, **record)

    monkeypatch.setattr(TensorSink, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        api.moe(recipe, tmp_path / "out", threads=1)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    result = api.moe(recipe, tmp_path / "out", threads=1)
    assert result.resumed_tensors == 9
    assert result.manifest["content_digest"] == whole.manifest["content_digest"]


def test_an_adapter_makes_an_expert(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", dtype="F32")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    rows, factors = {}, {}
    generator = np.random.default_rng(1)
    for layer in (0, 1):
        name = f"model.layers.{layer}.mlp.up_proj"
        a, b = (generator.normal(size=s).astype(np.float32) for s in ((2, 16), (32, 2)))
        factors[f"{name}.weight"] = 1.5 * (b @ a)
        for letter, values in (("A", a), ("B", b)):
            rows[f"base_model.model.{name}.lora_{letter}.weight"] = (
                "F32", values.shape, to_bytes(values, "F32"),
            )  # fmt: skip
    write_safetensors(adapter / "adapter_model.safetensors", rows)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["up_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    value = recipe_of(base, [base, base])
    value["experts"][1]["source_model"] = f"{base}+{adapter}"  # type: ignore[index]
    found, own = read_values(build(value, tmp_path / "out")), read_values(base)
    for layer in (0, 1):
        dense, at = f"model.layers.{layer}.mlp", f"model.layers.{layer}.block_sparse_moe.experts"
        tuned = own[f"{dense}.up_proj.weight"] + factors[f"{dense}.up_proj.weight"]
        np.testing.assert_allclose(found[f"{at}.1.w3.weight"], tuned, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found[f"{at}.0.w3.weight"], own[f"{dense}.up_proj.weight"])
        np.testing.assert_array_equal(found[f"{at}.1.w2.weight"], own[f"{dense}.down_proj.weight"])


def test_dtype_is_written_and_stated(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", dtype="F32")
    other = tiny_checkpoint(tmp_path / "other", tune=1)
    out = build(recipe_of(base, [base, other], dtype="float16"), tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["dtype"] == "float16"
    report = api.inspect(out)
    assert set(report.dtypes) == {"F16"}


def test_the_check_counts_a_block_where_the_base_is_run(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base")
    needs = {
        mode: api.check(parse_moe_recipe(recipe_of(base, [base, base], mode=mode))).memory_bytes
        for mode in ("random", "hidden")
    }
    block = 4 * sum(
        values.size for name, values in read_values(base).items() if ".layers.0." in name
    )
    assert needs["hidden"] == 260_000_000 + block
    assert needs["random"] < needs["hidden"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["hidden", "random"])
def test_memory_does_not_grow_with_the_model(tmp_path: Path, mode: str) -> None:
    """Of anonymous memory; mapped files are the page cache's."""
    import os
    import subprocess
    import sys

    from tests.end_to_end.model_folders import write_large

    peaks = []
    for layers in (4, 16):
        root = tmp_path / str(layers)
        write_large(root, layers=layers, hidden=1024, inner=4096)
        write_tokenizer(root / "base")
        value = recipe_of(Path("base"), [Path("med"), Path("chat")], mode=mode)
        (root / "moe.yaml").write_text(json.dumps(value))
        process = subprocess.Popen(
            [sys.executable, "-m", "forge", "moe", "moe.yaml", "--out", "out", "-q"],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.DEVNULL,
        )
        status, peak = Path(f"/proc/{process.pid}/status"), 0
        while process.poll() is None:
            lines = status.read_text().splitlines() if status.exists() else []
            peak = max(
                [peak, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))]
            )
        assert process.returncode == 0
        peaks.append(peak)
    # Twelve blocks more are 400 MB in bfloat16 and 800 MB in float32.
    assert peaks[1] - peaks[0] < 60_000

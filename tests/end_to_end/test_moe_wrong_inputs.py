"""Every wrong mixture of experts ends in one message and exit code 2, and touches nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from forge.cli.app import run
from tests.end_to_end.command import tree
from tests.factory import read_values, tiny_checkpoint, to_bytes, write_safetensors

RECIPE = """\
base_model: ./base
gate_mode: hidden
experts:
  - source_model: ./med
    positive_prompts: [aspirin treats pain]
  - source_model: ./law
    positive_prompts: [children with flu]
"""
SHARED = "shared_experts: [{source_model: ./base, residual_scale: 0.1}]\n"


@dataclass(frozen=True, slots=True)
class Wrong:
    """One wrong input: the message, what is replaced in the recipe, and what is done before."""

    message: str
    swap: tuple[str, str] = ("", "")
    spoil: Callable[[Path], object] | None = None
    arguments: tuple[str, ...] = ("moe.yaml", "--out", "out")


def configure(root: Path, **changes: object) -> None:
    path = root / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def widen(root: Path, width: int) -> None:
    """Give a model's MLPs another width."""
    rows = {}
    for name, values in read_values(root).items():
        if ".mlp." in name:
            shape = (16, width) if "down" in name else (width, 16)
            values = np.zeros(shape, np.float32)
        rows[name] = ("F32", values.shape, to_bytes(values, "F32"))
    write_safetensors(root / "model.safetensors", rows)
    configure(root, intermediate_size=width)


def add_bias(root: Path, name: str, size: int) -> None:
    """Give the first layer of a model a bias."""
    values = {**read_values(root), f"model.layers.0.{name}": np.zeros(size, np.float32)}
    rows = {key: ("BF16", item.shape, to_bytes(item, "BF16")) for key, item in values.items()}
    write_safetensors(root / "model.safetensors", rows)


WRONG = {
    "gate mode": Wrong(
        "moe.yaml:2 gate_mode: 'hiden' is no gate mode. Did you mean 'hidden'? Known: hidden: from "
        "what the router will read when the base model reads the prompts; cheap_embed: from the "
        "embeddings of the prompts' tokens, the same in all layers; random: drawn at random from "
        "the seed; to be trained.",
        swap=("hidden", "hiden"),
    ),
    "no prompts": Wrong(
        "moe.yaml:6 experts[1].positive_prompts: gate_mode hidden needs prompts that this expert "
        "is good at. Add 'positive_prompts:' with a list, or write 'gate_mode: random'.",
        swap=("    positive_prompts: [children with flu]\n", ""),
    ),
    "one expert": Wrong(
        "moe.yaml:3 experts: A mixture needs at least 2 experts, but 1 is listed.",
        swap=("  - source_model: ./law\n    positive_prompts: [children with flu]\n", ""),
    ),
    "more for a token than there are": Wrong(
        "moe.yaml:3 experts_per_token: 3 experts for each token are asked of 2. Write at most 2, "
        "or list more experts.",
        swap=("experts:", "experts_per_token: 3\nexperts:"),
    ),
    "a family without a mixture": Wrong(
        "./base is a 'gpt2' model, which has no mixture that forge builds; it builds mixtral of "
        "llama or mistral, qwen2_moe of qwen2, qwen3_moe of qwen3, so name a dense base of one of "
        "those.",
        spoil=lambda root: tiny_checkpoint(root / "base", model_type="gpt2"),
    ),
    "a base that is a mixture": Wrong(
        "./base is a 'mixtral' model, which is a mixture of experts already; it builds mixtral of "
        "llama or mistral, qwen2_moe of qwen2, qwen3_moe of qwen3, so name a dense base of one of "
        "those.",
        spoil=lambda root: configure(root / "base", model_type="mixtral"),
    ),
    "another architecture than the base's": Wrong(
        "'architecture: qwen3_moe' cannot be built of ./base, a 'llama' model: write "
        "'architecture: mixtral', or remove the key.",
        swap=("gate_mode", "architecture: qwen3_moe\ngate_mode"),
    ),
    "lists that do not fit the layers": Wrong(
        "config.json of './base' has 1 entries in 'layer_types' for 2 layers.",
        spoil=lambda root: configure(root / "base", layer_types=["full_attention"]),
    ),
    "layers of two kinds": Wrong(
        "./base has layers of several kinds (full_attention, sliding_attention), and the "
        "config.json of a mixtral model has one for all layers.",
        spoil=lambda root: configure(
            root / "base", layer_types=["full_attention", "sliding_attention"]
        ),
    ),
    "biases that an expert cannot have": Wrong(
        "./law has 'model.layers.0.mlp.up_proj.bias', for which an expert has no place; without "
        "them it would be another model.",
        spoil=lambda root: add_bias(root / "law", "mlp.up_proj.bias", 32),
    ),
    "biases of the base's attention": Wrong(
        "./base has 'model.layers.0.self_attn.q_proj.bias', for which a mixtral layer has no "
        "place; without them it would be another model.",
        spoil=lambda root: add_bias(root / "base", "self_attn.q_proj.bias", 16),
    ),
    "an expert of another family": Wrong(
        "./law is a 'qwen3' model, but experts of a mixtral are llama or mistral models: name a "
        "dense model of the base's kind.",
        spoil=lambda root: tiny_checkpoint(root / "law", model_type="qwen3"),
    ),
    "an expert of another width": Wrong(
        "./law has a hidden size of 24 but the base ./base of 16: experts read the base's states, "
        "so name one of the same size.",
        spoil=lambda root: tiny_checkpoint(root / "law", hidden=24),
    ),
    "experts of different widths": Wrong(
        "./law has MLPs of width 40 but ./med of 32: experts of one mixture must be of one size.",
        spoil=lambda root: widen(root / "law", 40),
    ),
    "an expert with another number of layers": Wrong(
        "./law has 3 layers but the base ./base has 2: an expert gives one MLP to each layer, so "
        "name one of as many.",
        spoil=lambda root: tiny_checkpoint(root / "law", layers=3),
    ),
    "an expert with another activation": Wrong(
        "hidden_act is gelu in ./law but silu in the base ./base: an expert does not work with "
        "another activation function.",
        spoil=lambda root: configure(root / "law", hidden_act="gelu"),
    ),
    "a shared expert where there is none": Wrong(
        "A mixtral has no shared expert, but 1 is listed: remove 'shared_experts'.",
        swap=("experts:", SHARED + "experts:"),
    ),
    "no shared expert": Wrong(
        "A qwen2_moe has exactly one shared expert, but 0 are listed: write one '- source_model: "
        "...' under 'shared_experts', say the base with residual_scale 0.1.",
        spoil=lambda root: [
            tiny_checkpoint(root / name, model_type="qwen2") for name in ("base", "med", "law")
        ],
    ),
    "a base without a tokenizer": Wrong(
        "./base has no tokenizer, so it cannot read prompts. Copy its tokenizer files into the "
        "folder, or write 'gate_mode: random'.",
        spoil=lambda root: [path.unlink() for path in (root / "base").glob("*token*")],
    ),
    "a prompt longer than the model reads": Wrong(
        "The prompt 'aspirin treats pain' has 4 tokens, and ./base reads 3. Shorten it.",
        spoil=lambda root: configure(root / "base", max_position_embeddings=3),
    ),
    "no such model": Wrong(
        "There is no folder './law'. Did you mean 'lwa'?",
        spoil=lambda root: (root / "law").rename(root / "lwa"),
    ),
    "no such recipe": Wrong("meo.yaml There is no such recipe.", arguments=("meo.yaml",)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_ends_in_one_message(
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = WRONG[name]
    for number, model in enumerate(("base", "med", "law")):
        tiny_checkpoint(tmp_path / model, tune=number or None)
    if wrong.spoil is not None:
        wrong.spoil(tmp_path)
    assert wrong.swap[0] in RECIPE
    (tmp_path / "moe.yaml").write_text(RECIPE.replace(*wrong.swap))
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    assert run(["moe", *wrong.arguments, "-q"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {wrong.message}"), captured.err
    assert captured.err.count("\n") == 1
    assert tree(tmp_path) == before

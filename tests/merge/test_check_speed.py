"""A check of two models of eight billion parameters, from headers alone, in under two seconds."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest

from forge.checkpoints.checkpoint import open_checkpoint
from forge.merge.catalog import METHODS
from forge.merge.check.preflight import check_merge
from forge.recipes.merge_recipe import parse_merge_recipe
from tests.factory import header_bytes, tiny_config, tiny_shapes

pytestmark = pytest.mark.alone

LIMIT_S = 2.0
SIZES = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    "rope_theta": 500000.0,
}  # fmt: skip
SHARDS = 4


def write_large(root: Path, *, last_word: str) -> None:
    """Write a model of the shapes of Llama 3 8B whose data are holes in its files."""
    root.mkdir()
    config = {**tiny_config(), **SIZES}
    shapes = list(tiny_shapes(config).items())
    weight_map: dict[str, str] = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        table: dict[str, object] = {}
        position = 0
        for name, shape in shapes[shard::SHARDS]:
            end = position + 2 * math.prod(shape)
            table[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
            weight_map[name] = file
            position = end
        header = header_bytes(table)
        (root / file).write_bytes(header)
        os.truncate(root / file, len(header) + position)
    index = {"metadata": {}, "weight_map": weight_map}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    (root / "config.json").write_text(json.dumps(config))
    vocab = {f"token{number}": number for number in range(128000)} | {last_word: 128000}
    merges = [[f"token{number}", f"token{number + 1}"] for number in range(0, 120000)]
    document = {"model": {"type": "BPE", "vocab": vocab, "merges": merges}, "added_tokens": []}
    (root / "tokenizer.json").write_text(json.dumps(document))


def test_a_check_of_8b_models(tmp_path: Path) -> None:
    for name, last_word in (("base", "a"), ("one", "a"), ("two", "b")):
        write_large(tmp_path / name, last_word=last_word)
    value = {
        "merge_method": "dare_ties",
        "base_model": str(tmp_path / "base"),
        "models": [
            {"model": str(tmp_path / name), "parameters": {"weight": 0.5, "density": 0.5}}
            for name in ("one", "two")
        ],
        "dtype": "bfloat16",
    }
    # The least of three runs: a shared machine can steal any one of them.
    best = math.inf
    for _ in range(3):
        start = time.process_time()
        recipe = parse_merge_recipe(value, METHODS)
        checkpoints = {model: open_checkpoint(model) for model in recipe.references()}
        report = check_merge(recipe, checkpoints, out=tmp_path / "out")
        best = min(best, time.process_time() - start)
        if best < LIMIT_S:
            break
    assert [(finding.level, finding.code) for finding in report.findings] in (
        [("warning", "tokenizer"), ("warning", "round-trip")],
        [("error", "disk-space"), ("warning", "tokenizer"), ("warning", "round-trip")],
    )
    assert report.models[0].num_parameters == 8_030_261_248
    assert report.output_bytes == 16_060_522_496
    assert report.input_bytes == 3 * 16_060_522_496
    assert best < LIMIT_S

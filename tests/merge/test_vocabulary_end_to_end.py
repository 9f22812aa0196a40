"""A merge of models with different vocabularies loads, encodes and generates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from forge.merge.catalog import METHODS
from forge.merge.run import run_merge
from forge.recipes.merge_recipe import parse_merge_recipe
from tests.factory import read_values, tiny_checkpoint
from tests.merge.test_vocabulary import EMBEDDING, add_tokens


def test_a_union_merges_loads_and_generates(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tiny_checkpoint(tmp_path / "base")
    other = tiny_checkpoint(tmp_path / "other", tune=1, vocab=40, extra_tokens=["zoster"])
    add_tokens(other, ["<|im_start|>"])
    value = {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [{"model": str(other), "parameters": {"weight": 1.0}}],
        "dtype": "bfloat16",
        "tokenizer": {"source": "union", "pad_to_multiple_of": 24},
    }
    out = tmp_path / "out"
    run_merge(parse_merge_recipe(value, METHODS), out, threads=1)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 48
    merged, theirs = read_values(out)[EMBEDDING], read_values(other)[EMBEDDING]
    assert merged.shape == (48, 16)
    # All of one task vector is that model, row by row; the new tokens are its own.
    np.testing.assert_allclose(merged[:32], theirs[:32], rtol=2**-7, atol=1e-6)
    np.testing.assert_array_equal(merged[16:18], theirs[16:18])
    np.testing.assert_array_equal(merged[32:], 0)
    tokenizer = AutoTokenizer.from_pretrained(out)
    inputs = tokenizer("<|im_start|> pain zoster", return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[1, 17, 6, 16]]
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] <= 7

"""Families without a row: merged by the names of their tensors, with a notice; never quantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, T5ForConditionalGeneration

from forge.api import check, merge
from forge.cli.app import run
from tests.factory import read_values, write_safetensors

GRADIENT = """\
merge_method: linear
models:
  - model: {a}
    parameters: {{weight: [1, 0]}}
  - model: {b}
    parameters: {{weight: [0, 1]}}
"""


def save_t5(folder: Path, *, seed: int) -> T5ForConditionalGeneration:
    """Save an encoder of two layers and a decoder of three, in a family without a row."""
    config = AutoConfig.for_model(
        "t5", d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=2, num_decoder_layers=3,
        vocab_size=40, decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    return model


def test_encoder_and_decoder(tmp_path: Path) -> None:
    a, b, out = (tmp_path / name for name in ("a", "b", "out"))
    save_t5(a, seed=0)
    save_t5(b, seed=1)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(GRADIENT.format(a=a, b=b))
    result = merge(recipe, out=out)
    left, right, merged = (read_values(folder) for folder in (a, b, out))
    assert list(merged) == list(left)
    for name, values in merged.items():
        # The decoder is the longest run: a gradient goes along it, and all else has its start.
        share = int(name.split(".")[2]) / 2 if name.startswith("decoder.block.") else 0.0
        expected = (1 - share) * left[name].astype(np.float64) + share * right[name]
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-7, err_msg=name)
    notices = " ".join(result.manifest["notices"])
    assert "'t5' is not in forge's table" in notices
    assert "'decoder.block.<number>.', 3 of them" in notices
    model = AutoModelForSeq2SeqLM.from_pretrained(out).eval()
    ids = torch.tensor([[3, 4, 5]])
    assert torch.isfinite(model(input_ids=ids, decoder_input_ids=ids).logits).all()


def test_names_without_numbers(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "flat", "layer_types": ["x", "y"]}')
        data = np.full(4, number, np.float32).tobytes()
        write_safetensors(folder / "model.safetensors", {"w": ("F32", (4,), data)})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(GRADIENT.format(a=tmp_path / "a", b=tmp_path / "b"))
    found = {finding.code: finding.message for finding in check(recipe).findings}
    assert "no layers were found" in found["architecture-inferred"]
    merge(recipe, out=tmp_path / "out")
    assert read_values(tmp_path / "out")["w"].tolist() == [0, 0, 0, 0]


def test_quantization_says_what_a_row_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_t5(tmp_path / "a", seed=0)
    out = tmp_path / "q"
    assert run(["quantize", str(tmp_path / "a"), "--method", "rtn", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "The decoder blocks of 't5' are not in forge's table" in error
    assert "A row (forge/architectures/block_table.py) needs" in error
    assert not out.exists()

"""The same checkpoint, loaded by the library that its format was made for."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import transformers

from forge import runtime
from tests.runtime.folders import llama, quantized_pair

IDS = torch.arange(4, 44).view(2, 20)


@pytest.mark.parametrize(
    ("format_name", "options", "tolerance"),
    [
        # On CPUs with AVX512-BF16, bitsandbytes rounds weights and activations to bfloat16.
        ("bnb-nf4", {}, 0.03),
        ("bnb-nf4", {"double_quant": True}, 0.03),
        ("bnb-fp4", {}, 0.03),
        # It rounds activations to eight bits; forge does not.
        ("bnb-int8", {}, 0.05),
        ("compressed-tensors", {}, 1e-3),
    ],
)
def test_the_formats_own_library_computes_the_same(
    format_name: str, options: dict[str, bool], tolerance: float, tmp_path: Path
) -> None:
    folder = quantized_pair(llama(), tmp_path, format_name, **options).quantized  # type: ignore[arg-type]
    with warnings.catch_warnings():
        # What other libraries deprecate is no mistake of ours.
        warnings.simplefilter("ignore")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            expected = theirs(IDS).logits.float()
    with torch.no_grad():
        got = runtime.load(folder, dtype="float32")(IDS).logits
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()

"""transformers reads our compressed-tensors checkpoints as their codes, scales and zero points."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from forge.formats.catalog import load_format
from forge.formats.contract import QuantizedWeight, Scheme
from tests.quantize.packed_folder import PROJECTIONS, dequantized_folder, packed_folder

torch = pytest.importorskip("torch")
pytest.importorskip("compressed_tensors")

_KEPT = "model.layers.1.mlp.gate_proj"


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("tie", [False, True])
def test_transformers_reads_what_we_packed(tmp_path: Path, symmetric: bool, tie: bool) -> None:
    from transformers import AutoModelForCausalLM

    weights: dict[str, QuantizedWeight] = {}
    root = packed_folder(
        tmp_path / "packed",
        "compressed-tensors",
        scheme=Scheme(4, 32, symmetric=symmetric),
        kept=(_KEPT,),
        dtype="F16",
        tie=tie,
        change=weights.__setitem__,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float16)
        with torch.no_grad():
            logits = model(torch.arange(4, 20)[None]).logits
        assert len(weights) == 2 * len(PROJECTIONS) - 1
        plain = AutoModelForCausalLM.from_pretrained(dequantized_folder(root, weights))
        with torch.no_grad():
            expected = plain(torch.arange(4, 20)[None]).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)


def test_the_library_reads_our_config() -> None:
    from compressed_tensors.quantization import QuantizationConfig

    layout = load_format("compressed-tensors")
    for symmetric in (False, True):
        scheme = Scheme(4, 64, symmetric=symmetric)
        read = QuantizationConfig.model_validate(layout.quantization_config(scheme, ["lm_head"]))
        group = read.config_groups["group_0"].weights
        assert (group.num_bits, group.group_size, group.symmetric) == (4, 64, symmetric)
        assert (read.ignore, read.format) == (["lm_head"], "pack-quantized")

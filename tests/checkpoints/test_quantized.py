"""Quantized checkpoints are recognized by what they declare and by what they hold."""

from pathlib import Path

import pytest

from forge.checkpoints.header import TensorInfo
from forge.checkpoints.quantized import quantization_of


def _tensor(name: str, dtype: str) -> TensorInfo:
    return TensorInfo(name, (2, 2), dtype, Path("x"), 0, 4)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq, 4 bits"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
         "bitsandbytes, 4 bits"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"x": 1}}, "an unnamed method"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": None}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_a_declaration_counts(config: dict[str, object], expected: str | None) -> None:
    assert quantization_of(config, [_tensor("a.weight", "BF16")]) == expected


@pytest.mark.parametrize(
    ("name", "dtype", "word"),
    [
        ("l.q_proj.weight", "F8_E4M3", "F8_E4M3"),
        ("l.q_proj.weight_scale_inv", "F32", "scaled"),
        ("l.q_proj.qweight", "I32", "GPTQ or AWQ"),
        ("l.q_proj.weight_packed", "I32", "compressed-tensors"),
        ("l.q_proj.weight.absmax", "F32", "packed"),
        ("l.q_proj.weight.quant_state.bitsandbytes__nf4", "U8", "NF4"),
        ("l.q_proj.SCB", "F32", "packed"),
        ("l.q_proj.weight", "I8", "I8 weights"),
        ("l.experts.gate_up_proj_blocks", "U8", "MXFP4"),
    ],
)
def test_a_tensor_gives_it_away(name: str, dtype: str, word: str) -> None:
    described = quantization_of({}, [_tensor("norm.weight", "BF16"), _tensor(name, dtype)])
    assert described is not None
    assert word in described
    assert name in described


def test_integer_buffers_are_not_quantization() -> None:
    buffers = [_tensor("model.embeddings.position_ids", "I64"), _tensor("attn.bias", "BOOL")]
    assert quantization_of({}, [*buffers, _tensor("a.weight", "F16")]) is None

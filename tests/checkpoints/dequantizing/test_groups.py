"""GPTQ, AWQ and packed integers of compressed-tensors, against numbers decoded in the test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from forge.core.errors import CheckpointError, IncompatibleError
from forge.formats.catalog import load_format
from forge.formats.contract import QuantizedWeight, Scheme
from tests.checkpoints.dequantizing.folders import (
    MODULE,
    WEIGHT,
    Floats,
    Tensors,
    opened,
    read,
    rounded,
    stored,
    words,
    write,
)

NUM_OUT, NUM_IN, GROUP = 32, 96, 24
GROUPS = NUM_IN // GROUP


def _random(bits: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    codes = random.integers(0, 1 << bits, (NUM_OUT, NUM_IN))
    zeros = random.integers(0, 1 << bits, (NUM_OUT, GROUPS))
    # Some writers make scales negative.
    scales = random.normal(0, 0.01, (NUM_OUT, GROUPS))
    return codes, zeros, scales


def _numbers(
    codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, groups: np.ndarray
) -> Floats:
    return (codes - zeros[:, groups]) * scales[:, groups].astype(np.float64)


@pytest.mark.parametrize("scale_dtype", ["F16", "BF16"])
@pytest.mark.parametrize("order", ["none", "kept", "shuffled"])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(tmp_path: Path, bits: int, version: str, order: str, scale_dtype: str) -> None:
    codes, zeros, scales = _random(bits)
    scales = rounded(scales, scale_dtype)
    groups = np.arange(NUM_IN) // GROUP
    if order == "shuffled":
        groups = np.random.default_rng(5).permutation(groups)
    lying = (zeros - 1) % (1 << bits) if version == "gptq" else zeros
    tensors: Tensors = {
        f"{MODULE}.qweight": stored("I32", words(codes, bits).T),
        f"{MODULE}.qzeros": stored("I32", words(lying.T, bits)),
        f"{MODULE}.scales": stored(scale_dtype, scales.T),
    }
    if order != "none":
        tensors[f"{MODULE}.g_idx"] = stored("I32", groups)
    declared = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "sym": False,
                "desc_act": order == "shuffled", "checkpoint_format": version}  # fmt: skip
    write(tmp_path, tensors, declared)
    expected = rounded(_numbers(codes, zeros, scales, groups), scale_dtype, "BF16")
    assert np.array_equal(read(tmp_path), expected)


def test_gptq_of_layers_that_differ(tmp_path: Path) -> None:
    tensors: Tensors = {}
    expected = {}
    for module, bits in ((MODULE, 4), (MODULE.replace("q_proj", "k_proj"), 8)):
        codes, zeros, scales = _random(bits, seed=bits)
        scales = rounded(scales, "F16")
        groups = np.arange(NUM_IN) // GROUP
        tensors |= {
            f"{module}.qweight": stored("I32", words(codes, bits).T),
            f"{module}.qzeros": stored("I32", words(zeros.T, bits)),
            f"{module}.scales": stored("F16", scales.T),
            f"{module}.g_idx": stored("I32", groups),
        }
        expected[module] = rounded(_numbers(codes, zeros, scales, groups), "F16")
    declared = {"quant_method": "gptq", "bits": 4, "group_size": GROUP,
                "checkpoint_format": "gptq_v2", "dynamic": {"+:.*k_proj": {"bits": 8}}}  # fmt: skip
    write(tmp_path, tensors, declared, torch_dtype="float16")
    for module, values in expected.items():
        assert np.array_equal(read(tmp_path, f"{module}.weight"), values)
    write(tmp_path, tensors, {**declared, "dynamic": {}}, torch_dtype="float16")
    with pytest.raises(CheckpointError, match=r"k_proj.* of 8 bits, and config.json states 4"):
        opened(tmp_path)


@pytest.mark.parametrize("group_size", [GROUP, -1])
@pytest.mark.parametrize("scale_dtype", ["F16", "BF16"])
def test_awq_gemm(tmp_path: Path, scale_dtype: str, group_size: int) -> None:
    codes, zeros, scales = _random(4)
    groups = np.arange(NUM_IN) // GROUP
    if group_size < 0:
        zeros, scales, groups = zeros[:, :1], scales[:, :1], groups * 0
    scales = rounded(scales, scale_dtype)
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])

    def woven(rows: np.ndarray) -> np.ndarray:
        return words(rows.reshape(len(rows), -1, 8)[..., order].reshape(len(rows), -1), 4)

    tensors = {
        f"{MODULE}.qweight": stored("I32", woven(codes.T)),
        f"{MODULE}.qzeros": stored("I32", woven(zeros.T)),
        f"{MODULE}.scales": stored(scale_dtype, scales.T),
    }
    write(tmp_path, tensors, {"quant_method": "awq", "bits": 4, "group_size": group_size,
                              "zero_point": True, "version": "gemm"})  # fmt: skip
    expected = rounded(_numbers(codes, zeros, scales, groups), scale_dtype, "BF16")
    assert np.array_equal(read(tmp_path), expected)


@pytest.mark.parametrize("version", ["gemv", "gemv_fast"])
def test_awq_of_the_other_versions(tmp_path: Path, version: str) -> None:
    random = np.random.default_rng(1)
    codes = random.integers(0, 16, (32, 128), dtype=np.uint8)
    zeros = random.integers(0, 16, (32, 4), dtype=np.uint8)
    scales = random.uniform(0.001, 0.1, (32, 4)).astype(np.float16)
    # What AutoAWQ itself packs is compared in tests/oracle.
    layout = load_format(f"awq-{version}")
    made = layout.pack(QuantizedWeight(codes, scales, zeros, Scheme(4, 32)))
    kinds = {np.dtype(np.int32): "I32", np.dtype(np.int16): "I16", np.dtype(np.float16): "F16"}
    tensors = {f"{MODULE}.{name}": stored(kinds[part.dtype], part) for name, part in made.items()}
    write(tmp_path, tensors, layout.quantization_config(Scheme(4, 32), ()))
    groups = np.arange(128) // 32
    expected = rounded(
        _numbers(codes.astype(int), zeros.astype(int), scales, groups), "F16", "BF16"
    )
    assert np.array_equal(read(tmp_path), expected)


def test_packed_integers_in_reordered_columns(tmp_path: Path) -> None:
    codes, zeros, scales = _random(4)
    scales = rounded(scales, "BF16")
    groups = np.random.default_rng(2).permutation(np.arange(NUM_IN) // GROUP)
    tensors = {
        f"{MODULE}.weight_packed": stored("I32", words(codes, 4)),
        f"{MODULE}.weight_scale": stored("BF16", scales),
        f"{MODULE}.weight_shape": stored("I64", [NUM_OUT, NUM_IN]),
        f"{MODULE}.weight_zero_point": stored("I32", words(zeros.T, 4).T),
        f"{MODULE}.weight_g_idx": stored("I32", groups),
    }
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP,
               "symmetric": False, "actorder": "group"}  # fmt: skip
    write(tmp_path, tensors, {"quant_method": "compressed-tensors", "format": "pack-quantized",
                              "config_groups": {"group_0": {"weights": weights}}})  # fmt: skip
    expected = rounded(_numbers(codes, zeros, scales, groups), "BF16")
    assert np.array_equal(read(tmp_path), expected)


def test_two_schemes_in_one_checkpoint(tmp_path: Path) -> None:
    """Packed integers are told apart by their shapes, and FP8 stands beside them."""
    tensors: Tensors = {}
    expected = {}
    for module, bits in ((MODULE, 4), (MODULE.replace("q_proj", "k_proj"), 8)):
        codes, _, scales = _random(bits, seed=bits)
        scales = rounded(scales, "BF16")
        tensors |= {
            f"{module}.weight_packed": stored("I32", words(codes, bits)),
            f"{module}.weight_scale": stored("BF16", scales),
            f"{module}.weight_shape": stored("I64", [NUM_OUT, NUM_IN]),
        }
        middle = np.full(scales.shape, 1 << (bits - 1))
        expected[module] = rounded(
            _numbers(codes, middle, scales, np.arange(NUM_IN) // GROUP), "BF16"
        )
    float8 = MODULE.replace("q_proj", "v_proj")
    tensors |= {f"{float8}.weight": stored("F8_E4M3", np.full((8, 8), 0x39)),
                f"{float8}.weight_scale": stored("BF16", [0.5])}  # fmt: skip
    integers = {"type": "int", "group_size": GROUP}
    groups = {
        "four": {"weights": {"num_bits": 4, **integers}, "format": "pack-quantized"},
        "eight": {"weights": {"num_bits": 8, **integers}, "format": "pack-quantized"},
        "fp8": {"weights": {"num_bits": 8, "type": "float"}, "format": "float-quantized"},
        "caches": {"weights": None, "output_activations": {"num_bits": 8}},
    }
    write(tmp_path, tensors, {"quant_method": "compressed-tensors", "format": "mixed-precision",
                              "config_groups": groups})  # fmt: skip
    for module, values in expected.items():
        assert np.array_equal(read(tmp_path, f"{module}.weight"), values)
    assert (read(tmp_path, f"{float8}.weight") == 1.125 * 0.5).all()


@pytest.mark.parametrize(
    ("declared", "words_of_it"),
    [
        ({"quant_method": "gptq", "bits": 5}, "5 bits"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "marlin"),
        ({"quant_method": "awq", "bits": 4, "version": "exllama"}, "exllama"),
        ({"quant_method": "awq", "bits": 4, "backend": "llm-awq"}, "llm-awq"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24",
          "config_groups": {"a": {"weights": {"num_bits": 4}}}}, "marlin-24"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized",
          "config_groups": {"a": {"weights": {"num_bits": 16}}}}, "16 bits"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized",
          "transform_config": {"x": 1}, "config_groups": {"a": {"weights": {"num_bits": 4}}}},
         "rotated"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized",
          "sparsity_config": {"format": "sparse-24-bitmask"},
          "config_groups": {"a": {"weights": {"num_bits": 4}}}}, "sparse-24-bitmask"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"),
        ({"quant_method": "hqq"}, "HQQ"),
        ({"quant_method": "auto-round"}, r"AutoRound.*auto_gptq"),
        ({"quant_method": "gtpq"}, "Did you mean 'gptq'"),
        ({"bits": 4}, "unnamed method"),
    ],
)  # fmt: skip
def test_what_is_not_decoded_is_refused_by_name(
    tmp_path: Path, declared: dict[str, object], words_of_it: str
) -> None:
    write(tmp_path, {f"{MODULE}.qweight": stored("I32", np.zeros((4, 8)))}, declared)
    with pytest.raises(IncompatibleError, match=words_of_it) as caught:
        opened(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "full precision" in str(caught.value) or "Export it" in str(caught.value)


def _gptq(tmp_path: Path, **changes: tuple[str, object] | None) -> Path:
    codes, zeros, scales = _random(4)
    tensors: Tensors = {
        f"{MODULE}.qweight": stored("I32", words(codes, 4).T),
        f"{MODULE}.qzeros": stored("I32", words(zeros.T, 4)),
        f"{MODULE}.scales": stored("F16", scales.T),
        f"{MODULE}.g_idx": stored("I32", np.arange(NUM_IN) // GROUP),
    }
    for suffix, change in changes.items():
        if change is None:
            del tensors[f"{MODULE}.{suffix}"]
        else:
            tensors[f"{MODULE}.{suffix}"] = stored(change[0], np.asarray(change[1]))
    return write(tmp_path, tensors, {"quant_method": "gptq", "bits": 4, "group_size": GROUP,
                                     "checkpoint_format": "gptq_v2"})  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qzeros": None}, r"lacks 'model.layers.0.self_attn.q_proj.qzeros'"),
        ({"scales": None}, r"lacks 'model.layers.0.self_attn.q_proj.scales'"),
        ({"qweight": None}, r"not one of its tensors is"),
        ({"qweight": ("I32", np.zeros((12, 16)))}, r"qzeros' is I32 \[4, 4\] and should"),
        ({"qweight": ("F16", np.zeros((12, 32)))}, r"qweight' is F16 .* and should be I32"),
        ({"qweight": ("I32", np.zeros(12))}, r"no matrix"),
        ({"qweight": ("I32", np.zeros((0, 32)))}, r"no matrix"),
        ({"qzeros": ("I32", np.zeros((3, 4)))}, r"qzeros' is I32 \[3, 4\]"),
        ({"g_idx": ("I32", np.zeros(95))}, r"does not hold 95"),
        ({"g_idx": ("I64", np.zeros(96))}, r"g_idx' is I64"),
        ({"scales": ("I8", np.zeros((4, 32)))}, r"scales' is I8"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_named_before_anything_is_read(
    tmp_path: Path, changes: dict[str, tuple[str, object] | None], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened(_gptq(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"g_idx": ("I32", np.full(NUM_IN, GROUPS))}, r"q_proj.weight': 'g_idx' names groups"),
        ({"g_idx": ("I32", np.full(NUM_IN, -1))}, r"'g_idx' names groups"),
        ({"scales": ("F16", np.full((GROUPS, NUM_OUT), np.inf))}, r"'scales' holds a NaN or an"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named_when_they_are_read(
    tmp_path: Path, changes: dict[str, tuple[str, object] | None], message: str
) -> None:
    source = opened(_gptq(tmp_path, **changes)).source
    with pytest.raises(CheckpointError, match=message):
        source.read(WEIGHT)

"""Whatever a stranger's config says, a quantized checkpoint opens or is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forge.core.errors import ForgeError
from tests.checkpoints.dequantizing.folders import MODULE, WEIGHT, Tensors, opened, stored, write

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 1 << 70)
    | st.floats(allow_nan=False)
    | st.sampled_from(["gptq", "gemm", "group", "float", "pack-quantized", "nf4", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["weights", "num_bits", "group_size", "block_structure", "format"]),
            inner, max_size=4,
        )
    ),
    max_leaves=8,
)  # fmt: skip
KEYS = (
    "bits", "group_size", "sym", "desc_act", "checkpoint_format", "version", "format", "backend",
    "zero_point", "dynamic", "weight_block_size", "quant_algo", "config_groups", "sparsity_config",
    "transform_config", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "is_marlin_format",
)  # fmt: skip
METHODS = ("gptq", "awq", "compressed-tensors", "bitsandbytes", "fp8", "modelopt", "mxfp4")


def _everything() -> Tensors:
    """Return layers of all families, each under a name of its own."""
    other = MODULE.replace("q_proj", "{}_proj").format
    return {
        f"{MODULE}.qweight": stored("I32", np.zeros((4, 8))),
        f"{MODULE}.qzeros": stored("I32", np.zeros((1, 1))),
        f"{MODULE}.scales": stored("F16", np.ones((1, 8))),
        f"{other('k')}.weight_packed": stored("I32", np.zeros((8, 4))),
        f"{other('k')}.weight_scale": stored("BF16", np.ones((8, 1))),
        f"{other('k')}.weight_shape": stored("I64", [8, 32]),
        f"{other('v')}.weight": stored("F8_E4M3", np.zeros((8, 8))),
        f"{other('v')}.weight_scale": stored("F32", np.ones((1, 1))),
        f"{other('o')}.weight": stored("I8", np.zeros((8, 8))),
        f"{other('o')}.SCB": stored("F32", np.ones(8)),
        "model.layers.0.mlp.experts.down_proj_blocks": stored("U8", np.zeros((1, 2, 1, 16))),
        "model.layers.0.mlp.experts.down_proj_scales": stored("U8", np.full((1, 2, 1), 127)),
    }


def _parts_of(method: str) -> Tensors:
    marks = {
        "gptq": "q_proj", "awq": "q_proj", "compressed-tensors": "k_proj", "fp8": "v_proj",
        "modelopt": "v_proj", "bitsandbytes": "o_proj", "mxfp4": "experts",
    }  # fmt: skip
    return {name: part for name, part in _everything().items() if marks[method] in name}


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    method=st.sampled_from(METHODS), declared=st.dictionaries(st.sampled_from(KEYS), JSON),
    config=st.dictionaries(st.sampled_from(["torch_dtype", "dtype", "text_config"]), JSON),
)  # fmt: skip
def test_a_strangers_config_is_never_a_crash(
    tmp_path: Path, method: str, declared: dict[str, object], config: dict[str, object]
) -> None:
    write(tmp_path, _parts_of(method), {"quant_method": method, **declared}, **config)
    _opens_or_is_refused(tmp_path)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    method=st.sampled_from(METHODS), place=st.integers(0, 3),
    dtype=st.sampled_from(["I32", "F16", "F32", "BF16", "U8", "I8", "I64", "F8_E4M3"]),
    shape=st.lists(st.integers(0, 9), max_size=4), is_gone=st.booleans(),
)  # fmt: skip
def test_a_strangers_part_is_never_a_crash(
    tmp_path: Path, method: str, place: int, dtype: str, shape: list[int], is_gone: bool
) -> None:
    parts = _parts_of(method)
    name = sorted(parts)[place % len(parts)]
    if is_gone:
        del parts[name]
    else:
        parts[name] = stored(dtype, np.ones(shape))
    weights = {"num_bits": 4, "type": "int", "group_size": 32}
    declared = {
        "quant_method": method, "bits": 4, "group_size": 32, "load_in_8bit": True,
        "format": "gemm" if method == "awq" else "pack-quantized" if "tens" in method else "gptq",
        "config_groups": {"a": {"weights": weights}},
    }  # fmt: skip
    write(tmp_path, parts, declared)
    _opens_or_is_refused(tmp_path)


def _opens_or_is_refused(root: Path) -> None:
    message = "read"
    try:
        source = opened(root).source
        for name in source.names():
            assert source.read(name).nbytes == source.info(name).nbytes
    except ForgeError as error:
        message = str(error)
    assert message
    assert "\n" not in message


def test_these_parts_do_open(tmp_path: Path) -> None:
    weights = {"num_bits": 4, "type": "int", "group_size": 32}
    for method in METHODS:
        declared = {
            "quant_method": method, "bits": 4, "group_size": 32,
            "config_groups": {"a": {"weights": weights, "format": "pack-quantized"}},
        }  # fmt: skip
        write(tmp_path, _parts_of(method), declared)
        if method == "awq":
            with pytest.raises(ForgeError, match="q_proj"):
                opened(tmp_path)
        else:
            assert len(opened(tmp_path).source.names()) == 2
    assert WEIGHT.startswith(MODULE)

"""A LoRA on a base equals what PEFT makes of it, and what cannot be merged is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from forge.checkpoints.checkpoint import open_checkpoint
from forge.checkpoints.floats import decode, encode
from forge.core.errors import CheckpointError
from forge.recipes.reference import ModelReference
from tests.factory import (
    bf16_bits,
    bf16_values,
    from_bytes,
    read_values,
    tiny_checkpoint,
    to_bytes,
    write_safetensors,
)

_TARGETS = ("self_attn.q_proj", "mlp.down_proj")


def _adapter(
    root: Path,
    config: dict[str, object] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    *,
    dtype: str = "F32",
) -> Path:
    root.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]}
    (root / "adapter_config.json").write_text(json.dumps(settings | (config or {})))
    if tensors is None:
        generator = np.random.default_rng(5)
        tensors = {
            "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight":
                generator.standard_normal((2, 16)),
            "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight":
                generator.standard_normal((16, 2)),
        }  # fmt: skip
    rows = {name: (dtype, array.shape, to_bytes(array, dtype)) for name, array in tensors.items()}
    write_safetensors(root / "adapter_model.safetensors", rows)
    return root


def _read(base: Path, adapter: Path) -> dict[str, np.ndarray]:
    source = open_checkpoint(ModelReference(str(base), lora=ModelReference(str(adapter)))).source
    values = {}
    for name in source.names():
        info = source.info(name)
        values[name] = from_bytes(source.read(name), info.dtype, info.shape)
    source.close()
    return values


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("adapter_dtype", ["BF16", "F32"])
def test_is_the_formula_rounded_once(tmp_path: Path, dtype: str, adapter_dtype: str) -> None:
    base = tiny_checkpoint(tmp_path / "base", dtype=dtype)
    adapter = _adapter(tmp_path / "adapter", dtype=adapter_dtype)
    name = "model.layers.1.self_attn.q_proj.weight"
    factors = read_values(adapter)
    a, b = (
        factors[f"base_model.model.model.layers.1.self_attn.q_proj.lora_{x}.weight"].astype("f8")
        for x in "AB"
    )
    # The types have different room; the float32 sum before the last rounding may be off by half
    # a unit of float32.
    unit = {"BF16": 2**-8, "F16": 2**-11, "F32": 2**-23, "F64": 2**-51}[dtype]
    exact = read_values(base)[name].astype("f8") + 3 * (b @ a)
    ours = _read(base, adapter)[name]
    assert np.all(np.abs(ours - exact) <= np.abs(exact) * unit * 1.001 + 1e-9)
    others = _read(base, adapter)
    for other, values in read_values(base).items():
        if other != name:
            assert np.array_equal(values, others[other])


def test_blocks_of_rows_do_not_change_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = tiny_checkpoint(tmp_path / "base"), _adapter(tmp_path / "adapter")
    whole = _read(base, adapter)
    monkeypatch.setattr("forge.checkpoints.lora.rows.BLOCK_ELEMENTS", 40)
    blocks = _read(base, adapter)
    assert all(np.array_equal(values, blocks[name]) for name, values in whole.items())


def test_files_include_the_adapter(tmp_path: Path) -> None:
    base, adapter = tiny_checkpoint(tmp_path / "base"), _adapter(tmp_path / "adapter")
    reference = ModelReference(str(base), lora=ModelReference(str(adapter)))
    checkpoint = open_checkpoint(reference)
    assert checkpoint.local_paths == (str(base), str(adapter))
    source = checkpoint.source
    assert source.files() == (
        base / "model.safetensors",
        adapter / "adapter_model.safetensors",
        adapter / "adapter_config.json",
    )
    assert source.label == str(reference)
    source.close()


@pytest.mark.parametrize(
    ("config", "word"),
    [
        *(
            ({"peft_type": kind}, f"'{kind}'")
            for kind in ("LOHA", "LOKR", "VERA", "OFT", "BOFT", "ADALORA", "LN_TUNING", "XLORA")
        ),
        ({"peft_type": None}, "None"),
        ({"bias": "some"}, "bias 'some'"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"init_lora_weights": "OLoRA"}, "OLoRA"),
        ({"init_lora_weights": "loftq"}, "loftq"), ({"init_lora_weights": "lora_ga"}, "lora_ga"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"use_qalora": True}, "use_qalora"), ({"arrow_config": {"top_k": 2}}, "arrow_config"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"), ({"use_bdlora": {"x": 1}}, "use_bdlora"),
        ({"some_future_feature": 7}, "some_future_feature"),
    ],
)  # fmt: skip
def test_refuses_by_name(tmp_path: Path, config: dict[str, object], word: str) -> None:
    base, adapter = tiny_checkpoint(tmp_path / "base"), _adapter(tmp_path / "adapter", config)
    with pytest.raises(CheckpointError, match="forge does not merge") as caught:
        _read(base, adapter)
    assert word in str(caught.value)


_Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (lambda: {"base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": np.ones((2, 16)),
                  "base_model.model.model.layers.7.mlp.up_proj.lora_B.weight": np.ones((32, 2))},
         "'model.layers.7.mlp.up_proj.weight', which .* does not have.* Did you mean"),
        (lambda: {f"{_Q}.lora_A.weight": np.ones((2, 16))}, "only one of the two factors"),
        (lambda: {f"{_Q}.lora_A.weight": np.ones((2, 15)), f"{_Q}.lora_B.weight": np.ones((16, 2))},
         "does not fit"),
        (lambda: {f"{_Q}.lora_A.weight": np.ones((3, 16)), f"{_Q}.lora_B.weight": np.ones((16, 3))},
         "with r = 2"),
        (lambda: {f"{_Q}.lora_magnitude_vector": np.ones(16)}, "nothing in adapter_config"),
        (lambda: {f"{_Q}.lora_A.weight": np.ones((2, 16)), f"{_Q}.lora_B.weight": np.ones((16, 2)),
                  f"{_Q}.lora_magnitude_vector": np.ones(16)}, "nothing in adapter_config"),
        (lambda: {f"{_Q}.lora_A.weight": np.ones((2, 16)), f"{_Q}.lora_B.weight": np.ones((16, 2)),
                  f"{_Q}.lora_B.bias": np.ones(16)}, "no bias in"),
        (lambda: {f"{_Q}.lora_Q.weight": np.ones((2, 16))}, "not a part of an adapter"),
        (lambda: {f"{_Q}.lora_A.other.weight": np.ones((2, 16))}, "not a part of an adapter"),
        (lambda: {"weight": np.ones(16)}, "not a part of an adapter"),
        (lambda: {"lm_head.weight": np.ones((32, 17))}, "is \\[32, 16\\]"),
        (lambda: {"lm_head.weight": np.ones((40, 16))}, "of one part alone.*32.*40"),
        (lambda: {f"{_Q}.base_layer.weight": np.ones((8, 16))}, "is \\[16, 16\\]"),
        (lambda: {f"{_Q}.base_layer.weight": np.ones((16, 16)), f"{_Q}.weight": np.ones((16, 16)),
                  f"{_Q}.modules_to_save.weight": np.ones((16, 16))}, "twice"),
        (lambda: {"model.new.weight": np.ones((3, 3))}, "'model.new.weight', which"),
        (lambda: {"base_model.model.model.norm.lora_A.weight": np.ones((2, 16)),
                  "base_model.model.model.norm.lora_B.weight": np.ones((16, 2))}, "of matrices"),
        (lambda: {f"{_Q}.lora_A.weight": np.ones((2, 16)), f"{_Q}.lora_B.weight": np.ones((16, 2)),
                  f"{_Q}.lora_embedding_A": np.ones((2, 16)),
                  f"{_Q}.lora_embedding_B": np.ones((16, 2))}, "twice"),
        (dict, "holds no tensors"),
    ],
)  # fmt: skip
def test_an_adapter_must_fit(
    tmp_path: Path, tensors: Callable[[], dict[str, np.ndarray]], message: str
) -> None:
    base = tiny_checkpoint(tmp_path / "base")
    adapter = _adapter(tmp_path / "adapter", tensors=tensors())
    with pytest.raises(CheckpointError, match=message):
        _read(base, adapter)


@pytest.mark.parametrize(
    "config",
    [{"r": 0}, {"r": True}, {"r": "8"}, {"lora_alpha": None}, {"lora_alpha": float("nan")}],
)
def test_rank_and_alpha_are_checked(tmp_path: Path, config: dict[str, object]) -> None:
    base, adapter = tiny_checkpoint(tmp_path / "base"), _adapter(tmp_path / "adapter", config)
    with pytest.raises(CheckpointError, match="no valid r and lora_alpha"):
        _read(base, adapter)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_incomplete_adapter(tmp_path: Path, file: str) -> None:
    base, adapter = tiny_checkpoint(tmp_path / "base"), _adapter(tmp_path / "adapter")
    (adapter / file).unlink()
    with pytest.raises(CheckpointError, match=f"has no {file}"):
        _read(base, adapter)


def test_rounding_to_bf16_equals_torch_on_every_kind_of_value() -> None:
    import torch

    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    edges = np.array([0, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 1, 0x3F808000, 0x3F818000], np.uint32)
    values = np.concatenate([bits, edges]).view(np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16)
    ours = torch.from_numpy(encode(values, "BF16").view(np.int16)).view(torch.bfloat16)
    numbers = ~np.isnan(values)
    assert torch.equal(ours[numbers].view(torch.int16), expected[numbers].view(torch.int16))
    assert torch.isnan(ours[~numbers]).all()
    assert np.array_equal(encode(values[numbers], "BF16"), bf16_bits(values[numbers]))


def test_decoding_is_exact() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    decoded = decode(memoryview(bits.tobytes()), "BF16")
    assert np.array_equal(decoded, bf16_values(bits), equal_nan=True)
    halves = bits.view(np.float16)
    decoded = decode(memoryview(halves.tobytes()), "F16")
    assert np.array_equal(decoded, halves.astype(np.float32), equal_nan=True)

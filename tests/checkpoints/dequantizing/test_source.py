"""The source of decoded weights: bytes with scales, bitsandbytes' states, order, hostile files."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forge.checkpoints.checkpoint import open_checkpoint
from forge.checkpoints.dequantizing.families import dequantize
from forge.checkpoints.dequantizing.source import DequantizingSource
from forge.checkpoints.header_source import HeaderOnlySource
from forge.checkpoints.source import SafetensorsSource, open_safetensors
from forge.core.errors import CheckpointError, IncompatibleError
from forge.formats.numbers import float8_values
from forge.recipes.reference import ModelReference
from tests.checkpoints.dequantizing.folders import (
    MODULE,
    WEIGHT,
    Tensors,
    opened,
    read,
    rounded,
    stored,
    write,
)
from tests.factory import write_safetensors

FP8 = {"quant_method": "fp8", "weight_block_size": [4, 8]}


def _fp8(
    shape: tuple[int, ...], grid: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return bytes, scales, and the numbers of the bytes."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, shape, dtype=np.uint8)
    codes[codes % 128 == 127] = 0
    scales = random.uniform(0.01, 2, grid).astype(np.float32)
    return codes, scales, float8_values("F8_E4M3")[codes].astype(np.float64)


def test_blocks_may_be_cut_at_the_edges_as_those_of_deepseek_are(tmp_path: Path) -> None:
    codes, scales, numbers = _fp8((10, 20), (3, 3))
    write(tmp_path, {WEIGHT: stored("F8_E4M3", codes),
                     f"{WEIGHT}_scale_inv": stored("F32", scales)}, FP8)  # fmt: skip
    spread = np.repeat(np.repeat(scales, 4, axis=0), 8, axis=1)[:10, :20]
    product = (numbers.astype(np.float32) * spread).astype(np.float64)
    assert np.array_equal(read(tmp_path), rounded(product, "BF16"))


@pytest.mark.parametrize(
    ("method", "name", "grid"),
    [("fbgemm_fp8", "weight_scale", (10, 1)), ("modelopt", "weight_scale", ()),
     ("fp8", "weight_scale", (1,)), ("fp8", "weight_scale_inv", ())],
)  # fmt: skip
def test_scales_of_rows_and_of_tensors(
    tmp_path: Path, method: str, name: str, grid: tuple[int, ...]
) -> None:
    codes, scales, numbers = _fp8((10, 20), grid)
    tensors = {
        WEIGHT: stored("F8_E4M3", codes),
        f"{MODULE}.{name}": stored("F32", scales),
        f"{MODULE}.input_scale": stored("F32", [0.5]),
        "model.layers.0.self_attn.k_scale": stored("F32", [0.5]),
    }
    checkpoint = opened(write(tmp_path, tensors, {"quant_method": method}))
    product = (numbers.astype(np.float32) * scales).astype(np.float64)
    assert np.array_equal(read(tmp_path), rounded(product, "BF16"))
    assert set(checkpoint.source.names()) == {WEIGHT, "model.norm.weight"}
    assert checkpoint.notices == (
        f"'{tmp_path}' is not in full precision: 1 of 2 tensors are FP8, and were read as "
        "bfloat16. What quantization lost is not there.",
        f"'{tmp_path}': 2 scales of activations and caches, such as "
        f"'{MODULE}.input_scale', are left out; weights in full precision have none.",
    )


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({WEIGHT: stored("F8_E4M3", np.zeros((8, 8)))}, r"is FP8 and has no scale"),
        ({WEIGHT: stored("F8_E4M3", np.zeros((8, 8))),
          f"{WEIGHT}_scale_inv": stored("F32", np.ones((3, 3)))}, r"fits no sharing of scales"),
        ({WEIGHT: stored("F8_E4M3", np.zeros((8, 8))),
          f"{WEIGHT}_scale_inv": stored("I32", np.ones((2, 1)))}, r"is I32 \[2, 1\] and should be"),
        ({WEIGHT: stored("F8_E4M3", np.zeros(8)),
          f"{WEIGHT}_scale_inv": stored("F32", [1.0])}, r"fits no sharing of scales"),
        ({WEIGHT: stored("F8_E4M3", np.zeros((8, 8))),
          f"{WEIGHT}_scale_inv": stored("F32", np.ones((2, 1))),
          f"{MODULE}.qzeros": stored("I32", [1])}, r"qzeros' belongs to no layer"),
        ({WEIGHT: stored("F8_E4M3", np.zeros((8, 8))),
          f"{WEIGHT}_scale_inv": stored("F32", np.ones((2, 1))),
          "model.layers.0.mlp.up_proj.weight": stored("I8", np.zeros((8, 8)))},
         r"up_proj.weight' belongs to no layer that is whole as FP8"),
    ],
)  # fmt: skip
def test_what_fits_no_layer_is_named(tmp_path: Path, tensors: Tensors, message: str) -> None:
    write(tmp_path, tensors, FP8)
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path)


def test_experts_of_mxfp4_are_whole_or_named(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.down_proj"
    parts: Tensors = {f"{name}_blocks": stored("U8", np.zeros((2, 4, 1, 16))),
                      f"{name}_scales": stored("U8", np.full((2, 4, 1), 127))}  # fmt: skip
    write(tmp_path, parts, {"quant_method": "mxfp4"})
    assert opened(tmp_path).source.info(name).shape == (2, 32, 4)
    write(tmp_path, {f"{name}_blocks": parts[f"{name}_blocks"]}, {"quant_method": "mxfp4"})
    with pytest.raises(CheckpointError, match=r"lacks '.*down_proj_scales'"):
        opened(tmp_path)
    other = {f"{name.replace('down', 'gate_up')}_scales": parts[f"{name}_scales"]}
    write(tmp_path, {**parts, **other}, {"quant_method": "mxfp4"})
    with pytest.raises(CheckpointError, match=r"gate_up_proj_scales' belongs to no layer"):
        opened(tmp_path)
    parts[f"{name}_scales"] = stored("U8", np.full((2, 4, 1), 255))
    source = opened(write(tmp_path, parts, {"quant_method": "mxfp4"})).source
    with pytest.raises(CheckpointError, match=r"down_proj': 'scales' holds a NaN"):
        source.read(name)
    parts[f"{name}_blocks"] = stored("U8", np.zeros((2, 4, 1, 8)))
    write(tmp_path, parts, {"quant_method": "mxfp4"})
    with pytest.raises(CheckpointError, match=r"should be experts, outputs, blocks, 16 bytes"):
        opened(tmp_path)


@pytest.mark.parametrize("size", [[4], [4, 0], [4, True], "4", [4, -8]])
def test_block_sizes_of_a_stranger(tmp_path: Path, size: object) -> None:
    write(tmp_path, {WEIGHT: stored("F8_E4M3", np.zeros((8, 8)))},
          {"quant_method": "fp8", "weight_block_size": size})  # fmt: skip
    with pytest.raises(CheckpointError, match="weight_block_size in"):
        opened(tmp_path)


def _nf4(tmp_path: Path, **changes: object) -> Path:
    state: dict[str, object] = {
        "quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [8, 16], **changes,
    }  # fmt: skip
    from forge.formats.bnb_4bit import code_values

    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    tensors = {
        WEIGHT: stored("U8", np.full((64, 1), 0xF0)),
        f"{WEIGHT}.absmax": stored("F32", np.full(2, 0.5)),
        f"{WEIGHT}.quant_map": stored("F32", code_values("nf4")),
        f"{WEIGHT}.quant_state.bitsandbytes__nf4": stored("U8", text),
    }
    return write(tmp_path, tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True})


def test_nf4_as_it_should_be(tmp_path: Path) -> None:
    values = read(_nf4(tmp_path)).reshape(-1)
    assert (values[::2] == 0.5).all()
    assert (values[1::2] == -0.5).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [1 << 40, 1 << 40]}, {"shape": [8, -16]}, {"shape": [8, 17]}, {"shape": "x"},
        {"shape": [True, 128]}, {"shape": []}, {"blocksize": 0}, {"blocksize": 63},
        {"blocksize": 128}, {"dtype": "float64"}, {"quant_type": "fp4"}, {"quant_type": "int4"},
        {"quant_type": ["nf4"]}, {"nested_offset": "x"}, {"nested_offset": 1e999},
        {"nested_blocksize": -1},
    ],
    ids=str,
)  # fmt: skip
def test_states_of_a_stranger(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="q_proj"):
        opened(_nf4(tmp_path, **changes))


def test_a_state_that_is_no_json(tmp_path: Path) -> None:
    root = _nf4(tmp_path)
    data = (root / "model.safetensors").read_bytes()
    (root / "model.safetensors").write_bytes(data.replace(b'{"quant_type"', b'{"quant_typ["'))
    with pytest.raises(CheckpointError, match="quant_state"):
        opened(root)


def test_4_bits_cannot_be_told_by_their_headers(tmp_path: Path) -> None:
    local = open_safetensors(_nf4(tmp_path), label="org/model")
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(IncompatibleError, match="Download it first"):
        dequantize(HeaderOnlySource(local), config, found="nf4")


def test_other_families_need_headers_alone(tmp_path: Path) -> None:
    codes, scales, _ = _fp8((10, 20), (3, 3))
    write(tmp_path, {WEIGHT: stored("F8_E4M3", codes),
                     f"{WEIGHT}_scale_inv": stored("F32", scales)}, FP8)  # fmt: skip
    local = open_safetensors(tmp_path, label="org/model")
    config = json.loads((tmp_path / "config.json").read_text())
    source = dequantize(HeaderOnlySource(local), config, found="fp8").source
    assert source.info(WEIGHT).shape == (10, 20)
    assert source.info(WEIGHT).dtype == "BF16"
    assert source.info(WEIGHT).nbytes == 400
    with pytest.raises(CheckpointError, match="has not been downloaded"):
        source.read(WEIGHT)


def test_conv1d_gets_its_own_orientation_back(tmp_path: Path) -> None:
    """GPT-2 stores [in, out], and every quantizer turns it to [out, in]."""
    name = "transformer.h.0.attn.c_attn"
    codes = np.arange(-60, 60, dtype=np.int8).reshape(30, 4)
    tensors: Tensors = {
        f"{name}.weight": stored("I8", codes),
        f"{name}.SCB": stored("F32", np.full(30, 127.0)),
        "transformer.wte.weight": stored("BF16", np.ones((8, 10))),
    }
    write(tmp_path, tensors, {"quant_method": "bitsandbytes", "load_in_8bit": True},
          model_type="gpt2", n_layer=1, n_embd=10, n_head=1)  # fmt: skip
    assert np.array_equal(read(tmp_path, f"{name}.weight"), codes.T.astype(np.float32))


# -- the source ------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Twelve FP8 layers, the tenth before the second in the file."""
    tensors: Tensors = {}
    for number in sorted(range(12), key=str):
        name = f"model.layers.{number}.mlp.up_proj.weight"
        tensors[f"{name}_scale_inv"] = stored("F32", np.full((1, 1), number + 1.0))
    for number in sorted(range(12), key=str):
        name = f"model.layers.{number}.mlp.up_proj.weight"
        tensors[name] = stored("F8_E4M3", np.full((8, 8), 0x38))
    return write(tmp_path, tensors, {"quant_method": "fp8"}, num_hidden_layers=12)


def test_layers_come_in_their_order(many: Path) -> None:
    names = opened(many).source.names()
    layers = [f"model.layers.{number}.mlp.up_proj.weight" for number in range(12)]
    assert names == (*layers, "model.norm.weight")


def test_many_threads_read_what_one_reads(many: Path) -> None:
    source = opened(many).source
    alone = [bytes(source.read(name)) for name in source.names()]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda name: bytes(source.read(name)), source.names() * 4))
    assert together == alone * 4


def test_a_source_keeps_the_contract_of_sources(many: Path) -> None:
    checkpoint = opened(many)
    source = checkpoint.source
    assert isinstance(source, DequantizingSource)
    assert source.label == str(many)
    assert source.files() == (many / "model.safetensors",)
    for name in source.names():
        source.prefetch(name)
        view = source.read(name)
        assert view.readonly
        assert view.nbytes == source.info(name).nbytes
    with pytest.raises(CheckpointError, match="has no tensor 'x'"):
        source.info("x")
    with pytest.raises(CheckpointError, match="has no tensor"):
        source.read("model.layers.0.mlp.up_proj.weight_scale_inv")
    source.close()
    with pytest.raises(CheckpointError, match="after it was closed"):
        source.read("model.layers.0.mlp.up_proj.weight")


def test_nothing_is_decoded_before_it_is_read(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from forge.checkpoints.dequantizing import float8

    calls: list[int] = []
    real = float8.numbers_of

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(float8, "numbers_of", counted)
    source = opened(many).source
    assert not calls
    source.read("model.layers.0.mlp.up_proj.weight")
    assert len(calls) == 1


def test_what_runs_a_checkpoint_gets_it_as_it_is_stored(many: Path) -> None:
    checkpoint = open_checkpoint(ModelReference(str(many)), stored=True)
    assert isinstance(checkpoint.source, SafetensorsSource)
    assert "quantization_config" in checkpoint.config
    assert not checkpoint.notices
    assert "quantization_config" not in opened(many).config


def test_a_part_of_a_model_may_say_how_it_is_quantized(many: Path) -> None:
    config = json.loads((many / "config.json").read_text())
    declared = config.pop("quantization_config")
    config["text_config"] = {"quantization_config": declared, "hidden_size": 8}
    (many / "config.json").write_text(json.dumps(config))
    checkpoint = opened(many)
    assert isinstance(checkpoint.source, DequantizingSource)
    assert checkpoint.config["text_config"] == {"hidden_size": 8}


def test_a_weight_that_is_there_twice(tmp_path: Path) -> None:
    tensors: Tensors = {
        f"{MODULE}.weight_packed": stored("I32", np.zeros((8, 1))),
        f"{MODULE}.weight_scale": stored("BF16", np.ones((8, 1))),
        f"{MODULE}.weight_shape": stored("I64", [8, 8]),
        WEIGHT: stored("BF16", np.zeros((8, 8))),
    }
    weights = {"num_bits": 4, "type": "int", "group_size": 8}
    write(tmp_path, tensors, {"quant_method": "compressed-tensors", "format": "pack-quantized",
                              "config_groups": {"a": {"weights": weights}}})  # fmt: skip
    with pytest.raises(CheckpointError, match=r"q_proj.weight' (twice|is BF16)"):
        opened(tmp_path)


def test_a_config_without_a_type_leaves_that_of_the_library(many: Path) -> None:
    config = json.loads((many / "config.json").read_text())
    for key, dtype in (("float16", "F16"), ("float32", "F32"), ("float64", "BF16"), (3, "BF16")):
        (many / "config.json").write_text(json.dumps({**config, "torch_dtype": key}))
        source = opened(many).source
        assert source.info("model.layers.3.mlp.up_proj.weight").dtype == dtype


def test_an_adapter_on_a_quantized_model_is_merged_into_its_numbers(tmp_path: Path) -> None:
    """What QLoRA trained: the adapter on the decoded weight, rounded once."""
    codes, scales, _ = _fp8((16, 24), (4, 3))
    quantized = write(
        tmp_path / "quantized",
        {WEIGHT: stored("F8_E4M3", codes), f"{WEIGHT}_scale_inv": stored("F32", scales)}, FP8,
    )  # fmt: skip
    dense = write(tmp_path / "dense", {WEIGHT: stored("BF16", read(quantized))}, None)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    random = np.random.default_rng(1)
    prefix = f"base_model.model.{MODULE}"
    write_safetensors(adapter / "adapter_model.safetensors", {
        f"{prefix}.lora_A.weight": stored("F32", random.standard_normal((2, 24))),
        f"{prefix}.lora_B.weight": stored("F32", random.standard_normal((16, 2))),
    })  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
    }))  # fmt: skip
    both = [
        open_checkpoint(ModelReference(str(base), lora=ModelReference(str(adapter))))
        for base in (quantized, dense)
    ]
    assert bytes(both[0].source.read(WEIGHT)) == bytes(both[1].source.read(WEIGHT))
    assert bytes(both[0].source.read(WEIGHT)) != bytes(opened(dense).source.read(WEIGHT))
    assert any("not in full precision" in text for text in both[0].notices)

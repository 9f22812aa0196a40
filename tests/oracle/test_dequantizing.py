"""Quantized sources equal, bit for bit, what the formats' own libraries dequantize to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors.torch")

from safetensors.torch import save_file  # noqa: E402

from forge.checkpoints.checkpoint import open_checkpoint  # noqa: E402
from forge.core.dtypes import DTYPES  # noqa: E402
from forge.recipes.reference import ModelReference  # noqa: E402

MODULE = "model.layers.0.mlp.up_proj"
DTYPES_OF_MODELS = ("bfloat16", "float16", "float32")


def write(
    root: Path, tensors: Mapping[str, Any], declared: Mapping[str, object], *, dtype: str | None
) -> None:
    """Write a checkpoint of one quantized layer and a norm."""
    root.mkdir()
    norm = torch.ones(8, dtype=getattr(torch, dtype or "bfloat16"))
    plain = {"model.norm.weight": norm, **tensors}
    save_file({name: tensor.contiguous() for name, tensor in plain.items()},
              root / "model.safetensors", {"format": "pt"})  # fmt: skip
    config: dict[str, object] = {
        "model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8, "vocab_size": 8,
        "quantization_config": dict(declared),
    }  # fmt: skip
    if dtype is not None:
        config["dtype"] = dtype
    (root / "config.json").write_text(json.dumps(config))


def read(root: Path, name: str = f"{MODULE}.weight") -> Any:
    """Return a tensor as forge's source gives it."""
    source = open_checkpoint(ModelReference(str(root))).source
    info = source.info(name)
    view = bytearray(source.read(name))
    dtype = getattr(torch, DTYPES[info.dtype].torch_name)
    return torch.frombuffer(view, dtype=dtype).view(info.shape)


def assert_same(found: Any, expected: Any) -> None:
    """Compare two tensors bit for bit."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    kind = torch.int32 if found.element_size() == 4 else torch.int16
    assert torch.equal(found.contiguous().view(kind), expected.contiguous().view(kind))


def hard(*shape: int, seed: int = 0) -> Any:
    """Return values over many magnitudes, with zeros among them."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=random)
    values *= torch.exp2(torch.randint(-6, 3, (*shape[:-1], 1), generator=random).float())
    values[torch.rand(*shape, generator=random) < 0.02] = 0.0
    return values


# -- bitsandbytes ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES_OF_MODELS)
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize(("shape", "block"), [((48, 130), 64), ((33, 10), 64), ((64, 256), 128)])
def test_4_bits_of_bitsandbytes(
    tmp_path: Path, quant_type: str, double_quant: bool, dtype: str, shape: tuple[int, int],
    block: int,
) -> None:  # fmt: skip
    functional = pytest.importorskip("bitsandbytes.functional")
    own = torch.bfloat16 if dtype == "float32" else getattr(torch, dtype)
    values = hard(*shape).to(own)
    packed, state = functional.quantize_4bit(
        values, blocksize=block, quant_type=quant_type, compress_statistics=double_quant
    )
    parts = {f"{MODULE}.weight.{key}": part for key, part in state.as_dict(packed=True).items()}
    declared = {"quant_method": "bitsandbytes", "load_in_4bit": True,
                "bnb_4bit_quant_type": quant_type}  # fmt: skip
    write(tmp_path / "m", {f"{MODULE}.weight": packed, **parts}, declared, dtype=dtype)
    expected = functional.dequantize_4bit(packed, state)
    assert expected.dtype == own
    if quant_type == "fp4":
        # The library's vector loop makes 0 of the code of minus zero, its loop for the rest -0.
        expected = expected + 0.0
    assert_same(read(tmp_path / "m"), expected.to(getattr(torch, dtype)))


@pytest.mark.parametrize("dtype", DTYPES_OF_MODELS)
def test_8_bits_of_bitsandbytes(tmp_path: Path, dtype: str) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    codes, scales, _ = functional.int8_vectorwise_quant(hard(40, 70).half())
    parts = {f"{MODULE}.weight": codes, f"{MODULE}.SCB": scales,
             f"{MODULE}.weight_format": torch.tensor(0, dtype=torch.uint8)}  # fmt: skip
    write(tmp_path / "m", parts, {"quant_method": "bitsandbytes", "load_in_8bit": True},
          dtype=dtype)  # fmt: skip
    expected = functional.int8_vectorwise_dequant(codes, scales)
    assert_same(read(tmp_path / "m"), expected.to(getattr(torch, dtype)))


# -- transformers ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES_OF_MODELS)
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("grid", [(2, 3), (1, 1), (64, 1), ()])
def test_fp8_of_transformers(tmp_path: Path, kind: str, grid: tuple[int, ...], dtype: str) -> None:
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    weight = hard(64, 96).to(getattr(torch, kind))
    scale = (hard(*grid, seed=1).abs() + 0.01 if grid else torch.tensor(0.037)).float()
    declared: dict[str, object] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    if grid == (2, 3):
        declared["weight_block_size"] = [32, 32]
    write(tmp_path / "m", {f"{MODULE}.weight": weight, f"{MODULE}.weight_scale_inv": scale},
          declared, dtype=dtype)  # fmt: skip
    one = module.Fp8Dequantize(None)
    expected = one._dequantize_one(weight, scale, output_dtype=getattr(torch, dtype))
    assert_same(read(tmp_path / "m"), expected)


def test_fp8_of_stacked_experts(tmp_path: Path) -> None:
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    weight = hard(3, 64, 96).to(torch.float8_e4m3fn)
    scale = hard(3, 2, 3, seed=2).abs().float() + 0.01
    write(tmp_path / "m", {name: weight, f"{name}_scale_inv": scale},
          {"quant_method": "fp8", "weight_block_size": [32, 32]}, dtype="bfloat16")  # fmt: skip
    expected = module.Fp8Dequantize(None)._dequantize_one(weight, scale, torch.bfloat16)
    assert_same(read(tmp_path / "m", name), expected)


def test_fp8_with_powers_of_two(tmp_path: Path) -> None:
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    weight = hard(64, 96).to(torch.float8_e4m3fn)
    scale = torch.randint(110, 135, (2, 3), dtype=torch.uint8)
    write(tmp_path / "m", {f"{MODULE}.weight": weight, f"{MODULE}.weight_scale_inv": scale},
          {"quant_method": "fp8", "weight_block_size": [32, 32], "scale_fmt": "ue8m0"},
          dtype="bfloat16")  # fmt: skip
    expected = module.Fp8Dequantize(None)._dequantize_one(weight, scale, torch.bfloat16)
    assert_same(read(tmp_path / "m"), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mxfp4_of_transformers(tmp_path: Path, dtype: str) -> None:
    module = pytest.importorskip("transformers.integrations.mxfp4")
    name = "model.layers.0.mlp.experts.down_proj"
    random = torch.Generator().manual_seed(4)
    blocks = torch.randint(0, 256, (2, 24, 5, 16), dtype=torch.uint8, generator=random)
    low, high = (0, 255) if dtype == "bfloat16" else (105, 140)
    scales = torch.randint(low, high, (2, 24, 5), dtype=torch.uint8, generator=random)
    bias = torch.zeros(2, 24, dtype=torch.bfloat16)
    write(tmp_path / "m", {f"{name}_blocks": blocks, f"{name}_scales": scales,
                           f"{name}_bias": bias},
          {"quant_method": "mxfp4"}, dtype=dtype)  # fmt: skip
    expected = module.convert_moe_packed_tensors(blocks, scales, dtype=getattr(torch, dtype))
    assert_same(read(tmp_path / "m", name), expected)
    names = open_checkpoint(ModelReference(str(tmp_path / "m"))).source.names()
    assert set(names) == {"model.norm.weight", name, f"{name}_bias"}


# -- compressed-tensors ----------------------------------------------------------------------


def compressed(
    weight: Any, arguments: Mapping[str, object], layout: str, *, activations: bool = False
) -> tuple[dict[str, Any], Any, dict[str, object]]:
    """Return the parts of a weight, what the library makes of them, and its config."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(
        targets=["Linear"], weights=args,
        input_activations=QuantizationArgs(num_bits=8, type=args.type) if activations else None,
        format=layout,
    )  # fmt: skip
    state = {"weight": weight}
    rows, columns = weight.shape
    if args.strategy == "block":
        high, wide = args.block_structure
        tiles = weight.reshape(rows // high, high, columns // wide, wide)
        low, top = tiles.amin(dim=(1, 3)), tiles.amax(dim=(1, 3))
    elif args.strategy == "tensor":
        low, top = weight.min().reshape(1), weight.max().reshape(1)
    else:
        size = args.group_size if args.strategy in ("group", "tensor_group") else columns
        groups = weight.reshape(rows, -1, size)
        low, top = groups.amin(dim=-1), groups.amax(dim=-1)
    if args.strategy == "tensor_group":
        divisor = (448.0 * 6.0 / weight.abs().max().float()).reshape(1)
        state["weight_global_scale"] = divisor
        scale, zero = calculate_qparams(low, top, args, global_scale=divisor)
    else:
        scale, zero = calculate_qparams(low, top, args)
    state |= {"weight_scale": scale, "weight_zero_point": zero}
    compressor = BaseCompressor.get_value_from_registry(layout)
    parts = compressor.compress(state, scheme)
    expected = compressor.decompress(dict(parts), scheme)["weight"]
    config = {
        "quant_method": "compressed-tensors", "format": layout,
        "quantization_status": "compressed", "ignore": ["lm_head"],
        "config_groups": {"group_0": json.loads(scheme.model_dump_json())},
    }  # fmt: skip
    return parts, expected, config


INTEGERS = [
    ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}, 128),
    ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32,
                        "symmetric": False}, 128),
    ("pack-quantized", {"num_bits": 4, "strategy": "channel"}, 101),
    ("pack-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}, 101),
    ("pack-quantized", {"num_bits": 8, "strategy": "group", "group_size": 64}, 128),
    ("pack-quantized", {"num_bits": 3, "strategy": "group", "group_size": 32}, 96),
    ("int-quantized", {"num_bits": 8, "strategy": "channel"}, 101),
    ("int-quantized", {"num_bits": 8, "strategy": "tensor"}, 101),
    ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}, 64),
    ("int-quantized", {"num_bits": 8, "strategy": "group", "group_size": 32}, 96),
]  # fmt: skip
FLOATS = [
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}, 101),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}, 101),
    ("naive-quantized", {"num_bits": 8, "type": "float", "strategy": "block",
                         "block_structure": [16, 32]}, 96),
    ("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group",
                              "group_size": 16, "scale_dtype": "torch.float8_e4m3fn",
                              "zp_dtype": "torch.float8_e4m3fn"}, 128),
    ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group",
                              "group_size": 32, "scale_dtype": "torch.uint8",
                              "zp_dtype": "torch.uint8"}, 128),
    ("mxfp8-quantized", {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32,
                         "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}, 128),
]  # fmt: skip


@pytest.mark.parametrize("own", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(
    ("layout", "arguments", "columns"), INTEGERS + FLOATS,
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_compressed_tensors(
    tmp_path: Path, layout: str, arguments: Mapping[str, object], columns: int, own: str
) -> None:
    pytest.importorskip("compressed_tensors")
    weight = hard(48, columns).to(getattr(torch, own))
    parts, expected, config = compressed(weight, arguments, layout)
    write(tmp_path / "m", {f"{MODULE}.{name}": part for name, part in parts.items()}, config,
          dtype="bfloat16")  # fmt: skip
    assert_same(read(tmp_path / "m"), expected.to(torch.bfloat16))
    far = (expected.float() - weight.float()).norm() / weight.float().norm()
    assert far < 0.25

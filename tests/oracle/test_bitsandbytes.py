"""bitsandbytes itself, and transformers on top of it, must agree with forge in every bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from forge.formats import bnb_4bit
from forge.formats.bnb_state import read_state
from forge.formats.raw_weight import RawWeight
from forge.quantize.run import run_quantize
from forge.recipes.quantize_types import QuantizeRecipe, Variant
from forge.recipes.reference import ModelReference
from tests.formats.test_bnb_formats import quantized_4bit, quantized_int8

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")

QuantType = Literal["nf4", "fp4"]
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
VARIANTS = {
    "nf4": Variant("bnb-nf4", 4, 64),
    "nf4-dq": Variant("bnb-nf4", 4, 64, double_quant=True),
    "fp4": Variant("bnb-fp4", 4, 64),
    "int8": Variant("bnb-int8", 8, 0),
}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # With several threads torch sums a mean in another order than with one.
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _hard(shape: tuple[int, int], dtype: Any) -> Any:
    """Return values with all that is special: zeros of both signs, empty blocks, tiny and large."""
    generator = torch.Generator().manual_seed(shape[0] * 1000 + shape[1])
    values = torch.randn(shape, generator=generator)
    values *= torch.rand((shape[0], 1), generator=generator)
    flat = values.view(-1)
    flat[64:128] = 0
    flat[70:72] = -0.0
    flat[128:192] *= 1e-6
    flat[192:256] = -flat[192:256].abs()
    flat[256:320] *= 1000
    # Values that lie on the boundary between two codes of a block whose scale is a power of two.
    table = torch.from_numpy(bnb_4bit.code_values("nf4"))
    middles = (table[:-1] + table[1:]) / 2
    room = min(15, max(0, flat.numel() - 321))
    flat[320 : 320 + room] = middles[:room] * 4
    if room:
        flat[320 + room] = 4.0
    return values.to(dtype)


def _raw(values: Any, dtype: str) -> RawWeight:
    data = values.contiguous().view(torch.uint8).reshape(-1).numpy()
    return RawWeight(data, dtype, tuple(values.shape))


SHAPES = [(1, 1), (1, 2), (3, 43), (8, 64), (7, 127), (65, 63), (64, 256), (129, 257), (700, 3001)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double_quant", [False, True], ids=["plain", "dq"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_4bit_parts_are_equal(quant_type: QuantType, double_quant: bool, dtype: str) -> None:
    import bitsandbytes.functional as functional

    for shape in SHAPES:
        values = _hard(shape, DTYPES[dtype])
        packed, state = functional.quantize_4bit(
            values, quant_type=quant_type, compress_statistics=double_quant
        )
        expected = {f"weight.{key}": part for key, part in state.as_dict(packed=True).items()}
        expected["weight"] = packed
        found = quantized_4bit(_raw(values, dtype), quant_type, double_quant=double_quant)
        assert found.keys() == expected.keys()
        for key, part in expected.items():
            array = part.numpy()
            assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape), (shape, key)
            assert found[key].tobytes() == array.tobytes(), (shape, key)


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_parts_are_equal(dtype: str) -> None:
    import bitsandbytes.functional as functional

    for shape in SHAPES:
        values = _hard(shape, DTYPES[dtype]) / 100
        codes, scales, _ = functional.int8_vectorwise_quant(values.half())
        found = quantized_int8(_raw(values, dtype))
        assert found["weight"].tobytes() == codes.numpy().tobytes(), shape
        assert found["SCB"].tobytes() == scales.numpy().tobytes(), shape


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_it_reads_what_bitsandbytes_wrote(quant_type: QuantType) -> None:
    import bitsandbytes.functional as functional

    for double_quant in (False, True):
        values = _hard((48, 130), torch.float32)
        packed, state = functional.quantize_4bit(
            values, quant_type=quant_type, compress_statistics=double_quant
        )
        parts = {f"weight.{key}": part.numpy() for key, part in state.as_dict(packed=True).items()}
        parts["weight"] = packed.numpy()
        stated = parts[f"weight.quant_state.bitsandbytes__{quant_type}"].tobytes()
        found = bnb_4bit.dequantize(parts, read_state(stated), "F32")
        expected = functional.dequantize_4bit(packed, state).numpy()
        assert np.array_equal(found, expected)


def _llama() -> Any:
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=96,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def _gemma() -> Any:
    config = transformers.Gemma2Config(
        hidden_size=48, intermediate_size=100, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=20, vocab_size=96,
    )  # fmt: skip
    return transformers.Gemma2ForCausalLM(config)


def _neox() -> Any:
    config = transformers.GPTNeoXConfig(
        hidden_size=64, intermediate_size=132, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=96,
    )  # fmt: skip
    return transformers.GPTNeoXForCausalLM(config)


def _gpt2() -> Any:
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=96)
    return transformers.GPT2LMHeadModel(config)


def _opt() -> Any:
    config = transformers.OPTConfig(
        hidden_size=32, ffn_dim=68, num_hidden_layers=2, num_attention_heads=4, vocab_size=96,
        word_embed_proj_dim=32,
    )  # fmt: skip
    return transformers.OPTForCausalLM(config)


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": _llama, "gemma": _gemma, "neox": _neox, "gpt2": _gpt2, "opt": _opt,
}  # fmt: skip


def _by_transformers(source: Path, variant: Variant, out: Path) -> None:
    if variant.bits == 8:
        config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=variant.format.removeprefix("bnb-"),
            bnb_4bit_use_double_quant=variant.double_quant,
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(source, quantization_config=config)
    model.save_pretrained(out)


def _tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    from safetensors import safe_open

    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
                found[name] = (str(tensor.dtype), tuple(tensor.shape), data)
    return found


def _agree(source: Path, variant: Variant, place: Path) -> None:
    _by_transformers(source, variant, place / "theirs")
    recipe = QuantizeRecipe("bnb", (variant,), ModelReference(str(source)))
    run_quantize(recipe, place / "ours", threads=2)
    theirs, ours = _tensors(place / "theirs"), _tensors(place / "ours")
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name] == expected, name
    configs = [
        json.loads((place / side / "config.json").read_text()) for side in ("theirs", "ours")
    ]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    # Version and what only loading adds apart, the rest is the source's.
    for key in configs[0].keys() - {"transformers_version"}:
        assert configs[0][key] == configs[1].get(key, configs[0][key]), key


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "gemma", "neox"])
def test_whole_checkpoints_are_equal(tmp_path: Path, family: str, dtype: str, variant: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += torch.randn(parameter.shape) * 0.1
    model.to(DTYPES[dtype]).save_pretrained(tmp_path / "source")
    _agree(tmp_path / "source", VARIANTS[variant], tmp_path)


@pytest.mark.parametrize("variant", ["nf4-dq", "int8"])
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_turned_weights_and_other_names(tmp_path: Path, family: str, variant: str) -> None:
    torch.manual_seed(1)
    FAMILIES[family]().to(torch.bfloat16).save_pretrained(tmp_path / "source")
    _agree(tmp_path / "source", VARIANTS[variant], tmp_path)


@pytest.mark.parametrize(
    ("stored", "stated"), [("F32", "bfloat16"), ("F32", "float16"), ("BF16", "float32")]
)
@pytest.mark.parametrize("variant", ["nf4-dq", "int8"])
def test_a_config_that_states_another_type(
    tmp_path: Path, stored: str, stated: str, variant: str
) -> None:
    torch.manual_seed(2)
    _llama().to(DTYPES[stored]).save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": stated}))
    _agree(tmp_path / "source", VARIANTS[variant], tmp_path)


def test_shards_and_a_tied_head(tmp_path: Path) -> None:
    torch.manual_seed(3)
    _gemma().to(torch.bfloat16).save_pretrained(tmp_path / "source", max_shard_size="20KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 2
    _agree(tmp_path / "source", VARIANTS["nf4-dq"], tmp_path)


def test_kept_modules_are_named_so_that_they_load(tmp_path: Path) -> None:
    torch.manual_seed(4)
    _llama().to(torch.bfloat16).save_pretrained(tmp_path / "source")
    recipe = QuantizeRecipe(
        "bnb", (VARIANTS["int8"],), ModelReference(str(tmp_path / "source")),
        keep=("layers.1", "down_proj"),
    )  # fmt: skip
    run_quantize(recipe, tmp_path / "ours")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report.values())
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["model.layers.0.mlp.up_proj"] == "Linear8bitLt"
    assert kinds["model.layers.0.mlp.down_proj"] == "Linear"
    assert kinds["model.layers.1.mlp.up_proj"] == kinds["lm_head"] == "Linear"

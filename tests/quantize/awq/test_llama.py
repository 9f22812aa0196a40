"""The decoder that is written out computes what transformers does, bit by bit, or stays away."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from forge.checkpoints.checkpoint import open_checkpoint
from forge.quantize.awq import bodies
from forge.quantize.awq.llama import LlamaDecoder, rotary_frequencies
from forge.quantize.awq.llama_shape import llama_shape
from forge.quantize.awq.run import quantize_blocks
from forge.quantize.awq.settings import AwqSettings
from forge.quantize.contract import BlockResult
from forge.recipes.reference import ModelReference
from tests.architectures.tiny_models import tiny_model
from tests.quantize.awq.models import SCHEME, TOKENS_BT, save_with_outliers

CASES = ("llama", "llama grouped", "llama biases", "mistral", "qwen2", "qwen3")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PLAIN = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}


def _config(model: PreTrainedModel) -> dict[str, object]:
    found: dict[str, object] = json.loads(model.config.to_json_string(use_diff=False))
    return found


def _outputs_of_blocks(decoder: torch.nn.Module, ids: torch.Tensor) -> list[torch.Tensor]:
    outputs: list[torch.Tensor] = []
    layers = decoder.get_submodule("layers")
    handles = [
        layer.register_forward_hook(
            lambda _module, _inputs, output: outputs.append(
                output[0] if isinstance(output, tuple) else output
            )
        )
        for layer in layers.children()
    ]
    with torch.no_grad():
        decoder(input_ids=ids)
    for handle in handles:
        handle.remove()
    return outputs


@pytest.mark.parametrize("num_tokens", [1, 48])
@pytest.mark.parametrize("case", CASES)
def test_blocks_compute_what_those_of_transformers_do(case: str, num_tokens: int) -> None:
    model = tiny_model(case)
    shape = llama_shape(_config(model), num_tokens=num_tokens)
    assert shape is not None
    decoder = LlamaDecoder(shape)
    theirs = model.get_submodule("model")
    lacking = decoder.load_state_dict(theirs.state_dict(), strict=False, assign=True)
    assert lacking.missing_keys == []
    assert lacking.unexpected_keys == ["norm.weight"]
    ids = torch.from_numpy(TOKENS_BT[:, :num_tokens])
    ours = _outputs_of_blocks(decoder, ids)
    expected = _outputs_of_blocks(theirs, ids)
    assert len(ours) == len(expected) == 2
    assert all(torch.equal(*pair) for pair in zip(ours, expected, strict=True))


@pytest.mark.parametrize("rotary", [{}, LLAMA3])
@pytest.mark.parametrize("is_old", [False, True])
def test_rotary_frequencies_are_those_of_transformers(
    rotary: dict[str, object], is_old: bool
) -> None:
    """Older configs keep the base outside, and call the rest 'rope_scaling'."""
    settings: dict[str, object] = {**PLAIN, "head_dim": 16}
    if is_old:
        settings |= {"rope_theta": 5e5, "rope_scaling": dict(rotary) or None}
    else:
        settings.pop("rope_theta")
        settings["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5, **rotary}
    shape = llama_shape(settings, num_tokens=48)
    assert shape is not None
    assert (shape.scaling is None) == (not rotary)
    read = CONFIG_MAPPING["llama"](**{k: v for k, v in settings.items() if k != "model_type"})
    expected = AutoModelForCausalLM.from_config(read).get_submodule("model.rotary_emb")
    assert torch.equal(rotary_frequencies(shape), expected.get_buffer("inv_freq"))


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "granite"},
        {"hidden_act": "gelu"},
        {"hidden_act": None},
        {"num_key_value_heads": None},
        {"num_key_value_heads": 3},
        {"num_hidden_layers": "2"},
        {"rms_norm_eps": None},
        {"rope_theta": None},
        {"rope_theta": True},
        {"partial_rotary_factor": 0.5},
        {"head_dim": 15},
        {"head_dim": 512},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {k: v for k, v in LLAMA3.items() if k != "factor"}},
        {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}},
        {"rope_scaling": LLAMA3, "original_max_position_embeddings": 32},
        {"rope_scaling": LLAMA3, "rope_parameters": {"rope_theta": 1e4}},
        {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}, "rope_theta": None},
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"model_type": "mistral"},
        {"model_type": "mistral", "sliding_window": 48},
        {"model_type": "qwen2", "use_sliding_window": True},
        {"model_type": "qwen3"},
    ],
)
def test_what_is_written_otherwise_is_left_to_transformers(change: dict[str, object]) -> None:
    assert llama_shape(PLAIN, num_tokens=48) is not None
    assert llama_shape(PLAIN | change, num_tokens=48) is None


@pytest.mark.parametrize("window", [None, 49])
def test_a_window_that_holds_every_sequence_is_none(window: int | None) -> None:
    config = PLAIN | {"model_type": "mistral", "sliding_window": window}
    assert llama_shape(config, num_tokens=48) is not None


def _quantized(folder: Path, search: str) -> list[BlockResult]:
    settings = AwqSettings(threads=2, search=search, error_feedback=search == "gram")
    checkpoint = open_checkpoint(ModelReference(str(folder)))
    return list(quantize_blocks(checkpoint, TOKENS_BT, SCHEME, settings))


@pytest.mark.parametrize("case", ["llama grouped", "mistral", "qwen3"])
@pytest.mark.parametrize("search", ["sketch", "gram", "module"])
def test_codes_do_not_depend_on_who_builds_the_decoder(
    case: str, search: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_with_outliers(case, tmp_path)
    ours = _quantized(tmp_path, search)
    monkeypatch.setattr(bodies, "llama_shape", lambda *_, **__: None)
    theirs = _quantized(tmp_path, search)
    assert len(ours) == len(theirs) == 2
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.statistics == other.statistics
        assert mine.weights.keys() == other.weights.keys()
        for module, weight in mine.weights.items():
            assert np.array_equal(weight.codes_OI, other.weights[module].codes_OI)
            assert np.array_equal(weight.scales_OG, other.weights[module].scales_OG)
            assert np.array_equal(weight.zeros_OG, other.weights[module].zeros_OG)
        for name, plain in mine.folded.items():
            assert np.array_equal(plain.data, other.folded[name].data)


_FRESH = """
import sys
from pathlib import Path
import numpy as np
from forge.checkpoints.checkpoint import open_checkpoint
from forge.quantize.awq.run import quantize_blocks
from forge.quantize.awq.settings import AwqSettings
from forge.formats.contract import Scheme
from forge.recipes.reference import ModelReference

checkpoint = open_checkpoint(ModelReference(sys.argv[1]))
tokens = np.arange(3, 67).reshape(2, 32)
results = list(quantize_blocks(checkpoint, tokens, Scheme(4, 16), AwqSettings(threads=1)))
print(len(results), sorted({"transformers", "accelerate", "sympy", "scipy"} & set(sys.modules)))
"""


def test_a_llama_is_quantized_without_transformers(tmp_path: Path) -> None:
    save_with_outliers("llama grouped", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", _FRESH, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split(maxsplit=1) == ["2", "[]\n"]

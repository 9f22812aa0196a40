"""Every format loads into a transformers model that computes what its codes stand for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from forge import runtime
from forge.core.errors import CheckpointError, ForgeError, IncompatibleError, OutputError
from forge.runtime.linear import QuantizedLinear
from tests.factory import tiny_checkpoint
from tests.runtime.folders import FORMATS, Pair, llama, quantized_pair

IDS = torch.arange(4, 44).view(2, 20)


def reference(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def logits(model: transformers.PreTrainedModel, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


def assert_same_model(pair: Pair) -> transformers.PreTrainedModel:
    """Compare with the dense twin in float32, logits and greedy tokens; return the model."""
    model, twin = runtime.load(pair.quantized, dtype="float32"), reference(pair.dense)
    expected = logits(twin)
    assert (logits(model) - expected).abs().max() <= 2e-5 * expected.abs().max()
    greedy = {"max_new_tokens": 8, "do_sample": False}
    assert (
        model.generate(IDS[:, :5], **greedy).tolist()
        == twin.generate(IDS[:, :5], **greedy).tolist()
    )
    return model


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_format(format_name: str, tmp_path: Path) -> None:
    model = assert_same_model(quantized_pair(llama(), tmp_path, format_name))
    packed = [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    assert len(packed) == 14
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("format_name", "options"),
    [
        ("awq-gemm", {"group_size": 32}),
        ("gptq", {"bits": 8}),
        ("compressed-tensors", {"bits": 8, "group_size": 32}),
        ("bnb-nf4", {"double_quant": True}),
    ],
)
def test_variants(format_name: str, options: dict[str, int], tmp_path: Path) -> None:
    assert_same_model(quantized_pair(llama(), tmp_path, format_name, **options))  # type: ignore[arg-type]


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    pair = quantized_pair(llama(tie_word_embeddings=True), tmp_path, "awq-gemm")
    model = assert_same_model(pair)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_biases_are_kept(tmp_path: Path) -> None:
    model = llama(attention_bias=True)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter)
    assert_same_model(quantized_pair(model, tmp_path, "awq-gemm"))


def test_conv1d(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=128, n_head=4, n_layer=2, n_positions=64, vocab_size=64, bos_token_id=1,
        eos_token_id=2, initializer_range=0.1,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert_same_model(quantized_pair(model, tmp_path, "awq-gemm", transposed=True))


def test_gpt_neox(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=64, max_position_embeddings=64, initializer_range=0.1,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert_same_model(quantized_pair(model, tmp_path, "bnb-nf4"))


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_experts(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
        "num_experts_per_tok": 2, "initializer_range": 0.1, "pad_token_id": 3,
    }  # fmt: skip
    config = (
        transformers.MixtralConfig(num_local_experts=4, **sizes)
        if family == "mixtral"
        else transformers.Qwen2MoeConfig(
            num_experts=4, moe_intermediate_size=64, shared_expert_intermediate_size=64, **sizes
        )
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    loaded = assert_same_model(
        quantized_pair(
            model, tmp_path, "awq-gemm",
            chosen=lambda name, tensor: ".layers." in name and tensor.ndim == 2
            and not name.endswith((".gate.weight", "shared_expert_gate.weight")),
        )
    )  # fmt: skip
    experts = loaded.model.layers[0].mlp.experts
    assert type(experts).__name__ == "QuantizedExperts"
    assert len(experts.experts) == 4


def test_a_plain_checkpoint(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "plain", shards=2)
    model = runtime.load(folder, threads=torch.get_num_threads())
    assert model.dtype == torch.bfloat16
    ids = torch.arange(4, 12).view(1, 8)
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert torch.equal(logits(model, ids), logits(expected, ids))
    assert model.generation_config.eos_token_id == 2
    model.save_pretrained(tmp_path / "saved")


def test_the_type_is_the_checkpoints_unless_asked(tmp_path: Path) -> None:
    pair = quantized_pair(llama(), tmp_path, "awq-gemm")
    assert runtime.load(pair.quantized).dtype == torch.bfloat16
    assert runtime.load(str(pair.quantized), dtype=torch.float16).dtype == torch.float16


def test_saving_is_refused(tmp_path: Path) -> None:
    pair = quantized_pair(llama(), tmp_path, "awq-gemm")
    model = runtime.load(pair.quantized)
    with pytest.raises(OutputError, match="cannot be saved"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert model.config.quantization_config["quant_method"] == "awq"


def _edit(folder: Path, name: str, change: dict[str, object]) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def _rewrite(folder: Path, drop: str | None = None, **shapes: torch.Tensor) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    tensors = load_file(shard)
    tensors |= {name.replace("__", "."): tensor for name, tensor in shapes.items()}
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    if drop is not None:
        del tensors[drop], index["weight_map"][drop]
    save_file(tensors, shard, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def refused(folder: Path, *words: str, kind: type[ForgeError] = CheckpointError) -> None:
    with pytest.raises(kind) as caught:
        runtime.load(folder)
    for word in words:
        assert word in str(caught.value)


def test_damage_is_named(tmp_path: Path) -> None:
    up = "model.layers.1.mlp.up_proj"
    folder = quantized_pair(llama(), tmp_path, "awq-gemm").quantized
    _rewrite(folder, f"{up}.scales")
    refused(folder, f"'{up}.scales'", "incomplete")
    _rewrite(folder, **{f"{up}.scales".replace(".", "__"): torch.zeros(3, 192).half()})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"][f"{up}.scales"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, f"'{up}.scales' is F16 [3, 192]", "F16 [2, 192]")


def test_a_missing_plain_tensor_is_named(tmp_path: Path) -> None:
    folder = quantized_pair(llama(), tmp_path, "awq-gemm").quantized
    shard = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(shard)
    del tensors["model.norm.weight"]
    save_file(tensors, shard, {"format": "pt"})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.norm.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "lacks the tensors 'model.norm.weight'")


def test_another_models_config_is_noticed(tmp_path: Path) -> None:
    folder = quantized_pair(llama(), tmp_path, "awq-gemm").quantized
    _edit(folder, "config.json", {"intermediate_size": 256})
    refused(folder, "down_proj", "is [128, 192] in the files", "[128, 256]")
    _edit(folder, "config.json", {"intermediate_size": 192, "num_hidden_layers": 1})
    refused(folder, "model.layers.1", "no such layer")


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    folder = quantized_pair(llama(), tmp_path, "awq-gemm").quantized
    _edit(folder, "config.json", {"quantization_config": {"quant_method": "hqq"}})
    refused(folder, "'hqq'", "awq-gemm, awq-gemv")


def test_a_model_that_was_never_quantized_is_noticed(tmp_path: Path) -> None:
    pair = quantized_pair(llama(), tmp_path, "awq-gemm")
    config = json.loads((pair.quantized / "config.json").read_text())
    _edit(pair.dense, "config.json", {"quantization_config": config["quantization_config"]})
    refused(pair.dense, "not one of its tensors is")


def test_blocks_over_the_ends_of_rows_are_refused(tmp_path: Path) -> None:
    model = llama(hidden_size=96, num_attention_heads=4)
    folder = quantized_pair(model, tmp_path, "bnb-nf4").quantized
    refused(folder, "96 input features", kind=IncompatibleError)


def test_wrong_words(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "plain")
    with pytest.raises(IncompatibleError, match="no type 'bf16'"):
        runtime.load(folder, dtype="bf16")
    if not torch.cuda.is_available():
        with pytest.raises(IncompatibleError, match="no device 'cuda'"):
            runtime.load(folder, device="cuda")
    with pytest.raises(CheckpointError):
        runtime.load(tmp_path / "absent")


def test_a_family_that_transformers_does_not_know_is_named(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    unknown = config | {"model_type": "frobnicate"}
    (folder / "config.json").write_text(json.dumps(unknown))
    with pytest.raises(CheckpointError, match=r"cannot run '.*model type `frobnicate`"):
        runtime.load(folder)


def test_no_code_of_a_checkpoint_is_run_or_offered_to_be(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    own = config | {"model_type": "frobnicate", "auto_map": {"AutoConfig": "own.Config"}}
    (folder / "config.json").write_text(json.dumps(own))
    (folder / "own.py").write_text("raise SystemExit(3)")
    with pytest.raises(
        CheckpointError, match=r"cannot run '.*code of its own, and forge runs none"
    ):
        runtime.load(folder)

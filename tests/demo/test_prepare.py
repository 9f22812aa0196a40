"""The demonstration's checkpoints: what is read, what is folded, what is left alone."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import gguf
import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from demo.base_model import DemoError, _halves_from_pairs, hugging_face_name, write_base_model
from demo.lora import TARGETS, Adapter, attach, fold, read_adapter, write_adapter
from demo.prepare import ADAPTER, make_once, write_adapted_model

RANK, ALPHA = 4, 8


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def trained_adapter(model: LlamaForCausalLM, folder: Path) -> None:
    """Write an adapter for ``model`` whose factors are what training might have left."""
    layers = attach(model, rank=RANK, alpha=ALPHA)
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_B, std=0.2)
    write_adapter(layers, folder, rank=RANK, alpha=ALPHA, base_name="tiny")


def test_fold_equals_a_float64_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 7, generator=generator)
    A, B = torch.randn(3, 7, generator=generator), torch.randn(5, 3, generator=generator)
    folded = fold({"x.weight": weight, "y": weight}, Adapter(3, 6.0, {"x": (A, B)}))
    for row in range(5):
        for column in range(7):
            product = sum(float(B[row, k]) * float(A[k, column]) for k in range(3))
            expected = float(weight[row, column]) + 6.0 / 3 * product
            assert float(folded["x.weight"][row, column]) == pytest.approx(expected, abs=1e-5)
    assert folded["y"] is weight


def test_fold_rounds_once() -> None:
    # 1 + 2^-8 lies between two bfloat16 numbers and rounds to even, that is to 1. A delta rounded
    # before the sum, or a sum of two roundings, would end elsewhere for the second value.
    weight = torch.tensor([[1.0], [1.0]], dtype=torch.bfloat16)
    A = torch.ones(2, 1)
    B = torch.tensor([[2.0**-8, 0.0], [2.0**-8, 2.0**-20]])
    folded = fold({"x.weight": weight}, Adapter(2, 2.0, {"x": (A, B)}))["x.weight"]
    assert folded.dtype == torch.bfloat16
    assert folded.flatten().tolist() == [1.0, 1.0 + 2.0**-7]


def test_fold_refuses_an_adapter_of_another_model() -> None:
    adapter = Adapter(1, 1.0, {"x": (torch.ones(1, 3), torch.ones(2, 1))})
    with pytest.raises(DemoError, match=r"changes 'x\.weight', which the model does not have"):
        fold({"z.weight": torch.ones(2, 3)}, adapter)
    with pytest.raises(DemoError, match=r"is \[2, 4\]; the adapter was made for \[2, 3\]"):
        fold({"x.weight": torch.ones(2, 4)}, adapter)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_folding_equals_peft_within_the_rounding(tmp_path: Path) -> None:
    trained_adapter(tiny_model(), tmp_path / "adapter")
    base = tiny_model()
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    folded = fold(
        {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()},
        read_adapter(tmp_path / "adapter"),
    )
    rounded = {name: tensor.to(torch.bfloat16).float() for name, tensor in weights.items()}
    base.load_state_dict(rounded)
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    expected = merged.state_dict()
    assert expected.keys() == folded.keys()
    for name, tensor in folded.items():
        torch.testing.assert_close(tensor.float(), expected[name], rtol=2.0**-8, atol=1e-7)
    changed = [name for name in folded if not torch.equal(folded[name].float(), rounded[name])]
    assert len(changed) == 2 * len(TARGETS)


def test_the_folded_model_computes_what_was_trained(tmp_path: Path) -> None:
    trained = tiny_model()
    trained_adapter(trained, tmp_path)
    adapter = read_adapter(tmp_path)
    for name, (A, B) in adapter.pairs.items():  # training in float32 was rounded when written
        layer = trained.get_submodule(name)
        layer.lora_A.data, layer.lora_B.data = A.float(), B.float()
    folded = tiny_model()
    folded.load_state_dict(fold(folded.state_dict(), adapter))
    tokens = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        untrained = tiny_model()(tokens).logits
        expected, actual = trained(tokens).logits, folded(tokens).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert (actual - untrained).abs().max() > 0.01


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.popitem(), "lacks"),
        (lambda t: t.update({next(iter(t)): torch.ones(RANK + 1, 16)}), f"not rank {RANK}"),
        (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.ones(4, 4)}), "lacks"),
        (
            lambda t: t.update(
                {f"base_model.model.lm_head.lora_{f}.weight": torch.ones(4, 4) for f in "AB"}
            ),
            "not among the target modules",
        ),
    ],
)
def test_a_damaged_adapter_is_refused(tmp_path: Path, damage: object, message: str) -> None:
    trained_adapter(tiny_model(), tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    tensors = dict(sorted(load_file(weights).items()))
    damage(tensors)  # type: ignore[operator]
    save_file(tensors, weights)
    with pytest.raises(DemoError, match=message):
        read_adapter(tmp_path)


def test_the_committed_adapter_fits_smollm2() -> None:
    hidden, key_value, inner = 576, 192, 1536
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, key_value),
        "self_attn.v_proj": (hidden, key_value),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    adapter = read_adapter(ADAPTER)
    config = json.loads((ADAPTER / "adapter_config.json").read_text("utf-8"))
    upper_half = list(range(15, 30))
    assert config["layers_to_transform"] == upper_half
    expected = {f"model.layers.{n}.{name}" for n in upper_half for name in shapes}
    assert set(adapter.pairs) == expected
    for name, (A, B) in adapter.pairs.items():
        num_in, num_out = shapes[name.split(".", 3)[3]]
        assert A.shape == (adapter.rank, num_in)
        assert B.shape == (num_out, adapter.rank)
        assert A.dtype == B.dtype == torch.bfloat16
        assert A.isfinite().all()
        assert B.isfinite().all()
        assert B.count_nonzero() > 0, f"{name} was never trained"
    assert (ADAPTER / "adapter_model.safetensors").stat().st_size < 6_000_000


def test_the_committed_log_records_a_gain_on_held_out_items() -> None:
    rows = [
        json.loads(line)
        for line in (ADAPTER / "training_log.jsonl").read_text("utf-8").splitlines()
    ]
    settings = rows[0]
    config = json.loads((ADAPTER / "adapter_config.json").read_text("utf-8"))
    assert (settings["rank"], settings["alpha"]) == (config["r"], config["lora_alpha"])
    assert settings["first_layer"] == min(config["layers_to_transform"])
    steps = [row["step"] for row in rows if row["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) == settings["epochs"] * settings["items"] // settings["batch_size"]
    before, after = (row for row in rows if row["event"] == "evaluation")
    assert (before["when"], after["when"]) == ("before", "after")
    num_items = before["items"]
    assert after["items"] == num_items
    assert after["majority_baseline"] == before["majority_baseline"]
    # The two share their items, so two standard errors of one of them are more than enough.
    assert after["accuracy"] - before["accuracy"] > 2 * 0.5 / num_items**0.5
    text = (ADAPTER / "README.md").read_text("utf-8")
    for figures in (before, after):
        assert f"| {figures['accuracy']:.1%} |".replace("%", " %") in text


def test_make_once_writes_repairs_and_skips(tmp_path: Path) -> None:
    folder, calls = tmp_path / "model", []

    def write(into: Path) -> None:
        assert list(into.iterdir()) == []
        calls.append(into)
        (into / "a").write_text("whole")

    stale = tmp_path / "model.partial"
    stale.mkdir()
    (stale / "half").write_text("left by a run that was killed")
    assert make_once(folder, {"gguf": "1"}, write)
    assert not make_once(folder, {"gguf": "1"}, write)
    assert make_once(folder, {"gguf": "2"}, write), "another source makes another checkpoint"
    (folder / "a").write_text("broken")
    assert make_once(folder, {"gguf": "2"}, write)
    (folder / "stray").write_text("")
    assert make_once(folder, {"gguf": "2"}, write)
    assert len(calls) == 4
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "whole"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.prepared.json"]


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_once(folder, {"gguf": "1"}, lambda into: (into / "a").touch())

    def fail(into: Path) -> None:
        (into / "half").touch()
        raise DemoError("no")

    with pytest.raises(DemoError):
        make_once(folder, {"gguf": "2"}, fail)
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_the_adapted_checkpoint_keeps_everything_but_the_weights(tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "target"
    model = tiny_model()
    model.save_pretrained(base)
    (base / "chat_template.jinja").write_text("{{ messages }}")
    trained_adapter(model, tmp_path / "adapter")
    target.mkdir()
    write_adapted_model(base, tmp_path / "adapter", target)
    assert {path.name for path in target.iterdir()} == {path.name for path in base.iterdir()}
    same = [p.name for p in base.iterdir() if p.read_bytes() == (target / p.name).read_bytes()]
    assert {path.name for path in base.iterdir()} - set(same) == {"model.safetensors"}
    assert stat.S_IMODE((target / "model.safetensors").stat().st_mode) == 0o644


def test_rotary_rows_return_to_halves() -> None:
    # llama.cpp puts row h of the first half and row h of the second half of a head side by side.
    num_heads, head_dim = 3, 8
    rows = np.arange(num_heads * head_dim, dtype=np.float32)
    paired = [
        head * head_dim + half * head_dim // 2 + row
        for head in range(num_heads)
        for row in range(head_dim // 2)
        for half in range(2)
    ]
    restored = _halves_from_pairs(rows[paired][:, None], num_heads)
    assert restored[:, 0].tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("gguf_name", "name"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("blk.12.attn_output.weight", "model.layers.12.self_attn.o_proj.weight"),
        ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
    ],
)
def test_names(gguf_name: str, name: str) -> None:
    assert hugging_face_name(gguf_name) == name


def tiny_gguf(path: Path, model: LlamaForCausalLM, *, pre: str = "smollm") -> None:
    """Write ``model`` as llama.cpp's converter would, with a tokenizer of 32 tokens."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(config.vocab_size)
    words = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        *"0123456789abcdefghijklmnop",
        "Ġ",
        "ab",
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*words, "12"])
    writer.add_token_types([3, 3, 3] + [1] * 29)
    writer.add_token_merges(["a b", "1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    roles = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "q_proj": "attn_q",
        "k_proj": "attn_k",
        "v_proj": "attn_v",
        "o_proj": "attn_output",
        "gate_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "down_proj": "ffn_down",
    }
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        role = name.split(".")[-2]
        if role in heads:
            shape = (heads[role], 2, values.shape[0] // heads[role] // 2, values.shape[1])
            values = values.reshape(shape).swapaxes(1, 2).reshape(values.shape)
        if name.startswith("model.layers."):
            writer.add_tensor(f"blk.{name.split('.')[2]}.{roles[role]}.weight", values.copy())
        elif role == "embed_tokens":
            writer.add_tensor("token_embd.weight", values)
        elif role == "norm":
            writer.add_tensor("output_norm.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_becomes_the_model_it_was_made_from(tmp_path: Path) -> None:
    original = tiny_model()
    tiny_gguf(tmp_path / "tiny.gguf", original)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_base_model(tmp_path / "tiny.gguf", folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.tie_word_embeddings
    assert model.config.rms_norm_eps == 1e-5
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, original.state_dict()[name].to(torch.bfloat16)), name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Digits stay apart although "12" is a token with a merge; "ab" is one token.
    assert tokenizer.tokenize("ab12<|im_end|>") == ["ab", "1", "2", "<|im_end|>"]
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


def test_a_gguf_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "tiny.gguf", tiny_model(), pre="llama-bpe")
    with pytest.raises(DemoError, match=r"tokenizer\.ggml\.pre = 'llama-bpe'"):
        write_base_model(tmp_path / "tiny.gguf", tmp_path)

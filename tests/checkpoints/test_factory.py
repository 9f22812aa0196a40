"""The factory's checkpoints are what others test with, so transformers itself must accept them."""

from pathlib import Path

import numpy as np
import pytest

from tests.factory import bf16_bits, bf16_values, read_values, tiny_checkpoint


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gpt2"])
@pytest.mark.parametrize("shards", [1, 3])
def test_transformers_loads_a_tiny_checkpoint(tmp_path: Path, model_type: str, shards: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    root = tiny_checkpoint(
        tmp_path / "m", model_type=model_type, seed=3, shards=shards, tie=model_type == "gpt2"
    )
    model, report = AutoModelForCausalLM.from_pretrained(root, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    written = read_values(root)
    state = model.state_dict()
    for name, values in written.items():
        assert np.array_equal(state[name].float().numpy(), values), name
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([[1, 5, 6]])).logits).all()


def test_the_tokenizer_is_real(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint(tmp_path, extra_tokens=["heparin"]))
    ids = tokenizer("aspirin treats heparin").input_ids
    assert tokenizer.decode(ids) == "<s> aspirin treats heparin"
    text = tokenizer.apply_chat_template([{"role": "user", "content": "pain"}], tokenize=False)
    assert text == "<s>user pain</s>"
    assert len(tokenizer) <= 32


def test_a_fine_tune_differs_a_little_from_its_base(tmp_path: Path) -> None:
    base = read_values(tiny_checkpoint(tmp_path / "base", seed=1, dtype="F32"))
    same = read_values(tiny_checkpoint(tmp_path / "same", seed=1, dtype="F32"))
    tuned = read_values(tiny_checkpoint(tmp_path / "tuned", seed=1, tune=2, dtype="F32"))
    for name, values in base.items():
        assert np.array_equal(values, same[name])
        step = np.abs(tuned[name] - values)
        assert 0 < step.max() < 0.05


def test_bf16_bits_round_to_nearest_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -2.5], np.float32)
    expected = [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -2.5]
    assert bf16_values(bf16_bits(values)).tolist() == expected

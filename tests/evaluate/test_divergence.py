"""The divergence equals an independent float64 computation from whole logits, for every family."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers

from forge.core.errors import NonFiniteError
from forge.evaluate import divergence as module
from forge.evaluate.divergence import compare, divergence, head_of, predict

VOCAB = 48
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 4}
OLD = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}

FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "llama tied": ("LlamaConfig", {**GROUPED, "tie_word_embeddings": True}),
    # A soft cap and scales that come after the head.
    "gemma2": ("Gemma2Config", {**GROUPED, "final_logit_softcapping": 3.0}),
    "cohere": ("CohereConfig", {**GROUPED, "logit_scale": 7.0}),
    "granite": ("GraniteConfig", {**GROUPED, "logits_scaling": 0.1}),
    "mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 4}),
    "gpt_neox": ("GPTNeoXConfig", SIZES),
    "gpt2": ("GPT2Config", OLD),
    "bloom": ("BloomConfig", {"vocab_size": VOCAB, "hidden_size": 16, "n_layer": 2, "n_head": 4}),
    "mpt": ("MptConfig", {"vocab_size": VOCAB, "d_model": 16, "n_heads": 4, "n_layers": 2,
                          "logit_scale": 0.3}),
    "falcon": ("FalconConfig", {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2,
                                "num_attention_heads": 4}),
    "opt": ("OPTConfig", {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2,
                          "ffn_dim": 32, "num_attention_heads": 4, "word_embed_proj_dim": 16}),
}  # fmt: skip


def build(family: str, seed: int) -> transformers.PreTrainedModel:
    name, settings = FAMILIES[family]
    torch.manual_seed(seed)
    # The large initial range gives predictions that are far from uniform.
    config = getattr(transformers, name)(**settings, initializer_range=0.3)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def windows(count: int = 3, length: int = 9, *, seed: int = 5) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(1, VOCAB, (count, length))


@torch.no_grad()
def log_softmax_64(
    model: transformers.PreTrainedModel, tokens_BT: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    logits = model(torch.from_numpy(tokens_BT)).logits.double().numpy()[:, :-1]
    flat_PV = logits.reshape(-1, logits.shape[-1])
    flat_PV = flat_PV - flat_PV.max(-1, keepdims=True)
    return flat_PV - np.log(np.exp(flat_PV).sum(-1, keepdims=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 5 * VOCAB, 1 << 23])
def test_figures_equal_an_independent_computation(
    family: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_LOGITS", chunk)
    monkeypatch.setattr(module, "_BATCH_TOKENS", 18)
    reference, variant, tokens_BT = build(family, 1), build(family, 2), windows()
    found = divergence(reference, variant, tokens_BT)

    log_p, log_q = log_softmax_64(reference, tokens_BT), log_softmax_64(variant, tokens_BT)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    targets = tokens_BT[:, 1:].reshape(-1)
    rows = np.arange(len(targets))
    assert found.num_positions == len(kl) == 3 * 8
    assert found.mean == pytest.approx(kl.mean(), rel=2e-5)
    assert found.median == pytest.approx(np.median(kl), rel=2e-5)
    assert found.p90 == pytest.approx(np.percentile(kl, 90), rel=2e-5)
    assert found.p99 == pytest.approx(np.percentile(kl, 99), rel=2e-5)
    assert found.max == pytest.approx(kl.max(), rel=2e-5)
    assert found.same_top_share == np.mean(log_p.argmax(-1) == log_q.argmax(-1))
    assert found.perplexity_reference == pytest.approx(np.exp(-log_p[rows, targets].mean()))
    assert found.perplexity_variant == pytest.approx(np.exp(-log_q[rows, targets].mean()))
    # The families' logits must differ enough for all of this to mean something.
    assert kl.mean() > 1e-3
    assert found.as_json()["perplexity_ratio"] == pytest.approx(
        found.perplexity_variant / found.perplexity_reference
    )


def test_a_model_does_not_diverge_from_itself() -> None:
    model = build("llama", 1)
    found = divergence(model, model, windows())
    assert (found.mean, found.max, found.same_top_share) == (0.0, 0.0, 1.0)
    assert found.perplexity_ratio == 1.0


def test_the_direction_is_from_the_reference() -> None:
    a, b, tokens_BT = build("llama", 1), build("llama", 2), windows()
    assert divergence(a, b, tokens_BT).mean != pytest.approx(
        divergence(b, a, tokens_BT).mean, rel=1e-3
    )


def test_the_head_keeps_neither_the_trunk_nor_changes_the_model() -> None:
    model, tokens_BT = build("gemma2", 1), windows()
    before = log_softmax_64(model, tokens_BT)
    predictions = predict(model, tokens_BT)
    np.testing.assert_array_equal(log_softmax_64(model, tokens_BT), before)
    layer = weakref.ref(model.model.layers[0])
    del model
    gc.collect()
    assert layer() is None
    assert compare(predictions, predictions, tokens_BT).mean == 0.0


def spoil(model: transformers.PreTrainedModel) -> None:
    model.model.norm.weight.data[3] = float("nan")


def overflow(model: transformers.PreTrainedModel) -> None:
    model.lm_head.weight.data[7] = float("inf")


@pytest.mark.parametrize("damage", [spoil, overflow])
def test_logits_that_are_no_numbers_are_refused(
    damage: Callable[[transformers.PreTrainedModel], None],
) -> None:
    model = build("llama", 1)
    damage(model)
    with pytest.raises(NonFiniteError, match="The variant model predicts NaN or infinite"):
        divergence(build("llama", 1), model, windows())


def test_a_token_that_both_rule_out_counts_nothing() -> None:
    model, tokens_BT = build("llama", 1), windows()
    plain = predict(model, tokens_BT)
    head = head_of(model)

    def without_token_0(hidden_PD: torch.Tensor) -> torch.Tensor:
        logits = head(hidden_PD)
        logits[:, 0] = float("-inf")
        return logits

    ruled = module.Predictions(plain.hidden_PD, without_token_0)
    assert compare(ruled, ruled, tokens_BT).mean == 0.0
    with pytest.raises(NonFiniteError, match="rules out tokens that its reference"):
        compare(plain, ruled, tokens_BT)


@pytest.mark.parametrize("shape", [(0, 8), (2, 1), (8,)])
def test_windows_without_a_next_token_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="2 or more"):
        predict(build("llama", 1), np.ones(shape, np.int64))

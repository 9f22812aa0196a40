"""The training script's parts: what is sampled, batched, scored and logged."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from demo.compare import divergence
from demo.questions import Question, batches_by_length, padded, read_questions, stratified_sample
from demo.train_adapter import (
    Example,
    epoch_batches,
    learning_rate_share,
    losses,
    split_off_lower_layers,
)


def question(number: int, decision: str) -> Question:
    return Question(str(number), "q?", "abstract", "explanation", decision)


def test_a_sample_keeps_the_shares_of_the_labels() -> None:
    # PubMedQA's test split: 276 yes, 169 no, 55 maybe; 200 of 500 is 110.4, 67.6 and 22.
    labels = ["yes"] * 276 + ["no"] * 169 + ["maybe"] * 55
    items = [question(number, label) for number, label in enumerate(labels)]
    sample = stratified_sample(items, 200, seed=1)
    counts = [sum(q.decision == label for q in sample) for label in ("yes", "no", "maybe")]
    assert counts == [110, 68, 22]
    assert len({q.identifier for q in sample}) == 200
    assert sample == stratified_sample(items, 200, seed=1)
    assert sample != stratified_sample(items, 200, seed=2)


def test_line_separators_inside_an_abstract_do_not_cut_it(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    row = (
        '{"pubid": "7", "question": "q", "contexts": ["a\u2028b", "c"], '
        '"long_answer": "l", "final_decision": "no"}\n'
    )
    path.write_text(row * 2, encoding="utf-8")
    assert read_questions(path) == [Question("7", "q", "a\u2028b c", "l", "no")] * 2
    path.write_text(row.replace('"no"', '"perhaps"'), encoding="utf-8")
    with pytest.raises(ValueError, match="item 7 decides 'perhaps'"):
        read_questions(path)


@given(st.lists(st.integers(1, 50), max_size=70), st.integers(1, 9))
def test_batches_hold_every_item_once(lengths: list[int], size: int) -> None:
    batches = list(batches_by_length(lengths, size))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    nothing = torch.zeros(0)
    examples = [Example([index], [0] * n, nothing) for index, n in enumerate(lengths)]
    epoch = list(epoch_batches(examples, size, random.Random(0)))
    seen = sorted(example.prompt[0] for batch in epoch for example in batch)
    assert seen == list(range(len(lengths)))
    assert all(len(batch) <= size for batch in [*batches, *epoch])


def test_the_rate_rises_then_falls_to_zero() -> None:
    rates = [learning_rate_share(step, 100, 10) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1.0
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0.0)


@pytest.mark.parametrize("first_layer", [0, 1, 2])
def test_losses_score_the_reply_only_and_ignore_the_filler(first_layer: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    texts = [([3, 4, 5], [6, 7]), ([8], [9, 10, 11, 12])]
    decisions, explanations = [], []
    for prompt, reply in texts:
        tokens = [*prompt, *reply]
        with torch.no_grad():
            nats = -model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        scored = [nats[place - 1, tokens[place]] for place in range(len(prompt), len(tokens))]
        decisions.append(scored[0])
        explanations += scored[1:]
    batch = split_off_lower_layers(model, texts, first_layer)
    assert len(model.model.layers) == 3 - first_layer
    with torch.no_grad():
        decision, explanation = losses(model, batch)
    torch.testing.assert_close(decision, torch.stack(decisions).mean())
    torch.testing.assert_close(explanation, torch.stack(explanations).mean())


def test_padding_is_on_the_right() -> None:
    assert padded([[1, 2, 3], [4]], 9).tolist() == [[1, 2, 3], [4, 9, 9]]


def test_divergence_is_kullback_leibler() -> None:
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    q = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    by_hand = 0.5 * (0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log())
    assert divergence(p, q) == pytest.approx(float(by_hand), abs=1e-6)
    assert divergence(p, p) == 0.0

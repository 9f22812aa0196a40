"""PubMedQA as a chat: the prompt, its answer, and how accuracy is measured.

An item is an abstract without its conclusion, a question that the conclusion answers, one of
three decisions, and the conclusion itself (``long_answer``). The reply begins with the decision,
so its first token is all that scoring needs: no text is generated, none is parsed, and a model
that would rather chat is still asked which of the three words it finds likeliest.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

DECISIONS = ("yes", "no", "maybe")
# A longer abstract loses its beginning: the results come last.
MAX_ABSTRACT_TOKENS = 240
MAX_EXPLANATION_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Question:
    """One PubMedQA item: a question about an abstract, the decision and the conclusion."""

    identifier: str
    question: str
    abstract: str
    explanation: str
    decision: str


def read_questions(path: Path) -> list[Question]:
    """Read PubMedQA items from JSON lines, in file order."""
    questions = []
    # Abstracts hold characters, such as U+2028, at which splitlines() would cut a JSON string.
    for line in path.read_text(encoding="utf-8").strip().split("\n"):
        row = json.loads(line)
        if row["final_decision"] not in DECISIONS:
            raise ValueError(f"{path}: item {row['pubid']} decides {row['final_decision']!r}")
        questions.append(
            Question(
                identifier=row["pubid"],
                question=row["question"],
                abstract=" ".join(row["contexts"]),
                explanation=row["long_answer"],
                decision=row["final_decision"],
            )
        )
    return questions


def stratified_sample(questions: Sequence[Question], size: int, seed: int) -> list[Question]:
    """Draw ``size`` items with the label shares of the whole (largest remainders get the rest)."""
    generator = random.Random(seed)
    groups = {label: [q for q in questions if q.decision == label] for label in DECISIONS}
    quotas = {label: size * len(group) / len(questions) for label, group in groups.items()}
    counts = {label: int(quota) for label, quota in quotas.items()}
    by_remainder = sorted(DECISIONS, key=lambda label: counts[label] - quotas[label])
    for label in by_remainder[: size - sum(counts.values())]:
        counts[label] += 1
    return [q for label in DECISIONS for q in generator.sample(groups[label], counts[label])]


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, question: str, abstract: str) -> list[int]:
    """Return the tokens of the chat up to where the assistant's reply begins."""
    tokens = tokenizer(abstract).input_ids
    if len(tokens) > MAX_ABSTRACT_TOKENS:
        abstract = f"... {tokenizer.decode(tokens[-MAX_ABSTRACT_TOKENS:])}"
    content = (
        f"Abstract: {abstract}\n\nQuestion: {question}\n\n"
        "Answer with Yes, No or Maybe, then explain."
    )
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return list(tokenizer(chat).input_ids)


def reply_tokens(tokenizer: PreTrainedTokenizerBase, item: Question) -> list[int]:
    """Return the tokens of the right reply: the decision, then the conclusion, then end of turn.

    A conclusion that is cut gets no end of turn, so that a model does not learn to stop anywhere.
    """
    explanation = tokenizer(f". {item.explanation}").input_ids
    cut = len(explanation) > MAX_EXPLANATION_TOKENS
    ending = [] if cut else [tokenizer.eos_token_id]
    return [
        *tokenizer(item.decision.capitalize()).input_ids,
        *explanation[:MAX_EXPLANATION_TOKENS],
        *ending,
    ]


def decision_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the first token of each decision as the reply spells it, in the order of DECISIONS."""
    tokens = [tokenizer(label.capitalize()).input_ids[0] for label in DECISIONS]
    if len(set(tokens)) != len(tokens):
        raise ValueError("The tokenizer begins two decisions with one token.")
    return tokens


def padded(sequences: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    """Return the sequences as one int64 tensor, filled on the right.

    Attention is causal, so a filler on the right changes nothing before it and needs no mask,
    which keeps the fast attention path.
    """
    width = max(len(sequence) for sequence in sequences)
    return torch.tensor([[*s, *[filler] * (width - len(s))] for s in sequences])


def batches_by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield batches of indices of similar length, so that little is spent on filler."""
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.no_grad()
def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[Question]
) -> dict[str, float]:
    """Measure the share of items whose likeliest decision is the right one, over all and by label.

    Returns:
        ``accuracy`` in [0, 1], ``recall_<label>`` for each label that occurs, and
        ``majority_baseline``, the share of the most frequent label.
    """
    model.eval()
    choices = decision_tokens(tokenizer)
    prompts = [prompt_tokens(tokenizer, item.question, item.abstract) for item in items]
    chosen = [""] * len(items)
    for batch in batches_by_length([len(prompt) for prompt in prompts], 8):
        inputs = padded([prompts[index] for index in batch], tokenizer.pad_token_id)
        hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
        last = torch.tensor([len(prompts[index]) - 1 for index in batch])
        logits = model.lm_head(hidden[torch.arange(len(batch)), last])[:, choices]
        for index, best in zip(batch, logits.float().argmax(-1).tolist(), strict=True):
            chosen[index] = DECISIONS[best]
    right = [choice == item.decision for choice, item in zip(chosen, items, strict=True)]
    figures = {"accuracy": sum(right) / len(items)}
    totals = {label: sum(item.decision == label for item in items) for label in DECISIONS}
    for label, total in totals.items():
        if total:
            hits = sum(r for r, item in zip(right, items, strict=True) if item.decision == label)
            figures[f"recall_{label}"] = hits / total
    figures["majority_baseline"] = max(totals.values()) / len(items)
    return figures

"""Train the biomedical adapter of the demonstration on PubMedQA's non-test items.

    python -m demo.train_adapter --data pubmedqa.train.jsonl --base DIR --out demo/adapter

The loss has two parts: the cross-entropy of the decision's token, which is what the benchmark
scores, and, at a fifth of its weight, that of the conclusion after it, which teaches the field's
language and keeps two epochs over 500 labels from being learned by heart. Logits are computed
at the positions that are scored only; over the whole prompt they would cost as much as the rest.

The adapter sits on the upper half of the layers. What enters them never changes, so the lower
half runs once over each example instead of once an epoch, and nothing is propagated back to it:
half the work of adapting every layer.

Writes ``adapter_config.json``, ``adapter_model.safetensors`` and ``training_log.jsonl``: the
settings, then one line a step. ``demo.evaluate_adapter`` appends the held-out accuracy.
Two cores without AMX need about half an hour; they multiply float32 faster than bfloat16.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from demo.lora import attach, write_adapter
from demo.questions import (
    prompt_tokens,
    read_questions,
    reply_tokens,
)

UNSCORED = -100  # the label that cross_entropy ignores


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decides the result, beside the data and the base model."""

    first_layer: int = 15
    rank: int = 8
    alpha: int = 16
    learning_rate: float = 3e-4
    warmup_steps: int = 20
    epochs: int = 2
    batch_size: int = 4
    explanation_weight: float = 0.2
    max_grad_norm: float = 1.0
    seed: int = 20240219


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and its right reply, as tokens. The reply's first token is the decision.

    Attributes:
        prompt: Tokens of the chat up to the reply.
        reply: Tokens of the reply.
        hidden: What enters the first adapted layer, float32 ``[tokens, hidden size]``.
    """

    prompt: list[int]
    reply: list[int]
    hidden: torch.Tensor


def epoch_batches(
    examples: Sequence[Example], size: int, generator: random.Random
) -> Iterator[list[Example]]:
    """Yield shuffled batches of items of similar length.

    Lengths vary fourfold. Pools of sixteen batches are shuffled, sorted within and cut, so that
    filler is rare and a batch still differs from epoch to epoch.
    """
    order = list(examples)
    generator.shuffle(order)
    pool = size * 16
    batches = []
    for start in range(0, len(order), pool):
        chunk = sorted(order[start : start + pool], key=lambda e: len(e.prompt) + len(e.reply))
        batches += [chunk[i : i + size] for i in range(0, len(chunk), size)]
    generator.shuffle(batches)
    yield from batches


@torch.no_grad()
def split_off_lower_layers(
    model: PreTrainedModel, texts: Sequence[tuple[list[int], list[int]]], first_layer: int
) -> list[Example]:
    """Run the layers below ``first_layer`` over each prompt and reply, then drop them, in place.

    Afterwards ``model.model`` takes the hidden states of an example as ``inputs_embeds``.
    """
    trunk = model.model
    layers, norm = trunk.layers, trunk.norm
    trunk.layers, trunk.norm = layers[:first_layer], nn.Identity()
    examples = []
    for prompt, reply in texts:
        tokens = torch.tensor([[*prompt, *reply]])
        hidden = trunk(input_ids=tokens, use_cache=False).last_hidden_state[0]
        examples.append(Example(prompt, reply, hidden))
    trunk.layers, trunk.norm = layers[first_layer:], norm
    return examples


def losses(model: PreTrainedModel, batch: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean cross-entropy of the decisions and of the explanations' tokens, in nats.

    Examples are filled on the right. Attention is causal, so what stands there changes nothing
    before it and needs no mask.
    """
    inputs = nn.utils.rnn.pad_sequence([example.hidden for example in batch], batch_first=True)
    targets = torch.full(inputs.shape[:2], UNSCORED)
    is_decision = torch.zeros_like(targets, dtype=torch.bool)
    for row, example in enumerate(batch):
        start = len(example.prompt) - 1  # the last token of the prompt predicts the decision
        targets[row, start : start + len(example.reply)] = torch.tensor(example.reply)
        is_decision[row, start] = True
    hidden = model.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    scored = targets != UNSCORED
    nats = functional.cross_entropy(
        model.lm_head(hidden[scored]).float(), targets[scored], reduction="none"
    )
    decides = is_decision[scored]
    return nats[decides].mean(), nats[~decides].mean()


def learning_rate_share(step: int, total: int, warmup: int) -> float:
    """Return the share of the peak rate at ``step``: a linear rise, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def train(data: Path, base: Path, out: Path, *, settings: Settings) -> None:
    """Train the adapter and write it with its log into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    generator = random.Random(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    texts = [
        (prompt_tokens(tokenizer, q.question, q.abstract), reply_tokens(tokenizer, q))
        for q in read_questions(data)
    ]
    with (out / "training_log.jsonl").open("w", encoding="utf-8", buffering=1) as stream:

        def log(event: str, **figures: object) -> None:
            rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in figures.items()}
            line = json.dumps({"event": event, **rounded})
            stream.write(line + "\n")
            print(line, file=sys.stderr, flush=True)

        log("settings", **asdict(settings), items=len(texts), torch=torch.__version__)
        started = time.perf_counter()
        layers = attach(
            model,
            rank=settings.rank,
            alpha=settings.alpha,
            first_layer=settings.first_layer,
        )
        examples = split_off_lower_layers(model, texts, settings.first_layer)
        log("lower_layers", seconds=time.perf_counter() - started)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
        total = settings.epochs * math.ceil(len(examples) / settings.batch_size)
        model.train()
        step = 0
        for epoch in range(settings.epochs):
            for batch in epoch_batches(examples, settings.batch_size, generator):
                started = time.perf_counter()
                share = learning_rate_share(step, total, settings.warmup_steps)
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * share
                decision, explanation = losses(model, batch)
                loss = decision + settings.explanation_weight * explanation
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
                log(
                    "step",
                    step=step,
                    epoch=epoch,
                    loss=loss.item(),
                    decision_loss=decision.item(),
                    explanation_loss=explanation.item(),
                    tokens=sum(len(e.prompt) + len(e.reply) for e in batch),
                    seconds=time.perf_counter() - started,
                )
            write_adapter(
                layers, out, rank=settings.rank, alpha=settings.alpha, base_name=base.name
            )


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="pubmedqa.train.jsonl")
    parser.add_argument("--base", type=Path, required=True, help="checkpoint of the base model")
    parser.add_argument("--out", type=Path, required=True, help="folder of the adapter")
    arguments = parser.parse_args()
    train(arguments.data, arguments.base, arguments.out, settings=Settings())


if __name__ == "__main__":
    main()

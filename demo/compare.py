"""Load checkpoints in a process of their own and say how they differ.

    python -m demo.compare --parents DIR DIR --merges DIR ... > comparison.json

Run as a fresh process, it proves that the checkpoints on disk are enough: nothing of the merge is
still in memory. For each checkpoint it reports a greedy reply to one medical question, how likely
the words Yes, No and Maybe are to begin it, and the next-token KL divergence from each parent,

    KL(parent ‖ checkpoint) = mean over positions of Σ_v p(v) · (log p(v) − log q(v))   in nats,

over every token of a few short chats, medical and not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging as transformers_logging

from demo.base_model import DemoError
from demo.observation import ABSTRACT, CHATS, MAX_REPLY_TOKENS, QUESTION, Observation
from demo.questions import DECISIONS, decision_tokens, prompt_tokens


def load(folder: Path) -> tuple[PreTrainedModel, Tokenizer]:
    """Load a checkpoint in float32, the faster type on most CPUs.

    Raises:
        DemoError: transformers had to invent a weight or to ignore one.
    """
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    model, findings = cast("tuple[PreTrainedModel, dict[str, set[str]]]", loaded)
    wrong = {kind: sorted(names) for kind, names in findings.items() if names}
    if wrong:
        raise DemoError(f"{folder} does not load cleanly: {wrong}")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def chat_log_probabilities(model: PreTrainedModel, tokenizer: Tokenizer) -> torch.Tensor:
    """Return next-token log-probabilities over all chats, float32 ``[positions, vocabulary]``."""
    rows = []
    for user, assistant in CHATS:
        chat = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        tokens = torch.tensor([tokenizer(text).input_ids])
        rows.append(model(tokens).logits[0].log_softmax(-1))
    return torch.cat(rows)


def divergence(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Return the mean KL divergence of ``other`` from ``reference``, log-probabilities both."""
    return float((reference.exp() * (reference - other)).sum(-1).mean())


@torch.no_grad()
def reply_to_question(model: PreTrainedModel, tokenizer: Tokenizer) -> tuple[str, dict[str, float]]:
    """Return the greedy reply and the probability of each decision as its first token."""
    prompt = torch.tensor([prompt_tokens(tokenizer, QUESTION, ABSTRACT)])
    first = model(prompt).logits[0, -1].softmax(-1)
    decisions = dict(zip(DECISIONS, first[decision_tokens(tokenizer)].tolist(), strict=True))
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=MAX_REPLY_TOKENS,
        do_sample=False,
    )
    reply = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)
    return str(reply).strip(), decisions


def compare(parents: Sequence[Path], merges: Sequence[Path]) -> list[Observation]:
    """Observe each checkpoint, the parents first."""
    references: list[torch.Tensor] = []
    rows = []
    for folder in (*parents, *merges):
        started = time.perf_counter()
        print(f"loading {folder}", file=sys.stderr, flush=True)
        model, tokenizer = load(folder)
        log_probabilities = chat_log_probabilities(model, tokenizer)
        if len(references) < len(parents):
            references.append(log_probabilities)
        reply, decisions = reply_to_question(model, tokenizer)
        rows.append((folder, reply, decisions, log_probabilities, time.perf_counter() - started))
    return [
        Observation(
            checkpoint=str(folder),
            reply=reply,
            decisions=decisions,
            divergences=[divergence(reference, values) for reference in references],
            seconds=round(seconds, 2),
        )
        for folder, reply, decisions, values, seconds in rows
    ]


def main() -> int:
    """Parse the command line, compare, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parents", type=Path, nargs="+", required=True)
    parser.add_argument("--merges", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    try:
        observations = compare(arguments.parents, arguments.merges)
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps([asdict(observation) for observation in observations]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

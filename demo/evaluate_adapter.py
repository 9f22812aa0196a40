"""Measure the base model and the adapted model on held-out PubMedQA items.

    python -m demo.evaluate_adapter --held-out pubmedqa.test.jsonl --base DIR --adapter demo/adapter

The adapted model is measured as it ships: the adapter folded into the weights and rounded to
bfloat16. Both are computed in float32, so that only the weights differ. The two figures replace
the evaluations in the adapter's training log.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.lora import fold, read_adapter
from demo.questions import accuracy, read_questions, stratified_sample

SAMPLE_SEED = 20240219


def evaluate(held_out: Path, base: Path, adapter: Path, *, num_items: int) -> None:
    """Measure before and after on one sample and write both into the adapter's log."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    items = stratified_sample(read_questions(held_out), num_items, SAMPLE_SEED)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    shipped = fold(model.state_dict(), read_adapter(adapter))
    log = adapter / "training_log.jsonl"
    lines = [
        line
        for line in log.read_text("utf-8").splitlines()
        if json.loads(line)["event"] != "evaluation"
    ]
    model.to(torch.float32)
    for when in ("before", "after"):
        if when == "after":
            model.load_state_dict({name: tensor.float() for name, tensor in shipped.items()})
        started = time.perf_counter()
        figures = accuracy(model, tokenizer, items)
        line = json.dumps(
            {
                "event": "evaluation",
                "when": when,
                "items": len(items),
                "sample_seed": SAMPLE_SEED,
                **{name: round(value, 4) for name, value in figures.items()},
                "seconds": round(time.perf_counter() - started, 1),
            }
        )
        print(line, flush=True)
        lines.append(line)
    log.write_text("\n".join(lines) + "\n", "utf-8")


def main() -> None:
    """Parse the command line and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--held-out", type=Path, required=True, help="pubmedqa.test.jsonl")
    parser.add_argument("--base", type=Path, required=True, help="checkpoint of the base model")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the adapter")
    parser.add_argument("--items", type=int, default=200, help="size of the stratified sample")
    arguments = parser.parse_args()
    evaluate(arguments.held_out, arguments.base, arguments.adapter, num_items=arguments.items)


if __name__ == "__main__":
    main()

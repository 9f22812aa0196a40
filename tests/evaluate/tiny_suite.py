"""A suite of three tiny tasks, and tiny models that read its letters."""

from __future__ import annotations

import json
from pathlib import Path

from tests.architectures.tiny_models import tiny_model
from tests.evaluate.backends.word_models import saved

SUITE = """\
title: Tiny
seeds: [1, 2]
prompts:
  plain:
    instruction: "Answer.\\n"
    question: "Q: {question}\\n{options}"
    cue: "\\nA:("
    answer: "{letter}"
  words:
    question: "Q: {question}"
    cue: "\\nA: "
    answer: "{reference}"
columns:
  mine: {id: id, question: question, options: choices, answer: answer}
  long: {id: id, question: question, reference: reference}
tasks:
  - {name: first, prompt: plain, columns: mine, shots: 1, data: {beside: first.jsonl},
     pool: {beside: pool.jsonl}}
  - {name: second, prompt: plain, columns: mine, shots: 1, data: {beside: second.jsonl},
     pool: {beside: pool.jsonl}}
  - {name: words, kind: text, prompt: words, columns: long, data: {beside: words.jsonl},
     max_new_tokens: 5}
"""


def _lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(name: str, count: int) -> list[dict[str, object]]:
    return [
        {"id": f"{name}{n}", "question": f"{name} {n * n}?", "choices": ["no", "yes"],
         "answer": n % 2}
        for n in range(count)
    ]  # fmt: skip


def write_suite(folder: Path) -> Path:
    """Write the suite: 6 and 4 questions with two sets of one example each, and 3 in words."""
    folder.mkdir(parents=True, exist_ok=True)
    _lines(folder / "first.jsonl", rows("first", 6))
    _lines(folder / "second.jsonl", rows("second", 4))
    _lines(folder / "pool.jsonl", rows("pool", 8))
    _lines(
        folder / "words.jsonl",
        [{"id": f"w{n}", "question": f"Why {n}?", "reference": "as it is"} for n in range(3)],
    )
    path = folder / "tiny.yaml"
    path.write_text(SUITE)
    return path


def write_model(folder: Path, *, seed: int = 0, case: str = "llama") -> Path:
    """Write a model whose context is long enough for the suite."""
    model = tiny_model(case, seed=seed)
    model.config.max_position_embeddings = 256
    return saved(model, folder)

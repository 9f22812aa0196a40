"""Load quantized checkpoints with ``forge.runtime`` in a process of their own and ask them.

python -m demo.quantized_replies DIR ... > replies.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer

from demo.observation import ABSTRACT, QUESTION
from demo.questions import prompt_tokens
from forge import runtime
from forge.core.errors import ForgeError

MAX_REPLY_TOKENS = 24


@torch.no_grad()
def reply(folder: Path) -> str:
    """Return the greedy reply of one checkpoint to the demonstration's question."""
    print(f"loading {folder}", file=sys.stderr, flush=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = torch.tensor([prompt_tokens(tokenizer, QUESTION, ABSTRACT)])
    output = runtime.load(folder).generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=MAX_REPLY_TOKENS,
        do_sample=False,
    )
    text = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)
    return str(text).strip()


def main() -> int:
    """Print the replies as JSON."""
    try:
        replies = {folder: reply(Path(folder)) for folder in sys.argv[1:]}
    except ForgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(replies))
    return 0


if __name__ == "__main__":
    sys.exit(main())

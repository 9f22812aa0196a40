"""One measured run of ``benchmarks.decode``: load a model, decode, read a prompt, print JSON.

    python -m benchmarks.decode_program (transformers | forge) FOLDER --threads 2

The machine's read bandwidth is measured in the same process, between the two: all threads sum a
buffer that no cache holds, and fetch ahead as far as the product's kernels do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numba
import numpy as np
import torch
import transformers

from forge import runtime
from forge.runtime.linear import QuantizedLinear

BUFFER_BYTES: Final = 1 << 30
CONTEXT: Final = 32
_AHEAD: Final = 8192
_STEP: Final = 4096


def load(program: str, folder: Path) -> transformers.PreTrainedModel:
    """Load the model as the program's users do."""
    if program == "forge":
        return runtime.load(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def bytes_per_token(model: transformers.PreTrainedModel) -> int:
    """Return how many bytes of weights a token reads: all but the embedding's other rows."""
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    total = head.nbytes if head is embedding else 0
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            total += module.words.nbytes + module.scales.nbytes + module.zeros.nbytes
    return total + sum(p.nbytes for p in model.parameters() if p is not embedding)


def decode(model: transformers.PreTrainedModel, num_tokens: int) -> float:
    """Return the median seconds of a token behind a short context, in a batch of one."""
    ids = torch.arange(4, 4 + CONTEXT)[None]
    state = model(ids, use_cache=True)
    times = []
    for _ in range(num_tokens):
        started = time.perf_counter()
        ids = state.logits[:, -1:].argmax(-1)
        state = model(ids, past_key_values=state.past_key_values, use_cache=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def prefill(model: transformers.PreTrainedModel, num_tokens: int, rounds: int) -> float:
    """Return the median seconds in which a prompt is read."""
    ids = torch.arange(4, 4 + num_tokens)[None]
    model(ids[:, :64])
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        model(ids, logits_to_keep=1)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def read_bandwidth(num_threads: int) -> float:
    """Return the most bytes a second that all threads together read from main memory."""
    from forge.kernels.cpu.memory import prefetch_block

    @numba.njit(nogil=True)
    def total(words: np.ndarray) -> int:  # type: ignore[type-arg]
        # Eight sums, so that adding is no bottleneck.
        sums = np.zeros(8, np.int64)
        for start in range(0, words.size, _STEP // 8):
            prefetch_block(words.ctypes.data + 8 * start + _AHEAD, _STEP)
            for i in range(start, start + _STEP // 8, 8):
                for lane in range(8):
                    sums[lane] += words[i + lane]
        return sums.sum()

    parts = np.array_split(np.ones(BUFFER_BYTES // 8, np.int64), num_threads)
    parts = [part[: part.size * 8 // _STEP * (_STEP // 8)] for part in parts]
    total(parts[0][: _STEP // 8])
    best = 0.0
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in range(6):
            started = time.perf_counter()
            list(pool.map(total, parts))
            elapsed = time.perf_counter() - started
            best = max(best, sum(part.nbytes for part in parts) / elapsed)
    return best


def main() -> None:
    """Measure one program on one model and print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode_program")
    parser.add_argument("program", choices=["transformers", "forge"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--decode-tokens", type=int, default=40)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    model = load(arguments.program, arguments.folder)
    load_s = time.perf_counter() - started
    with torch.inference_mode():
        # The first tokens map the weights and compile kernels.
        decode(model, 3)
        token_s = decode(model, arguments.decode_tokens)
        bandwidth = read_bandwidth(arguments.threads)
        token_s = min(token_s, decode(model, arguments.decode_tokens))
        prompt_s = prefill(model, arguments.prompt_tokens, rounds=3)
    print(json.dumps({
        "load_s": load_s, "token_s": token_s, "prompt_s": prompt_s,
        "prompt_tokens": arguments.prompt_tokens, "bytes_per_token": bytes_per_token(model),
        "bandwidth": bandwidth,
    }))  # fmt: skip


if __name__ == "__main__":
    main()

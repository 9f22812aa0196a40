"""Compare the decoders of GGUF blocks with those of the gguf package, on one thread.

    python -m benchmarks.gguf_decoding [TYPE ...]

Blocks are random, which changes nothing for decoders without branches. Time is that of the CPU,
best of six rounds, because the cores may be shared; the figure is the float32 that is written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final

import gguf
import numpy as np

from forge.checkpoints.gguf.decoding import DECODERS, dequantize
from forge.checkpoints.gguf.types import BY_NAME

_ELEMENTS: Final = 1 << 22
_ROUNDS: Final = 6


def main(names: list[str]) -> None:
    """Print one line for each type."""
    print("| Type | forge | gguf | times |\n| :--- | ---: | ---: | ---: |")
    for name in names or [name for name in DECODERS if name != "Q8_K"]:
        kind = BY_NAME[name]
        count = _ELEMENTS // kind.elements
        blocks = np.random.default_rng(0).integers(0, 256, (count, kind.nbytes), dtype=np.uint8)
        rows = blocks.reshape(1024, -1)
        number = gguf.GGMLQuantizationType[name]
        with np.errstate(all="ignore"):
            ours = _gigabytes(lambda blocks=blocks, name=name: dequantize(blocks.data, name))
            theirs = _gigabytes(
                lambda rows=rows, number=number: gguf.quants.dequantize(rows, number)
            )
        print(f"| {name} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.1f} |")


def _gigabytes(decode: Callable[[], object]) -> float:
    """Return how many gigabytes of float32 are written in a second."""
    seconds = []
    for _ in range(_ROUNDS):
        begin = time.process_time()
        decode()
        seconds.append(time.process_time() - begin)
    return 4 * _ELEMENTS / min(seconds) / 1e9


if __name__ == "__main__":
    main(sys.argv[1:])

"""A process that quantizes, for tests that kill it.

python -m tests.quantize.quantize_process MODEL OUT METHOD THREADS FORMAT[:double]... [--tokens F]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from forge.core.errors import ForgeError
from forge.quantize.run import run_quantize
from forge.recipes.quantize_types import CalibrationRecipe, QuantizeRecipe, Variant
from forge.recipes.reference import ModelReference

GROUP_SIZE = 32


def recipe_of(
    model: Path, method: str, formats: list[str], *, tokens: Path | None = None
) -> QuantizeRecipe:
    """Return a recipe for these formats; ``:double`` behind one asks for double quantization."""
    variants = []
    for text in formats:
        name, _, double = text.partition(":")
        bits, size = (8, 0) if name == "bnb-int8" else (4, 64 if method == "bnb" else GROUP_SIZE)
        variants.append(Variant(name, bits, size, double_quant=bool(double)))
    calibration = (
        None
        if tokens is None
        else CalibrationRecipe(source="tokens", path=str(tokens), samples=4, tokens=32)
    )
    return QuantizeRecipe(
        method, tuple(variants), ModelReference(str(model)), calibration=calibration,
        max_shard_size="200KB",
    )  # fmt: skip


def main() -> int:
    """Quantize, and print how many tensors an earlier run had finished."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("method")
    parser.add_argument("threads", type=int)
    parser.add_argument("formats", nargs="+")
    parser.add_argument("--tokens", type=Path)
    given = parser.parse_args()
    recipe = recipe_of(given.model, given.method, given.formats, tokens=given.tokens)
    try:
        result = run_quantize(recipe, given.out, threads=given.threads)
    except ForgeError as error:
        print(error, flush=True)
        return error.exit_code
    print(json.dumps({"resumed": result.resumed_tensors, "tensors": result.num_tensors}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

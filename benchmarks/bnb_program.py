"""One of the two programs that ``benchmarks.quantize_bnb`` compares.

    python -m benchmarks.bnb_program forge|bitsandbytes MODEL OUT nf4|nf4-dq|fp4|int8

It quantizes a checkpoint from file to file and prints as JSON how many seconds that took, its
imports not counted. ``bitsandbytes`` means a loop over the tensors through bitsandbytes' own
functions, without building the model: the fastest that it can be had, and free of all that
transformers adds.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

_LINEAR = ("proj.weight",)


def main() -> int:
    """Quantize with one program."""
    program, model, out, kind = sys.argv[1:5]
    run = _forge if program == "forge" else _bitsandbytes
    print(json.dumps({"work_s": run(Path(model), Path(out), kind)}))
    return 0


def _forge(model: Path, out: Path, kind: str) -> float:
    from forge.quantize.run import run_quantize
    from forge.recipes.quantize_types import QuantizeRecipe, Variant
    from forge.recipes.reference import ModelReference

    name, _, double = kind.partition("-")
    bits, size = (8, 0) if name == "int8" else (4, 64)
    variant = Variant(f"bnb-{name}", bits, size, double_quant=bool(double))
    recipe = QuantizeRecipe("bnb", (variant,), ModelReference(str(model)))
    began = time.perf_counter()
    run_quantize(recipe, out)
    return time.perf_counter() - began


def _bitsandbytes(model: Path, out: Path, kind: str) -> float:
    import torch
    from bitsandbytes import functional
    from safetensors import safe_open
    from safetensors.torch import save_file

    name, _, double = kind.partition("-")
    began = time.perf_counter()
    tensors: dict[str, torch.Tensor] = {}
    with torch.no_grad(), safe_open(model / "model.safetensors", framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(key)
            if not key.endswith(_LINEAR):
                tensors[key] = tensor
            elif name == "int8":
                codes, scales, _ = functional.int8_vectorwise_quant(tensor.half())
                prefix = key.removesuffix("weight")
                tensors |= {key: codes, f"{prefix}SCB": scales}
                tensors[f"{prefix}weight_format"] = torch.tensor(0, dtype=torch.uint8)
            else:
                packed, state = functional.quantize_4bit(
                    tensor, quant_type=name, compress_statistics=bool(double)
                )
                tensors[key] = packed
                # Every tensor of a file needs memory of its own.
                parts = state.as_dict(packed=True).items()
                tensors |= {f"{key}.{part}": value.clone() for part, value in parts}
    out.mkdir(parents=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())

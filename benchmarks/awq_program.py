"""The programs that ``benchmarks.quantize_awq`` compares, each in a process of its own.

    python awq_program.py forge|autoawq|autoround MODEL TOKENS.npy OUT [key=value ...]
    python awq_program.py evaluate MODEL HELD_OUT.npy OUT

Each quantizes the linears of a model to 4 bits in groups of 64 on the same calibration tokens,
writes the checkpoint, and prints as JSON how many seconds that took without its imports. The peers
run in environments of their own, so nothing of forge is imported for them. One evaluator serves
all of them: it dequantizes what lies in a folder, or, where that is the model's own, rounds it to
nearest.

AutoAWQ runs in float16, its default and on CPUs with AVX512-FP16 its fastest type. Its scale search
means to restore weights from ``state_dict()`` after each trial, which on a CPU, unlike on a GPU,
is no copy: it would scale them for good. It gets a copy here, so that its quality is that of its
GPU path; the time of the copy is negligible.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

GROUP_SIZE = 64
Tokens = npt.NDArray[np.int64]


def main() -> int:
    """Quantize with one program."""
    warnings.simplefilter("ignore")
    program, model, tokens, out, *options = sys.argv[1:]
    if program == "evaluate":
        print(json.dumps(_evaluate(Path(model), np.load(tokens), Path(out))))
        return 0
    run = {"forge": _forge, "autoawq": _autoawq, "autoround": _autoround}[program]
    settings = dict(option.split("=", 1) for option in options)
    print(json.dumps({"work_s": run(Path(model), np.load(tokens), Path(out), settings)}))
    return 0


def _forge(model: Path, tokens_BT: Tokens, out: Path, settings: dict[str, str]) -> float:
    # Loading torch is an import, too; forge does it in the middle of its work.
    import torch  # noqa: F401

    from forge.quantize.calibration.stored import dump_tokens
    from forge.quantize.run import run_quantize
    from forge.recipes.quantize_types import CalibrationRecipe, QuantizeRecipe, Variant
    from forge.recipes.reference import ModelReference

    stored = out.with_suffix(".tokens.npy")
    stored.write_bytes(dump_tokens(tokens_BT))
    recipe = QuantizeRecipe(
        "awq",
        (Variant("awq-gemm", 4, GROUP_SIZE),),
        ModelReference(str(model)),
        search=settings.get("search", "sketch"),
        clip=settings.get("clip") != "false",
        error_feedback=settings.get("error_feedback") == "true",
        calibration=CalibrationRecipe(
            "tokens", str(stored), samples=tokens_BT.shape[0], tokens=tokens_BT.shape[1]
        ),
    )
    began = time.perf_counter()
    run_quantize(recipe, out)
    return time.perf_counter() - began


def _autoawq(model: Path, tokens_BT: Tokens, out: Path, settings: dict[str, str]) -> float:
    import torch
    from awq import AutoAWQForCausalLM
    from awq.quantize import quantizer
    from transformers import AutoTokenizer

    compute = quantizer.AwqQuantizer._compute_best_scale

    def with_copies(
        self: object, x: object, w: object, m: object, inspected: torch.nn.Module, *rest: object
    ) -> torch.Tensor:
        kept: Callable[..., dict[str, torch.Tensor]] = type(inspected).state_dict
        inspected.state_dict = lambda: {n: v.clone() for n, v in kept(inspected).items()}
        try:
            return compute(self, x, w, m, inspected, *rest)
        finally:
            del inspected.state_dict

    quantizer.AwqQuantizer._compute_best_scale = with_copies
    dtype = getattr(torch, settings.get("dtype", "float16"))
    began = time.perf_counter()
    loaded = AutoAWQForCausalLM.from_pretrained(
        str(model), device_map="cpu", torch_dtype=dtype, safetensors=True
    )
    loaded.quantize(
        AutoTokenizer.from_pretrained(model),
        quant_config={
            "zero_point": True, "q_group_size": GROUP_SIZE, "w_bit": 4, "version": "GEMM",
        },
        calib_data=tokens_BT.tolist(),
        max_calib_samples=tokens_BT.shape[0],
        max_calib_seq_len=tokens_BT.shape[1],
    )  # fmt: skip
    loaded.save_quantized(str(out))
    return time.perf_counter() - began


def _autoround(model: Path, tokens_BT: Tokens, out: Path, settings: dict[str, str]) -> float:
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    began = time.perf_counter()
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    batches = [torch.from_numpy(row)[None] for row in tokens_BT]
    rounder = AutoRound(
        loaded,
        AutoTokenizer.from_pretrained(model),
        scheme="W4A16",
        alg_configs=["awq", "rtn"],
        group_size=GROUP_SIZE,
        sym=False,
        dataset=batches,
        nsamples=tokens_BT.shape[0],
        seqlen=tokens_BT.shape[1],
        device_map="cpu",
    )
    rounder.quantize_and_save(str(out), format="auto_awq")
    return time.perf_counter() - began


def _evaluate(model: Path, tokens_BT: Tokens, out: Path) -> dict[str, object]:
    """Compare what a program wrote, dequantized to float32, with the model it was made from."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from forge.evaluate.divergence import compare, predict
    from forge.formats.catalog import load_format
    from forge.formats.contract import Scheme
    from forge.quantize.methods.rtn import dequantize, quantize_rtn

    scheme = Scheme(4, GROUP_SIZE)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    reference = predict(loaded, tokens_BT)
    parameters = dict(loaded.named_parameters())
    packed: dict[str, torch.Tensor] = {}
    if out != model:
        for file in sorted(out.rglob("*.safetensors")):
            packed |= load_file(file)
    layout = load_format("awq-gemm")
    num_quantized = 0
    with torch.no_grad():
        for name, parameter in parameters.items():
            stem = name.removesuffix(".weight")
            if f"{stem}.qweight" in packed:
                parts = {
                    part: packed[f"{stem}.{part}"].numpy()
                    for part in ("qweight", "qzeros", "scales")
                }
                codes = layout.unpack(parts, shape_OI=tuple(parameter.shape), scheme=scheme)
                parameter.copy_(torch.from_numpy(dequantize(codes)))
                num_quantized += 1
            elif name in packed:
                parameter.copy_(packed[name])
            elif out == model and ".layers." in name and parameter.ndim == 2:
                parameter.copy_(
                    torch.from_numpy(dequantize(quantize_rtn(parameter.numpy(), scheme)))
                )
                num_quantized += 1
    found = compare(reference, predict(loaded, tokens_BT), tokens_BT)
    return {**found.as_json(), "num_quantized": num_quantized}


if __name__ == "__main__":
    raise SystemExit(main())

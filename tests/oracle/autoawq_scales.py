"""Runs in an environment with AutoAWQ 0.2.9: write the scales that its search chooses.

    python autoawq_scales.py MODEL TOKENS.npy GROUP_SIZE OUT.json

AutoAWQ keeps a module's weights for later with ``state_dict()`` and ``.cpu()``, which copies on a
GPU and does not on a CPU: there its search scales the very weights that it means to restore. Here
``state_dict`` copies, so that it computes on a CPU what it computes on a GPU.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable

import numpy as np

warnings.simplefilter("ignore")

import torch  # noqa: E402
from awq import AutoAWQForCausalLM  # noqa: E402
from awq.quantize import quantizer  # noqa: E402


def main() -> None:
    model_folder, tokens, group_size, out = sys.argv[1:5]
    tokens_BT = np.load(tokens)
    model = AutoAWQForCausalLM.from_pretrained(
        model_folder, device_map="cpu", torch_dtype=torch.float32, safetensors=True
    )
    found: list[dict[str, object]] = []
    search = quantizer.AwqQuantizer._search_best_scale
    compute = quantizer.AwqQuantizer._compute_best_scale

    def with_copies(self: object, x: object, w: object, m: object, inspected: torch.nn.Module,
                    *rest: object) -> torch.Tensor:  # fmt: skip
        kept: Callable[..., dict[str, torch.Tensor]] = type(inspected).state_dict
        inspected.state_dict = lambda: {n: v.clone() for n, v in kept(inspected).items()}
        try:
            return compute(self, x, w, m, inspected, *rest)
        finally:
            del inspected.state_dict

    def recorded(self: object, *arguments: object, **keywords: object) -> object:
        feeder, fed, scales = search(self, *arguments, **keywords)
        found.append({"feeder": feeder, "fed": list(fed), "scales": scales.float().tolist()})
        return feeder, fed, scales

    quantizer.AwqQuantizer._compute_best_scale = with_copies
    quantizer.AwqQuantizer._search_best_scale = recorded
    model.quantize(
        None,
        quant_config={
            "zero_point": True, "q_group_size": int(group_size), "w_bit": 4, "version": "GEMM",
        },
        calib_data=tokens_BT.tolist(),
        max_calib_samples=len(tokens_BT),
        max_calib_seq_len=tokens_BT.shape[1],
        apply_clip=False,
    )  # fmt: skip
    with open(out, "w") as file:  # noqa: PTH123
        json.dump(found, file)


if __name__ == "__main__":
    main()

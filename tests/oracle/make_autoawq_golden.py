"""Make the golden tensors of AutoAWQ 0.2.9 that ``test_autoawq_golden.py`` compares with.

AutoAWQ is archived and needs an old transformers, so this script runs in an environment of its
own and imports nothing of forge:

    python3.11 -m venv autoawq && autoawq/bin/pip install torch==2.13.0
    autoawq/bin/pip install transformers==4.51.3 "accelerate<1.11" datasets zstandard
    autoawq/bin/pip install --no-deps autoawq==0.2.9
    autoawq/bin/python tests/oracle/make_autoawq_golden.py tests/oracle/golden/autoawq.safetensors

(``AUTOAWQ_REQUIREMENTS`` below is the same list; the slow test builds the environment from it.)

For every case it draws a weight from a seed, has AutoAWQ quantize it by
``pseudo_quantize_tensor`` and pack it by ``WQLinear_*.from_linear``, and stores the codes, scales
and zero points that went in beside the arrays that came out. Shapes are odd on purpose: not
square, O in eights that are no multiple of 64, group counts that leave GEMV's rows padded,
all-zero groups, groups on one side of zero.
"""

import sys
import types
import warnings
from pathlib import Path

AUTOAWQ_REQUIREMENTS = (
    ("torch==2.13.0",),
    ("transformers==4.51.3", "accelerate<1.11", "datasets", "zstandard"),
    ("--no-deps", "autoawq==0.2.9"),
)
"""Arguments of ``pip install``, one call after the other."""

CASES = (
    ("gemm", 32, (96, 160)),
    ("gemm", 64, (32, 192)),
    ("gemm", 128, (160, 128)),
    ("gemm", 128, (64, 384)),
    ("gemv", 32, (40, 160)),
    ("gemv", 32, (24, 1056)),
    ("gemv", 64, (8, 320)),
    ("gemv", 64, (72, 576)),
    ("gemv", 128, (104, 128)),
    ("gemv", 128, (16, 1152)),
    ("gemv_fast", 32, (40, 192)),
    ("gemv_fast", 64, (8, 320)),
    ("gemv_fast", 64, (24, 576)),
    ("gemv_fast", 128, (56, 384)),
    ("gemv_fast", 128, (16, 1152)),
)
"""Layout, group size and shape [O, I]. AutoAWQ's own packing takes no O outside these multiples:
32 for gemm, 8 for the others."""
ROUNDING_GROUP_SIZES = (32, 64, 128)


def case_name(version, group_size, shape):
    """Return a case's prefix in the file."""
    return f"{version}-g{group_size}-{shape[0]}x{shape[1]}"


def main(path):
    """Write the file."""
    warnings.simplefilter("ignore")
    import torch
    from awq.modules.linear import WQLinear_GEMM, WQLinear_GEMV, WQLinear_GEMVFast
    from awq.quantize.quantizer import AwqQuantizer
    from safetensors.torch import save_file

    layouts = {"gemm": WQLinear_GEMM, "gemv": WQLinear_GEMV, "gemv_fast": WQLinear_GEMVFast}
    tensors = _rounded(AwqQuantizer)
    for seed, (version, group_size, (num_out, num_in)) in enumerate(CASES):
        weight = _weight(seed, (num_out, num_in), group_size)
        weight, scales, zeros, codes = _quantize(AwqQuantizer, weight, group_size)
        linear = torch.nn.Linear(num_in, num_out, bias=False)
        linear.weight.data = weight
        is_gemm = version == "gemm"
        packed = layouts[version].from_linear(
            linear,
            4,
            group_size,
            scales=scales.t().contiguous() if is_gemm else scales,
            zeros=zeros.t().contiguous() if is_gemm else zeros,
        )
        prefix = case_name(version, group_size, (num_out, num_in))
        tensors[f"{prefix}.codes_OI"] = codes.to(torch.uint8)
        tensors[f"{prefix}.zeros_OG"] = zeros.to(torch.uint8)
        tensors[f"{prefix}.scales_OG"] = scales.half()
        for part in ("qweight", "qzeros", "scales"):
            tensors[f"{prefix}.{part}"] = getattr(packed, part).contiguous()
    save_file({name: tensors[name].clone() for name in sorted(tensors)}, path)


def _rounded(quantizer_class):
    """Return weights and what AutoAWQ's rounding makes of them, for three group sizes.

    The range of each group is 15 times a float16, so that its scale is the same number before
    and after it is stored, and two right implementations agree in every bit.
    """
    import torch

    tensors = {}
    for group_size in ROUNDING_GROUP_SIZES:
        generator = torch.Generator().manual_seed(group_size)
        groups = torch.rand(12, 384 // group_size, group_size, generator=generator)
        scales = (
            (torch.rand(*groups.shape[:2], 1, generator=generator) * 0.02 + 1e-4).half().float()
        )
        lows = -torch.randint(0, 15 * 64, scales.shape, generator=generator) / 64
        groups = (groups * 15 + lows) * scales
        groups[..., 0:1] = lows * scales
        groups[..., 7:8] = (lows + 15) * scales
        groups[0, 0] = 0
        weight = groups.reshape(12, 384)
        _, scales, zeros, codes = _quantize(quantizer_class, weight, group_size)
        prefix = f"rounding-g{group_size}"
        tensors[f"{prefix}.weight_OI"] = weight
        tensors[f"{prefix}.scales_OG"] = scales
        tensors[f"{prefix}.zeros_OG"] = zeros.to(torch.uint8)
        tensors[f"{prefix}.codes_OI"] = codes.to(torch.uint8)
    return tensors


def _weight(seed, shape, group_size):
    import torch

    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.05
    weight[0, :group_size] = 0
    weight[1, :group_size] = weight[1, :group_size].abs()
    weight[2, :group_size] = -weight[2, :group_size].abs()
    weight[3] *= 1e-4
    return weight


def _quantize(quantizer_class, weight, group_size):
    """Return AutoAWQ's rounded weight, scales and zero points, and the codes that it stands for."""
    import torch

    settings = types.SimpleNamespace(group_size=group_size, zero_point=True, w_bit=4)
    rounded, scales, zeros = quantizer_class.pseudo_quantize_tensor(settings, weight.clone())
    scales_OI = scales.repeat_interleave(group_size, dim=1)
    zeros_OI = zeros.repeat_interleave(group_size, dim=1)
    return rounded, scales, zeros, torch.round(rounded / scales_OI) + zeros_OI


if __name__ == "__main__":
    main(Path(sys.argv[1]))

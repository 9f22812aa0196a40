"""The Triton kernels: in Triton's interpreter where there is no GPU, and on one where there is.

The interpreter must be chosen before triton is imported, so those cases run in a process of
their own; ``TRITON_INTERPRET=1 pytest tests/kernels/test_cuda_packed_matmul.py`` does the same.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from forge.kernels.cpu.quantized.packed_layout import KINDS
from forge.kernels.cuda import packed_matmul
from forge.kernels.cuda.packed_matmul import MOST_TABLE_ROWS, MOST_TILE_ROWS, multiply
from tests.kernels.test_packed_matmul import weight_of

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETS else "cuda"
CASES = [
    ("u4", 1, 64, 200, 384),
    ("u4", 1, 128, 4200, 1024),
    ("u4", 3, 32, 72, 96),
    ("u4", 16, 128, 128, 1024),
    ("u4", MOST_TILE_ROWS, 64, 200, 192),
    ("u4", 70, 128, 88, 256),
    ("u8", 1, 96, 40, 96),
    ("u8", 2, 9, 40, 9),
    ("u8", 20, 32, 40, 96),
    ("u8", 40, 32, 40, 96),
    ("nf4", 1, 64, 72, 1024),
    ("nf4", MOST_TABLE_ROWS, 64, 72, 128),
    ("nf4", 17, 64, 72, 128),
    ("fp4", 1, 64, 16, 64),
]


def _rounds_weights(kind: str, rows: int) -> bool:
    return rows > (1 if KINDS[kind].has_zeros else MOST_TABLE_ROWS)


needs_device = pytest.mark.skipif(
    not HAS_TRITON or not (INTERPRETS or torch.cuda.is_available()),
    reason="needs triton and a CUDA device, or TRITON_INTERPRET=1",
)


@needs_device
@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "rows", "group", "num_out", "num_in"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_dequantizing_and_multiplying(
    kind: str, rows: int, group: int, num_out: int, num_in: int, dtype: torch.dtype
) -> None:
    if INTERPRETS and dtype == torch.bfloat16 and (rows > 1 or num_out > 4096):
        pytest.skip("the interpreter multiplies the bits of bfloat16 tiles, and cuts off digits")
    weight, dense_OI = weight_of(kind, num_out, num_in, group)
    scales = weight.scales.view(f"int{8 * weight.kind.scale_bytes}")
    arrays = (weight.words.view("int32"), scales, weight.zeros)
    tensors = [torch.from_numpy(array).to(DEVICE) for array in arrays]
    x = torch.randn(rows, num_in, generator=torch.Generator().manual_seed(rows)).to(dtype)
    y = multiply(
        x.to(DEVICE), *tensors, kind=weight.kind, group_size=weight.group_size,
        num_outputs=num_out,
    )  # fmt: skip
    assert y.dtype == dtype
    assert y.shape == (rows, num_out)
    dense = torch.from_numpy(dense_OI)
    expected = x.double() @ dense.T
    step = torch.finfo(dtype).eps
    # The result is rounded once; for several rows, weights are rounded to their type as well.
    slack = 1e-5 * (x.double().abs() @ dense.abs().T)
    if _rounds_weights(kind, rows):
        slack += step / 2 * (x.double().abs() @ dense.abs().T)
    assert ((y.cpu().double() - expected).abs() <= step * expected.abs() + slack).all()


@needs_device
@pytest.mark.gpu
def test_no_rows() -> None:
    weight, _ = weight_of("u4", 16, 64, 64)
    words = torch.from_numpy(weight.words.view("int32")).to(DEVICE)
    scales = torch.from_numpy(weight.scales.view("int16")).to(DEVICE)
    zeros = torch.from_numpy(weight.zeros).to(DEVICE)
    y = multiply(
        torch.empty(0, 64, device=DEVICE), words, scales, zeros, kind=weight.kind,
        group_size=64, num_outputs=16,
    )  # fmt: skip
    assert y.shape == (0, 16)


@needs_device
@pytest.mark.gpu
def test_a_weight_is_dequantized_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, dense_OI = weight_of("u4", 200, 192, 64)
    arrays = (weight.words.view("int32"), weight.scales.view("int16"), weight.zeros)
    tensors = [torch.from_numpy(array).to(DEVICE) for array in arrays]
    x = torch.randn(40, 192, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(packed_matmul, "_SLICE_ELEMENTS", 100 * 192)
    y = multiply(x.to(DEVICE), *tensors, kind=weight.kind, group_size=64, num_outputs=200)
    torch.testing.assert_close(y.cpu().double(), x.double() @ torch.from_numpy(dense_OI).T,
                               rtol=1e-4, atol=1e-4)  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed (pip install triton)")
def test_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    skipped = sum(rows > 1 or num_out > 4096 for _, rows, _, num_out, _ in CASES)
    assert f"{3 * len(CASES) + 2 - skipped} passed, {skipped} skipped" in done.stdout


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from forge.kernels.cuda import packed_kernels

SIZES = {
    "decode_codes": dict(OUTPUTS=16, WORDS=64, HAS_ZEROS=True),
    "decode_table": dict(OUTPUTS=16, WORDS=32, HAS_ZEROS=False),
    "tile": dict(ROWS=16, OUTPUTS=64, WORDS=16, HAS_ZEROS=True),
    "dequantize": dict(OUTPUTS=16, WORDS=32, HAS_ZEROS=True),
}
for name, sizes in SIZES.items():
    kernel = getattr(packed_kernels, name)
    types = {
        "x": "*bf16", "words": "*i32", "scales": "*fp16", "zeros": "*u8", "table": "*fp32",
        "out": "*bf16",
    }
    values = dict(GROUP_WORDS=16, BITS=4, **sizes)
    signature = {
        each: types.get(each, "constexpr" if each in values else "i32")
        for each in kernel.arg_names
    }
    constants = {(kernel.arg_names.index(each),): value for each, value in values.items()}
    made = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", 80, 32),
    )
    print(name, "mma" if "mma." in made.asm["ptx"] else "plain", len(made.asm["cubin"]) > 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed (pip install triton)")
def test_compiles_for_a_device_that_is_not_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"},
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    # Several rows go through the tensor cores.
    assert done.stdout.split() == [
        "decode_codes", "plain", "True", "decode_table", "plain", "True", "tile", "mma", "True",
        "dequantize", "plain", "True",
    ]  # fmt: skip

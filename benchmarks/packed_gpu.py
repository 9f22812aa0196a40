"""Race packed weights against plain ones on a GPU: one product, by rows of activations.

    python -m benchmarks.packed_gpu [--kinds u4,nf4] [--shape 14336x4096] [--rows 1,4,16,256,4096]

Needs a CUDA device and triton. Both products are recorded into a CUDA graph and replayed, so that
the time is the device's alone; each turn takes another copy of the weight, so that no cache holds
it. Before a time counts, the product is compared with the dequantized weight in float64.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch

from benchmarks.command import Record, chosen, rows_of, run_benchmark, say
from benchmarks.process import BenchmarkError
from benchmarks.tables import render_table
from forge.kernels.cpu.quantized.packed_layout import KINDS
from forge.kernels.cuda.packed_matmul import multiply
from forge.runtime.packed import lay_out

_COPIES: Final = 8
_LARGEST_ERROR: Final = 1e-2
"""Of a result's norm: what rounding weights, activations and results to bfloat16 costs."""


def weight_of(
    kind: str, num_out: int, num_in: int, group_size: int
) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor, int]:
    """Make a random packed weight on the device.

    Returns:
        Its product with activations (each call takes the next copy), the numbers that it stands
        for, float64 [O, I], and the bytes that one product reads.
    """
    row, random = KINDS[kind], np.random.default_rng(0)
    codes_OI = random.integers(0, 1 << row.bits, (num_out, num_in), dtype=np.uint8)
    shape_OG = (num_out, num_in // group_size)
    scales_OG = (random.random(shape_OG) * 0.02 + 0.001).astype(np.float16)
    zeros_OG = None if row.table else random.integers(0, 1 << row.bits, shape_OG, dtype=np.uint8)
    packed = lay_out(codes_OI, scales_OG, zeros_OG, kind=kind)
    words, zeros = packed.words.view("int32"), packed.zeros
    scales = packed.scales.view(f"int{8 * row.scale_bytes}")
    host = [torch.from_numpy(array) for array in (words, scales, zeros)]
    copies = [[tensor.cuda() for tensor in host] for _ in range(_COPIES)]
    turn = iter(range(sys.maxsize))

    def product(x: torch.Tensor) -> torch.Tensor:
        copy = copies[next(turn) % _COPIES]
        return multiply(x, *copy, kind=row, group_size=group_size, num_outputs=num_out)

    codes = torch.from_numpy(codes_OI).cuda()
    values = torch.tensor(row.table, dtype=torch.float64, device="cuda")[codes.long()] \
        if row.table else codes.double()  # fmt: skip
    if zeros_OG is not None:
        values -= _spread(zeros_OG, group_size)
    return product, values * _spread(scales_OG, group_size), packed.num_bytes


def _spread(values_OG: np.ndarray[Any, Any], group_size: int) -> torch.Tensor:
    return torch.from_numpy(values_OG).cuda().double().repeat_interleave(group_size, 1)


def microseconds(product: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    """Return the device's time of one product."""
    from triton.testing import do_bench_cudagraph

    def every_copy() -> None:
        for _ in range(_COPIES):
            product(x)

    return float(do_bench_cudagraph(every_copy, rep=50)) * 1e3 / _COPIES


def measure(arguments: argparse.Namespace) -> Record:
    """Measure every kind at every number of rows."""
    if not torch.cuda.is_available():
        raise BenchmarkError("there is no CUDA device here")
    num_out, num_in = (int(number) for number in arguments.shape.split("x"))
    runs = []
    for kind in chosen(arguments.kinds, KINDS):
        product, dense_OI, num_bytes = weight_of(kind, num_out, num_in, arguments.group_size)
        plain = [dense_OI.bfloat16() for _ in range(_COPIES)]
        turn = iter(range(sys.maxsize))

        def baseline(
            x: torch.Tensor, plain: Sequence[torch.Tensor] = plain, turn: Any = turn
        ) -> torch.Tensor:
            return torch.nn.functional.linear(x, plain[next(turn) % _COPIES])

        for rows in (int(number) for number in arguments.rows.split(",")):
            x = torch.randn(rows, num_in, device="cuda").bfloat16()
            expected = x.double() @ dense_OI.T
            error = float((product(x).double() - expected).norm() / expected.norm())
            if not error < _LARGEST_ERROR:
                raise BenchmarkError(f"{kind} with {rows} rows is wrong by {error:.1%}")
            say(f"{kind} {rows}")
            runs.append(
                {
                    "kind": kind, "rows": rows, "bytes": num_bytes, "error": error,
                    "packed_us": microseconds(product, x), "plain_us": microseconds(baseline, x),
                }
            )  # fmt: skip
    return {"device": torch.cuda.get_device_name(0), "shape": arguments.shape, "runs": runs}


def report(record: Record) -> str:
    """Render the table."""
    header = ("weight", "rows", "packed µs", "bfloat16 µs", "ratio", "GB/s", "relative error")
    rows = []
    for run in rows_of(record, "runs"):
        packed, plain = float(str(run["packed_us"])), float(str(run["plain_us"]))
        rows.append(
            (
                str(run["kind"]), f"{run['rows']:,}", f"{packed:.1f}", f"{plain:.1f}",
                f"{plain / packed:.2f}", f"{float(str(run['bytes'])) / packed / 1e3:,.0f}",
                f"{run['error']:.1e}",
            )
        )  # fmt: skip
    return f"{record['device']}, weights {record['shape']}.\n\n{render_table(header, rows)}"


def main() -> int:
    """Time one product with a packed and with a plain weight on a GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.packed_gpu", description=main.__doc__
    )
    parser.add_argument("--kinds", default="u4,nf4", help="[%(default)s]")
    parser.add_argument("--shape", default="14336x4096", help="outputs x inputs [%(default)s]")
    parser.add_argument("--group-size", type=int, default=128, help="[128]")
    parser.add_argument("--rows", default="1,4,16,256,1024,4096", help="[%(default)s]")
    return run_benchmark(parser, "packed_gpu", measure, report)


if __name__ == "__main__":
    raise SystemExit(main())

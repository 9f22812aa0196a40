"""What the check says that a method on whole matrices needs is what it takes, at most."""

from __future__ import annotations

import importlib
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from forge.kernels import blas
from forge.merge.check.matrices import working_bytes
from forge.merge.contract import MethodCall
from forge.merge.plan import JobInput, MergeJob
from forge.recipes.reference import ModelReference
from tests.merge.operands import Result

VALUES = {
    "lambda": 1.0,
    "outside_layers": "mean",
    "common_space_fraction": 0.8,
    "alpha": 0.9,
}


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "iso_cts", "regmean", "fisher"])
@pytest.mark.parametrize("shape", [(300, 1200), (1200, 300), (400, 400)], ids=str)
def test_memory_is_as_said(method: str, shape: tuple[int, int]) -> None:
    has_base = method not in ("regmean", "fisher")
    draw = np.random.default_rng(1)
    arrays = [draw.standard_normal(shape) for _ in range(2 + has_base)]
    result = Result(arrays, has_base=has_base, dtype="BF16")
    item = JobInput(ModelReference("m"), "t")
    job = MergeJob(
        output="t",
        shape=shape,
        dtype="BF16",
        inputs=(item,) * len(arrays),
        has_base=has_base,
        method=method,
        values=VALUES,
        models=({"weight": 1.0},) * 2,
        streams=(),
        layer=0,
        companions=() if has_base else (item, item),
    )
    sizes = {"regmean": shape[1] ** 2, "fisher": shape[0] * shape[1]}
    operands = result.operands
    if not has_base:
        stored = tuple(np.ones(sizes[method], np.float32) for _ in range(2))
        if method == "regmean":
            stored = tuple(np.eye(shape[1], dtype=np.float32).reshape(-1) for _ in range(2))
        operands = replace(operands, companions=stored)
    call = MethodCall(job.values, job.models, depth=0.5)
    module = importlib.import_module(f"forge.merge.methods.{method}")
    with blas.one_thread():
        module.merge(operands, call)  # What is compiled on the first call is not the method's.
    with blas.one_thread():
        tracemalloc.start()
        module.merge(operands, call)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= working_bytes(job) <= 2.5 * peak

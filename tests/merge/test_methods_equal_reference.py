"""Every method equals the independent float64 reference, rounded once.

At least 99.99 % of bfloat16 elements are the correctly rounded ones and none is off by more than
one unit in the last place; float32 results agree to 2e-6 of the tensor's greatest magnitude, and
float64 inputs are merged in float64.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from forge.kernels import blas
from forge.merge.catalog import METHODS
from forge.merge.contract import MethodCall, Stream
from tests.merge.operands import Array, Result, encode, round_to, steps_apart
from tests.reference import methods as reference
from tests.reference.philox import uniforms

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (301, 700)  # more elements than 100 / (1 - 0.9999), and no multiple of a block


@dataclass(frozen=True)
class Case:
    """A method with parameters, and the same call to the reference."""

    method: str
    num_models: int
    has_base: bool
    expected: Callable[[list[Array]], Array]
    values: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[Mapping[str, Any], ...] = ()
    label: str = ""
    depth: float | None = 0.5
    companions: Callable[[tuple[int, ...], int], list[Array]] | None = None


STREAMS = tuple(Stream(key=1000 + m, stream=-(77 + m)) for m in range(5))


def draws(count: int, shape: tuple[int, ...]) -> list[Array]:
    numel = int(np.prod(shape))
    return [uniforms(numel, key=s.key, stream=s.stream).reshape(shape) for s in STREAMS[:count]]


def grams(shape: tuple[int, ...], count: int) -> list[Array]:
    """Second moments of the inputs of linears of a shape, float32, one in four inputs never on."""
    generator = np.random.default_rng([9, *shape])
    found = []
    for _ in range(count):
        inputs = generator.standard_normal((2 * shape[-1] + 9, shape[-1]))
        inputs[:, ::4] = 0.0
        found.append((inputs.T @ inputs / len(inputs)).astype(np.float32).astype(np.float64))
    return found


def fishers(shape: tuple[int, ...], count: int) -> list[Array]:
    """Mean squares of gradients, float32, some of them 0 in all models."""
    generator = np.random.default_rng([8, *shape])
    on = generator.random(shape) > 0.1
    return [
        (on * generator.standard_normal(shape) ** 2 * 1e-9).astype(np.float32).astype(np.float64)
        for _ in range(count)
    ]


def family(**extra: Any) -> dict[str, Any]:
    return {"normalize": False, "lambda": 1.0, "int8_mask": False, **extra}


W2 = [0.6, 0.35]
W3 = [0.5, -0.2, 0.9]


def per(**columns: list[float]) -> tuple[dict[str, float], ...]:
    names = list(columns)
    return tuple(dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True))


def cases() -> list[Case]:
    found: list[Case] = []

    def add(
        method: str,
        num_models: int,
        has_base: bool,
        expected: Callable[[list[Array]], Array],
        values: Mapping[str, Any] | None = None,
        models: tuple[Mapping[str, Any], ...] | None = None,
        label: str = "",
        depth: float | None = 0.5,
        companions: Callable[[tuple[int, ...], int], list[Array]] | None = None,
    ) -> None:
        models = models if models is not None else tuple({} for _ in range(num_models))
        values = values or {}
        found.append(
            Case(method, num_models, has_base, expected, values, models, label, depth, companions)
        )

    add("linear", 3, False, lambda x: reference.linear(x, weights=[1, 2, 0.5]),
        {"normalize": True}, per(weight=[1, 2, 0.5]), "normalized")  # fmt: skip
    add("linear", 2, False, lambda x: reference.linear(x, weights=W2, normalize=False),
        {"normalize": False}, per(weight=W2), "plain")  # fmt: skip
    for t in (0.0, 0.3, 0.5, 1.0):
        add("slerp", 1, True, lambda x, t=t: reference.slerp(x[0], x[1], t=t), {"t": t},
            label=f"t={t}")  # fmt: skip
    for flatten, row_wise in ((True, False), (False, False), (False, True)):
        for has_base in (False, True):
            flags = {"nuslerp_flatten": flatten, "nuslerp_row_wise": row_wise}
            add(
                "nuslerp", 2, has_base,
                lambda x, f=flatten, r=row_wise, b=has_base: reference.nuslerp(
                    x[-2:], weights=W2, base=x[0] if b else None, flatten=f, row_wise=r
                ),
                flags, per(weight=W2), f"flatten={flatten} row_wise={row_wise} base={has_base}",
            )  # fmt: skip
    for has_base in (False, True):
        add("multislerp", 3, has_base,
            lambda x, b=has_base: reference.multislerp(
                x[-3:], weights=[1, 2, 0.5], base=x[0] if b else None),
            {"normalize_weights": True, "eps": 1e-8}, per(weight=[1, 2, 0.5]), f"base={has_base}",
        )  # fmt: skip
    add("karcher", 3, False, reference.karcher, {"max_iter": 10, "tol": 1e-5})
    add("task_arithmetic", 2, True,
        lambda x: reference.task_arithmetic(x[0], x[1:], weights=W2, lambda_=1.3),
        family(**{"lambda": 1.3}), per(weight=W2))  # fmt: skip
    add("task_arithmetic", 3, True,
        lambda x: reference.task_arithmetic(x[0], x[1:], weights=W3, normalize=True),
        family(normalize=True), per(weight=W3), "normalized")  # fmt: skip
    for densities in ([0.5, 0.5], [0.2, 1.0], [0.0, 0.013]):
        add("ties", 2, True,
            lambda x, d=densities: reference.ties(x[0], x[1:], weights=W2, densities=d),
            family(normalize=True, rescale="none"), per(weight=W2, density=densities),
            f"densities={densities}")  # fmt: skip
    add("ties", 3, True,
        lambda x: reference.ties(x[0], x[1:], weights=W3, densities=[0.3, 0.6, 0.9],
                                 normalize=False, rescale=True, lambda_=0.7),
        family(rescale="l1", **{"lambda": 0.7}), per(weight=W3, density=[0.3, 0.6, 0.9]),
        "l1")  # fmt: skip
    for rescale in ("density", "l1", "none"):
        for method in ("dare_linear", "dare_ties"):
            add(method, 2, True,
                lambda x, m=method, r=rescale: getattr(reference, m)(
                    x[0], x[1:], weights=W2, densities=[0.5, 0.27],
                    uniforms=draws(2, x[0].shape), rescale=r),
                family(rescale=rescale), per(weight=W2, density=[0.5, 0.27]), rescale)  # fmt: skip
        for method in ("della", "della_linear"):
            add(method, 2, True,
                lambda x, m=method, r=rescale: getattr(reference, m)(
                    x[0], x[1:], weights=W2, densities=[0.5, 0.3], epsilons=[0.15, 0.1],
                    uniforms=draws(2, x[0].shape), rescale=r, normalize=m == "della"),
                family(rescale=rescale, normalize=method == "della"),
                per(weight=W2, density=[0.5, 0.3], epsilon=[0.15, 0.1]), rescale)  # fmt: skip
    add("della", 2, True,
        lambda x: reference.della(x[0], x[1:], weights=W2, densities=[1.0, 0.3],
                                  epsilons=[0.15, 0.11], uniforms=draws(2, x[0].shape)),
        family(rescale="density", normalize=True),
        per(weight=W2, density=[1.0, 0.3], epsilon=[0.15, 0.11]), "one dense")  # fmt: skip
    add("dare_linear", 2, True,
        lambda x: reference.dare_linear(x[0], x[1:], weights=W2, densities=[0.0, 1.0],
                                        uniforms=draws(2, x[0].shape), rescale="none"),
        family(rescale="none"), per(weight=W2, density=[0.0, 1.0]), "none and all")  # fmt: skip
    add("della_linear", 2, True,
        lambda x: reference.della_linear(x[0], x[1:], weights=W2, densities=[0.0, 0.4],
                                         epsilons=[0.15, 0.1], uniforms=draws(2, x[0].shape)),
        family(rescale="density"), per(weight=W2, density=[0.0, 0.4], epsilon=[0.15, 0.1]),
        "one empty")  # fmt: skip
    add("dare_ties", 5, True,
        lambda x: reference.dare_ties(x[0], x[1:], weights=[1, -1, 0.5, 2, 0.1],
                                      densities=[0.5] * 5, uniforms=draws(5, x[0].shape),
                                      normalize=True),
        family(rescale="density", normalize=True),
        per(weight=[1, -1, 0.5, 2, 0.1], density=[0.5] * 5), "five models")  # fmt: skip
    add("ties", 4, True,
        lambda x: reference.ties(x[0], x[1:], weights=[1, 2, 3, 4], densities=[0.3] * 4),
        family(normalize=True, rescale="none"),
        per(weight=[1, 2, 3, 4], density=[0.3] * 4), "four models")  # fmt: skip
    for method in ("breadcrumbs", "breadcrumbs_ties"):
        for densities, gammas in (([0.9, 0.5], [0.01, 0.02]), ([0.97, 1.0], [0.1, 0.01])):
            add(method, 2, True,
                lambda x, m=method, d=densities, g=gammas: getattr(reference, m)(
                    x[0], x[1:], weights=W2, densities=d, gammas=g),
                family(), per(weight=W2, density=densities, gamma=gammas),
                f"{densities}")  # fmt: skip
    for topk in (1.0, 0.1):
        add("sce", 3, True, lambda x, k=topk: reference.sce(x[0], x[1:], select_topk=k),
            {"select_topk": topk, "int8_mask": False}, label=f"topk={topk}")  # fmt: skip
    for filter_wise in (False, True):
        add("model_stock", 3, True,
            lambda x, f=filter_wise: reference.model_stock(x[0], x[1:], filter_wise=f),
            {"filter_wise": filter_wise}, label=f"filter_wise={filter_wise}")  # fmt: skip
    add("nearswap", 1, True, lambda x: reference.nearswap(x[0], x[1], t=0.001), {"t": 0.001})
    add("arcee_fusion", 1, True, lambda x: reference.arcee_fusion(x[0], x[1]))
    add("ram", 3, True, lambda x: reference.ram(x[0], x[1:], epsilon=2e-3), {"epsilon": 2e-3})
    add("ramplus_tl", 3, True,
        lambda x: reference.ramplus_tl(x[0], x[1:], epsilon=2e-3, r=0.1, alpha=0.2),
        {"epsilon": 2e-3, "r": 0.1, "alpha": 0.2})  # fmt: skip
    for depth, layer in ((None, None), (0.0, 1), (0.5, 3), (1.0, 5)):
        add("lines", 2, True,
            lambda x, n=layer: reference.lines(
                x[0], x[1:], weights=W2, layer=n, num_layers=5),
            models=per(weight=W2), label=f"layer={layer}", depth=depth)  # fmt: skip
    add("lines", 3, True,
        lambda x: reference.lines(x[0], x[1:], weights=[1, 1, 1], layer=2, num_layers=5,
                                  alpha=0.3, beta=-0.2),
        {"alpha": 0.3, "beta": -0.2}, per(weight=[1.0, 1.0, 1.0]), "given", depth=0.25)  # fmt: skip
    outside = {"outside_layers": "mean"}
    for lambda_, weights in ((1.0, [1.0, 1.0]), (0.7, W2), (1.0, W3)):
        values, label = {"lambda": lambda_, **outside}, f"{lambda_} {weights}"
        for method in ("tsv_m", "iso_c"):
            add(method, len(weights), True,
                lambda x, m=method, w=weights, f=lambda_: getattr(reference, m)(
                    x[0], x[1:], weights=w, lambda_=f),
                values, per(weight=weights), label)  # fmt: skip
        for fraction in (0.8, 0.0, 1.0) if weights == W2 else (0.8,):
            add("iso_cts", len(weights), True,
                lambda x, w=weights, s=fraction, f=lambda_: reference.iso_cts(
                    x[0], x[1:], weights=w, fraction=s, lambda_=f),
                {**values, "common_space_fraction": fraction}, per(weight=weights),
                f"{label} {fraction}")  # fmt: skip
    for alpha in (0.9, 0.0):
        add("regmean", 3, False,
            lambda x, a=alpha: _regmean(x, [1, 2, 0.5], alpha=a),
            {"alpha": alpha}, per(weight=[1, 2, 0.5]), f"{alpha}", companions=grams)  # fmt: skip
    add("fisher", 3, False,
        lambda x: reference.fisher(x, fishers=fishers(x[0].shape, 3), weights=[1, 2, 0.5]),
        models=per(weight=[1, 2, 0.5]), companions=fishers)  # fmt: skip
    add("passthrough", 1, False, lambda x: reference.passthrough(x[0], scale=0.5),
        models=({"scale": 0.5},))  # fmt: skip
    return found


def _regmean(tensors: list[Array], weights: list[float], *, alpha: float) -> Array:
    """The reference, and the mean where an input is never on, which lstsq would leave at 0."""
    if tensors[0].ndim != 2:
        return reference.regmean(tensors, grams=[], weights=weights)
    found = reference.regmean(
        tensors, grams=grams(tensors[0].shape, 3), weights=weights, alpha=alpha
    )
    found[:, ::4] = np.average(np.stack(tensors), axis=0, weights=weights)[:, ::4]
    return found


CASES = cases()


def models_near_a_base(count: int, shape: tuple[int, ...], dtype: str, seed: int) -> list[Array]:
    """A base and fine-tunes of it, rounded to ``dtype``: about 0.02 and 0.002 in size."""
    generator = np.random.default_rng(seed)
    base = round_to(generator.standard_normal(shape) * 0.02, dtype)
    tunes = [round_to(base + generator.standard_normal(shape) * 0.002, dtype) for _ in range(count)]
    return [base, *tunes]


def run(case: Case, arrays: list[Array], *, dtype: str, out_dtype: str | None = None) -> Result:
    method = importlib.import_module(f"forge.merge.methods.{case.method}")
    result = Result(arrays, has_base=case.has_base, dtype=dtype, out_dtype=out_dtype)
    call = MethodCall(case.values, case.models, STREAMS[: case.num_models], case.depth)
    operands = result.operands
    if case.companions is not None and (len(result.shape) == 2 or case.method == "fisher"):
        held = case.companions(result.shape, case.num_models)
        stored = tuple(each.astype(np.float32).reshape(-1) for each in held)
        operands = replace(operands, companions=stored)
    statistics = method.merge(operands, call)
    assert not any(statistics.bad_inputs)
    assert not statistics.bad_output
    return result


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Matrices of this size are not worth a second thread of BLAS."""
    with blas.one_thread():
        yield


def test_every_method_of_the_catalog_is_covered() -> None:
    assert {case.method for case in CASES} == set(METHODS.names())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method} {case.label}".strip())
def test_bfloat16_is_correctly_rounded(case: Case) -> None:
    arrays = models_near_a_base(case.num_models, SHAPE, "BF16", seed=5)
    arrays = arrays if case.has_base else arrays[1:]
    result = run(case, arrays, dtype="BF16")
    expected = encode(case.expected(arrays), "BF16")
    apart = steps_apart(result.stored(), expected)  # type: ignore[arg-type]
    assert int(apart.max()) <= 1
    assert float((apart == 0).mean()) >= 0.9999


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method} {case.label}".strip())
@pytest.mark.parametrize("shape", [(7,), (1,), (5, 1), (3, 4, 5)], ids=str)
def test_float32_agrees_on_odd_shapes(case: Case, shape: tuple[int, ...]) -> None:
    arrays = models_near_a_base(case.num_models, shape, "F32", seed=6)
    arrays = arrays if case.has_base else arrays[1:]
    result = run(case, arrays, dtype="F32")
    expected = case.expected(arrays)
    assert np.abs(result.values() - expected).max() <= 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method} {case.label}".strip())
def test_float64_inputs_are_merged_in_float64(case: Case) -> None:
    arrays = models_near_a_base(case.num_models, (13, 90), "F64", seed=7)
    arrays = arrays if case.has_base else arrays[1:]
    result = run(case, arrays, dtype="F64")
    expected = case.expected(arrays)
    # karcher's angle of nearly equal vectors loses half the digits in either implementation
    tolerance = 1e-9 if case.method == "karcher" else 1e-12
    assert np.abs(result.values() - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("dtype", ["F16", "F32"])
@pytest.mark.parametrize("method", ["ties", "slerp", "dare_linear"])
def test_formats_mix(method: str, dtype: str) -> None:
    case = next(case for case in CASES if case.method == method)
    arrays = models_near_a_base(case.num_models, (40, 100), dtype, seed=8)
    result = run(case, arrays, dtype=dtype, out_dtype="BF16")
    expected = encode(case.expected(arrays), "BF16")
    assert int(steps_apart(result.stored(), expected).max()) <= 1  # type: ignore[arg-type]

"""The float64 references say what mergekit 0.1.5 does.

Every case runs mergekit itself twice: in float32, where it must agree to 1e-5 of the tensor's
largest magnitude, and in float64, where it must agree to 1e-10 unless the case says that mergekit
leaves double precision on its way. Inputs have no equal magnitudes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.oracle.cases import (
    CASES,
    DEGENERATE,
    DENSITIES,
    SIGNED_WEIGHTS,
    Case,
    Inputs,
    degenerate_inputs,
    random_inputs,
)
from tests.oracle.mergekit_runner import (
    SHAPES,
    Array,
    Precision,
    Tensors,
    forbid_network,
    run_mergekit,
)
from tests.reference import methods as ref

TOLERANCE = 1e-5
"""Largest error in float32, relative to the tensor's largest magnitude."""


def _merge(case: Case, inputs: Inputs, folder: Path, precision: Precision) -> Tensors:
    return run_mergekit(
        folder,
        case.method,
        inputs.models[: case.num_models],
        base=inputs.base if case.base else None,
        model_parameters=case.model_parameters(),
        parameters=case.parameters,
        precision=precision,
    )


def _expected(case: Case, inputs: Inputs, name: str) -> Array:
    models = inputs.models[: case.num_models]
    return case.reference(inputs.base[name], [m[name] for m in models])


def _assert_agree(
    merged: Tensors,
    expected: Callable[[str], Array],
    tolerance: float,
    *,
    names: Iterable[str] = SHAPES,
) -> None:
    assert merged.keys() == SHAPES.keys()
    for name in names:
        want = expected(name)
        error = np.abs(merged[name] - want).max() / np.abs(want).max()
        assert error <= tolerance, f"{name} is off by {error:.2g} of its largest magnitude"


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_mergekit(
    case: Case, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_network(monkeypatch)
    inputs = random_inputs(precision, sparse=case.sparse)
    merged = _merge(case, inputs, tmp_path, precision)
    _assert_agree(
        merged,
        lambda name: _expected(case, inputs, name),
        TOLERANCE if precision == "float32" else case.double_tolerance,
    )


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("case", DEGENERATE, ids=lambda case: case.name)
def test_agrees_on_zero_equal_and_parallel_tensors(
    case: Case, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_network(monkeypatch)
    inputs = degenerate_inputs(precision)
    merged = _merge(case, inputs, tmp_path, precision)
    _assert_agree(
        merged,
        lambda name: _expected(case, inputs, name),
        TOLERANCE if precision == "float32" else case.double_tolerance,
    )


RANDOM_METHODS: Mapping[str, Callable[..., Array]] = {
    "dare_linear": ref.dare_linear,
    "dare_ties": ref.dare_ties,
    "della": ref.della,
    "della_linear": ref.della_linear,
}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("method", RANDOM_METHODS)
def test_random_methods_agree_given_the_same_draws(
    method: str,
    rescale: bool,
    normalize: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """mergekit draws by torch.bernoulli; here it draws from uniform numbers that are kept.

    In float32 only, because mergekit's random methods leave double precision anyway.
    """
    import torch

    rng = np.random.default_rng(11)
    drawn: defaultdict[int, list[Array]] = defaultdict(list)

    def bernoulli(probabilities: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        uniforms = rng.random(tuple(probabilities.shape))
        drawn[probabilities.numel()].append(uniforms)
        return (torch.from_numpy(uniforms) < probabilities).to(probabilities.dtype)

    forbid_network(monkeypatch)
    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    inputs = random_inputs("float32")
    each = {"weight": SIGNED_WEIGHTS, "density": DENSITIES}
    keywords: dict[str, object] = {"weights": SIGNED_WEIGHTS, "densities": DENSITIES}
    if method.startswith("della"):
        each["epsilon"] = keywords["epsilons"] = [0.15, 0.05, 0.19]
    merged = run_mergekit(
        tmp_path,
        method,
        inputs.models,
        base=inputs.base,
        model_parameters=[{key: values[i] for key, values in each.items()} for i in range(3)],
        parameters={"rescale": rescale, "normalize": normalize, "lambda": 0.7},
        precision="float32",
    )
    assert {size: len(calls) for size, calls in drawn.items()} == {
        int(np.prod(shape)): 3 for shape in SHAPES.values()
    }

    def expected(name: str) -> Array:
        shape = SHAPES[name]
        return RANDOM_METHODS[method](
            inputs.base[name],
            [m[name] for m in inputs.models],
            uniforms=[u.reshape(shape) for u in drawn[int(np.prod(shape))]],
            rescale="l1" if rescale else "none",
            normalize=normalize,
            lambda_=0.7,
            **keywords,
        )

    # Of a three-dimensional tensor mergekit ranks along axis 1, the reference along the last.
    compared = [s for s in SHAPES if len(SHAPES[s]) < 3 or not method.startswith("della")]
    _assert_agree(merged, expected, TOLERANCE, names=compared)

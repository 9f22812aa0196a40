"""The float64 references say what mergekit 0.1.5 does.

Every case runs mergekit itself twice: in float32, where it must agree to 1e-5 of the tensor's
largest magnitude, and in float64, where it must agree to 1e-10 unless the case says that mergekit
leaves double precision on its way. Inputs have no equal magnitudes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tests.oracle.mergekit_runner import (
    SHAPES,
    Array,
    Precision,
    Tensors,
    filled,
    forbid_network,
    run_mergekit,
)
from tests.reference import methods as ref

TOLERANCE = 1e-5
"""Largest error in float32, relative to the tensor's largest magnitude."""


@dataclass(frozen=True)
class Inputs:
    """A base and three models: all different, ``sparse`` leaves most elements as in the base."""

    base: Tensors
    models: tuple[Tensors, ...]


def _inputs(precision: Precision, *, seed: int = 7, sparse: bool = False) -> Inputs:
    rng = np.random.default_rng(seed)

    def stored(x: Array) -> Array:
        return x.astype(precision).astype(np.float64)

    base = filled(lambda shape: stored(rng.normal(size=shape)))
    common = filled(lambda shape: rng.normal(size=shape))

    def fine_tune(name: str, scale: float) -> Array:
        shape = SHAPES[name]
        change = scale * (common[name] + 1.5 * rng.normal(size=shape))
        if sparse:
            change *= rng.random(shape) < 0.35
        return stored(base[name] + change)

    models = tuple({name: fine_tune(name, s) for name in SHAPES} for s in (0.3, 0.2, 0.5))
    return Inputs(base, models)


@dataclass(frozen=True)
class Case:
    """One recipe and the call of the reference that must give the same.

    ``reference`` gets the base and the models' arrays of one tensor; ``double_tolerance`` is the
    largest error of the run in float64.
    """

    name: str
    method: str
    reference: Callable[[Array, list[Array]], Array]
    num_models: int = 3
    base: bool = True
    each: Mapping[str, Sequence[float]] = field(default_factory=dict)
    parameters: Mapping[str, object] = field(default_factory=dict)
    sparse: bool = False
    double_tolerance: float = 1e-10

    def model_parameters(self) -> list[dict[str, float]]:
        if not self.each:
            return []
        return [
            {key: values[i] for key, values in self.each.items()} for i in range(self.num_models)
        ]


W = [0.5, 0.2, 0.9]
W_SIGNED = [0.5, -0.2, 0.9]
D = [0.5, 0.29, 0.8]


def _linear() -> list[Case]:
    return [
        Case(
            f"linear-normalize-{normalize}",
            "linear",
            lambda b, xs, n=normalize: ref.linear(xs, weights=W, normalize=n),
            base=False,
            each={"weight": W},
            parameters={"normalize": normalize},
        )
        for normalize in (True, False)
    ] + [
        Case("passthrough", "passthrough", lambda b, xs: xs[0], num_models=1, base=False),
        Case(
            "passthrough-scale",
            "passthrough",
            lambda b, xs: ref.passthrough(xs[0], scale=-0.5),
            num_models=1,
            base=False,
            each={"scale": [-0.5]},
        ),
    ]


def _spherical() -> list[Case]:
    cases = [
        Case(
            f"slerp-{t}",
            "slerp",
            lambda b, xs, t=t: ref.slerp(b, xs[0], t=t),
            num_models=1,
            parameters={"t": t},
        )
        for t in (0.0, 0.3, 0.5, 1.0)
    ]
    cases += [
        Case(
            f"nuslerp-base-{base}-flatten-{flatten}-rows-{rows}-{pair}",
            "nuslerp",
            lambda b, xs, base=base, f=flatten, r=rows, p=pair: ref.nuslerp(
                xs, weights=p, base=b if base else None, flatten=f, row_wise=r
            ),
            num_models=2,
            base=base,
            each={"weight": pair},
            parameters={"nuslerp_flatten": flatten, "nuslerp_row_wise": rows},
        )
        for base in (False, True)
        for flatten, rows, pair in (
            (True, False, [0.5, 0.2]),
            (True, True, [0.7, -0.2]),
            (False, False, [0.5, 0.2]),
            (False, True, [1.0, 3.0]),
        )
    ]
    cases += [
        Case(
            f"multislerp-base-{base}-normalize-{normalize}-eps-{eps}",
            "multislerp",
            lambda b, xs, base=base, n=normalize, e=eps: ref.multislerp(
                xs, weights=W, base=b if base else None, normalize_weights=n, eps=e
            ),
            base=base,
            each={"weight": W},
            parameters={"normalize_weights": normalize, "eps": eps},
        )
        for base in (False, True)
        for normalize, eps in ((True, 1e-8), (False, 1e-8), (True, 0.05))
    ]
    cases += [
        Case(
            "multislerp-one-model",
            "multislerp",
            lambda b, xs: ref.multislerp(xs, weights=[0.3], base=b),
            num_models=1,
            each={"weight": [0.3]},
        ),
        Case(
            "multislerp-two-that-cancel",
            "multislerp",
            # An eps above every mean direction's length takes the branch of cancelling models.
            lambda b, xs: ref.multislerp(xs, weights=[0.3, 0.7], eps=1.0),
            num_models=2,
            base=False,
            each={"weight": [0.3, 0.7]},
            parameters={"eps": 1.0},
        ),
    ]
    cases += [
        Case(
            f"karcher-{max_iter}-{tol}",
            "karcher",
            lambda b, xs, m=max_iter, t=tol: ref.karcher(xs, max_iter=m, tol=t),
            base=False,
            parameters={"max_iter": max_iter, "tol": tol},
        )
        for max_iter, tol in ((10, 1e-5), (1, 1e-5), (2, 1e-5), (50, 0.1))
    ]
    return cases


def _sparsified() -> list[Case]:
    cases: list[Case] = []
    for normalize in (False, True):
        for lambda_, weights in ((1.0, W), (0.7, W_SIGNED)):
            shared = {"weights": weights, "normalize": normalize, "lambda_": lambda_}
            parameters = {"normalize": normalize, "lambda": lambda_}
            tag = f"normalize-{normalize}-lambda-{lambda_}"
            cases.append(
                Case(
                    f"task_arithmetic-{tag}",
                    "task_arithmetic",
                    lambda b, xs, s=shared: ref.task_arithmetic(b, xs, **s),
                    each={"weight": weights},
                    parameters=parameters,
                )
            )
            cases.append(
                Case(
                    f"ties-{tag}",
                    "ties",
                    lambda b, xs, s=shared: ref.ties(b, xs, densities=D, **s),
                    each={"weight": weights, "density": D},
                    parameters=parameters,
                )
            )
            for method, function in (
                ("breadcrumbs", ref.breadcrumbs),
                ("breadcrumbs_ties", ref.breadcrumbs_ties),
            ):
                for rescale in (False, True):
                    gammas = [0.01, 0.2, 0.5]
                    cases.append(
                        Case(
                            f"{method}-rescale-{rescale}-{tag}",
                            method,
                            lambda b, xs, f=function, r=rescale, s=shared: f(
                                b, xs, densities=D, gammas=[0.01, 0.2, 0.5], rescale=r, **s
                            ),
                            each={"weight": weights, "density": D, "gamma": gammas},
                            parameters={**parameters, "rescale": rescale},
                        )
                    )
    for density in (0.0, 0.001, 0.57, 1.0):
        three = [density] * 3
        cases.append(
            Case(
                f"ties-density-{density}",
                "ties",
                lambda b, xs, d=three: ref.ties(b, xs, weights=W, densities=d, rescale=True),
                each={"weight": W, "density": three},
                parameters={"rescale": True},
            )
        )
        cases += [
            Case(
                f"breadcrumbs-density-{density}-gamma-{gamma}",
                "breadcrumbs",
                lambda b, xs, d=three, g=gamma: ref.breadcrumbs(
                    b, xs, weights=W, densities=d, gammas=[g] * 3
                ),
                each={"weight": W, "density": three, "gamma": [gamma] * 3},
            )
            for gamma in (0.0, 0.3, 0.97)
        ]
    return cases


def _from_statistics() -> list[Case]:
    cases = [
        Case(
            f"sce-{topk}-sparse-{sparse}",
            "sce",
            lambda b, xs, k=topk: ref.sce(b, xs, select_topk=k),
            parameters={"select_topk": topk},
            sparse=sparse,
        )
        for sparse in (False, True)
        for topk in (1.0, 0.57, 0.29, 0.1, 0.001)
    ]
    cases += [
        Case(
            f"model_stock-{num}-filter-wise-{filter_wise}-sparse-{sparse}",
            "model_stock",
            lambda b, xs, f=filter_wise: ref.model_stock(b, xs, filter_wise=f),
            num_models=num,
            parameters={"filter_wise": filter_wise},
            sparse=sparse,
        )
        for num in (2, 3)
        for filter_wise in (False, True)
        for sparse in (False, True)
    ]
    cases += [
        Case(
            f"nearswap-{t}",
            "nearswap",
            lambda b, xs, t=t: ref.nearswap(b, xs[0], t=t),
            num_models=1,
            parameters={"t": t},
            sparse=True,
        )
        for t in (0.0, 1e-4, 0.1, 10.0)
    ]
    cases += [
        Case(
            f"arcee_fusion-sparse-{sparse}",
            "arcee_fusion",
            lambda b, xs: ref.arcee_fusion(b, xs[0]),
            num_models=1,
            sparse=sparse,
        )
        for sparse in (False, True)
    ]
    cases += [
        Case(
            f"ram-{epsilon}",
            "ram",
            lambda b, xs, e=epsilon: ref.ram(b, xs, epsilon=e),
            parameters={"epsilon": epsilon},
            sparse=True,
        )
        for epsilon in (1e-5, 0.3)
    ]
    cases += [
        Case(
            f"ramplus_tl-{r}-{alpha}",
            "ramplus_tl",
            lambda b, xs, r=r, a=alpha: ref.ramplus_tl(b, xs, r=r, alpha=a),
            parameters={"r": r, "alpha": alpha},
            sparse=True,
            double_tolerance=1e-7,  # mergekit computes the factor in float32
        )
        for r, alpha in ((0.1, 0.2), (0.5, 3.0), (-1.0, 0.7))
    ]
    return cases


CASES = [*_linear(), *_spherical(), *_sparsified(), *_from_statistics()]


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
    inputs = _inputs(precision, sparse=case.sparse)
    models = inputs.models[: case.num_models]
    merged = run_mergekit(
        tmp_path,
        case.method,
        models,
        base=inputs.base if case.base else None,
        model_parameters=case.model_parameters(),
        parameters=case.parameters,
        precision=precision,
    )
    _assert_agree(
        merged,
        lambda name: case.reference(inputs.base[name], [m[name] for m in models]),
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
    inputs = _inputs("float32")
    each = {"weight": W_SIGNED, "density": D}
    keywords: dict[str, object] = {"weights": W_SIGNED, "densities": D}
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

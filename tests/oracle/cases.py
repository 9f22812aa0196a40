"""The recipes on which mergekit and the float64 references are compared, and their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.oracle.mergekit_runner import SHAPES, Array, Precision, Tensors, filled
from tests.reference import methods as ref


@dataclass(frozen=True)
class Inputs:
    """A base and three models: all different, ``sparse`` leaves most elements as in the base."""

    base: Tensors
    models: tuple[Tensors, ...]


def random_inputs(precision: Precision, *, seed: int = 7, sparse: bool = False) -> Inputs:
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


WEIGHTS = [0.5, 0.2, 0.9]
SIGNED_WEIGHTS = [0.5, -0.2, 0.9]
DENSITIES = [0.5, 0.29, 0.8]


def _linear() -> list[Case]:
    return [
        Case(
            f"linear-normalize-{normalize}",
            "linear",
            lambda b, xs, n=normalize: ref.linear(xs, weights=WEIGHTS, normalize=n),
            base=False,
            each={"weight": WEIGHTS},
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
                xs, weights=WEIGHTS, base=b if base else None, normalize_weights=n, eps=e
            ),
            base=base,
            each={"weight": WEIGHTS},
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
        for lambda_, weights in ((1.0, WEIGHTS), (0.7, SIGNED_WEIGHTS)):
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
                    lambda b, xs, s=shared: ref.ties(b, xs, densities=DENSITIES, **s),
                    each={"weight": weights, "density": DENSITIES},
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
                                b, xs, densities=DENSITIES, gammas=[0.01, 0.2, 0.5], rescale=r, **s
                            ),
                            each={"weight": weights, "density": DENSITIES, "gamma": gammas},
                            parameters={**parameters, "rescale": rescale},
                        )
                    )
    for density in (0.0, 0.001, 0.57, 1.0):
        three = [density] * 3
        cases.append(
            Case(
                f"ties-density-{density}",
                "ties",
                lambda b, xs, d=three: ref.ties(b, xs, weights=WEIGHTS, densities=d, rescale=True),
                each={"weight": WEIGHTS, "density": three},
                parameters={"rescale": True},
            )
        )
        cases += [
            Case(
                f"breadcrumbs-density-{density}-gamma-{gamma}",
                "breadcrumbs",
                lambda b, xs, d=three, g=gamma: ref.breadcrumbs(
                    b, xs, weights=WEIGHTS, densities=d, gammas=[g] * 3
                ),
                each={"weight": WEIGHTS, "density": three, "gamma": [gamma] * 3},
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


def degenerate_inputs(precision: Precision) -> Inputs:
    """Return inputs in which tensors are zero, equal, parallel or nearly parallel.

    A different one of them for each name, in turn.
    """
    plain = random_inputs(precision)
    base = dict(plain.base)
    models = [dict(m) for m in plain.models]
    for index, name in enumerate(SHAPES):
        first, second = models[0], models[1]
        match index % 6:
            case 0:
                for m in models:
                    m[name] = base[name]
            case 1:
                first[name] = base[name]
            case 2:
                first[name] = np.zeros(SHAPES[name])
            case 3:
                second[name] = first[name]
            case 4:
                first[name] = 2 * base[name]
            case _:
                first[name] = base[name] * (1 + 1e-3)
    return Inputs(base, tuple(models))


DEGENERATE = [
    Case("slerp", "slerp", lambda b, xs: ref.slerp(b, xs[0], t=0.3), 1, parameters={"t": 0.3}),
    Case(
        "nuslerp",
        "nuslerp",
        lambda b, xs: ref.nuslerp(xs, weights=[0.5, 0.2]),
        2,
        base=False,
        each={"weight": [0.5, 0.2]},
    ),
    Case(
        "nuslerp-base",
        "nuslerp",
        lambda b, xs: ref.nuslerp(xs, weights=[0.5, 0.2], base=b),
        2,
        each={"weight": [0.5, 0.2]},
    ),
    Case(
        "nuslerp-weights-cancel",
        "nuslerp",
        lambda b, xs: ref.nuslerp(xs, weights=[1.0, -1.0]),
        2,
        base=False,
        each={"weight": [1.0, -1.0]},
    ),
    Case(
        "multislerp",
        "multislerp",
        lambda b, xs: ref.multislerp(xs, weights=[0.5, 0.2], base=b),
        2,
        each={"weight": [0.5, 0.2]},
    ),
    Case("karcher", "karcher", lambda b, xs: ref.karcher(xs), base=False),
    Case(
        "task_arithmetic-weights-cancel",
        "task_arithmetic",
        lambda b, xs: ref.task_arithmetic(b, xs, weights=[1.0, -1.0], normalize=True),
        2,
        each={"weight": [1.0, -1.0]},
        parameters={"normalize": True},
    ),
    Case(
        "ties",
        "ties",
        lambda b, xs: ref.ties(b, xs, weights=WEIGHTS, densities=[1.0] * 3, rescale=True),
        each={"weight": WEIGHTS},
        parameters={"rescale": True},
    ),
    Case(
        "ties-weights-cancel",
        "ties",
        lambda b, xs: ref.ties(b, xs, weights=[0.5, -0.5], densities=[1.0] * 2),
        2,
        each={"weight": [0.5, -0.5]},
    ),
    Case("sce", "sce", lambda b, xs: ref.sce(b, xs)),
    Case("model_stock", "model_stock", lambda b, xs: ref.model_stock(b, xs)),
    Case(
        "nearswap",
        "nearswap",
        lambda b, xs: ref.nearswap(b, xs[0], t=0.1),
        1,
        parameters={"t": 0.1},
    ),
    Case("ram", "ram", lambda b, xs: ref.ram(b, xs)),
]

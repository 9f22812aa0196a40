"""Thresholds, comparisons and guards of the references, each at a value that tells them apart.

Every case runs mergekit 0.1.5 in float64 on one small vector (or one matrix), chosen so that the
next best reading of the method gives another result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tests.oracle.mergekit_runner import SHAPES, Array, forbid_network, run_mergekit
from tests.reference import methods as ref


def _vector(*values: float) -> Array:
    return np.array(values, dtype=np.float64)


def _at_angle(angle: float, length: float = 3.0) -> Array:
    return length * _vector(np.cos(angle), np.sin(angle))


@dataclass(frozen=True)
class Border:
    """A recipe on single tensors; ``reference`` gets the base and the models."""

    name: str
    method: str
    models: Sequence[Array]
    reference: Callable[[Array, list[Array]], Array]
    base: Array | None = None
    each: Sequence[Mapping[str, float]] = ()
    parameters: Mapping[str, object] = field(default_factory=dict)


EIGHTHS = np.arange(16) / 8
X = _vector(1.0, 2.0, 3.0)
ZERO = np.zeros(3)
E_1 = _vector(1.0, 0.0)
RNG = np.random.default_rng(3)
HUNDRED = [RNG.normal(size=100) for _ in range(3)]
PART_EQUAL = [np.where(np.arange(100) < 40, HUNDRED[0], x) for x in HUNDRED]


def _weights(*values: float) -> list[dict[str, float]]:
    return [{"weight": w} for w in values]


BORDERS = [
    Border(
        "arcee_fusion takes importances equal to the threshold",
        "arcee_fusion",
        [EIGHTHS + 0.5],
        lambda b, xs: ref.arcee_fusion(b, xs[0]),
        EIGHTHS,
    ),
    Border(
        "arcee_fusion uses the lower median",
        "arcee_fusion",
        [_vector(1.0, 1.2, 1.4, 1.85)],
        lambda b, xs: ref.arcee_fusion(b, xs[0]),
        np.zeros(4),
    ),
    Border(
        "sce elects + when the sum is zero",
        "sce",
        [X, -X],
        lambda b, xs: ref.sce(b, xs),
        ZERO,
    ),
    Border(
        "sce counts in single precision: 29 of 100, where 0.29 * 100 < 29",
        "sce",
        HUNDRED,
        lambda b, xs: ref.sce(b, xs, select_topk=0.29),
        np.zeros(100),
        parameters={"select_topk": 0.29},
    ),
    Border(
        "sce counts only positions where models differ",
        "sce",
        PART_EQUAL,
        lambda b, xs: ref.sce(b, xs, select_topk=0.5),
        np.zeros(100),
        parameters={"select_topk": 0.5},
    ),
    Border(
        "sce of one model selects nothing",
        "sce",
        [X],
        lambda b, xs: ref.sce(b, xs, select_topk=0.5),
        -X[::-1],
        parameters={"select_topk": 0.5},
    ),
    Border(
        "model_stock guards the product of the norms",
        "model_stock",
        [1e-4 * X, 1e-4 * X[::-1]],
        lambda b, xs: ref.model_stock(b, xs),
        ZERO,
    ),
    Border(
        "model_stock returns the base for opposite task vectors",
        "model_stock",
        [0.5 * E_1 + _at_angle(0.0), 0.5 * E_1 + _at_angle(np.pi - 1e-4)],
        lambda b, xs: ref.model_stock(b, xs),
        0.5 * E_1,
    ),
    Border(
        "ram needs more than epsilon",
        "ram",
        [_vector(0.25, 0.5, -0.25), _vector(0.25, 0.25, 0.75)],
        lambda b, xs: ref.ram(b, xs, epsilon=0.25),
        ZERO,
        parameters={"epsilon": 0.25},
    ),
    Border(
        "slerp is linear above 0.9995",
        "slerp",
        [_at_angle(np.arccos(0.9996))],
        lambda b, xs: ref.slerp(b, xs[0], t=0.3),
        E_1,
        parameters={"t": 0.3},
    ),
    Border(
        "slerp is spherical below 0.9995",
        "slerp",
        [_at_angle(np.arccos(0.9994))],
        lambda b, xs: ref.slerp(b, xs[0], t=0.3),
        E_1,
        parameters={"t": 0.3},
    ),
    Border(
        "slerp is linear for nearly opposite tensors",
        "slerp",
        [_at_angle(np.arccos(-0.9996))],
        lambda b, xs: ref.slerp(b, xs[0], t=0.3),
        E_1,
        parameters={"t": 0.3},
    ),
    Border(
        "slerp leaves tiny tensors as they are in the angle",
        "slerp",
        [X[::-1]],
        lambda b, xs: ref.slerp(b, xs[0], t=0.3),
        1e-9 * X,
        parameters={"t": 0.3},
    ),
    Border(
        "nuslerp has no threshold at 0.9995",
        "nuslerp",
        [E_1, _at_angle(np.arccos(-0.9996))],
        lambda b, xs: ref.nuslerp(xs, weights=[0.7, 0.3]),
        each=_weights(0.7, 0.3),
    ),
    Border(
        "nuslerp is linear for opposite tensors",
        "nuslerp",
        [X, -3 * X],
        lambda b, xs: ref.nuslerp(xs, weights=[0.7, 0.3]),
        each=_weights(0.7, 0.3),
    ),
    Border(
        "nuslerp counts norms below 1e-7 as 1e-7",
        "nuslerp",
        [1e-8 * X, X[::-1]],
        lambda b, xs: ref.nuslerp(xs, weights=[0.7, 0.3]),
        each=_weights(0.7, 0.3),
    ),
    Border(
        "nuslerp meets halfway when the weights nearly cancel",
        "nuslerp",
        [X, X[::-1]],
        lambda b, xs: ref.nuslerp(xs, weights=[1.0, -1.0 + 5e-7]),
        each=_weights(1.0, -1.0 + 5e-7),
    ),
    Border(
        "multislerp averages two opposite models linearly",
        "multislerp",
        [X, -0.5 * X],
        lambda b, xs: ref.multislerp(xs, weights=[1.0, 1.0]),
        each=_weights(1.0, 1.0),
    ),
    Border(
        "karcher leaves out tensors shorter than tol, but counts them",
        "karcher",
        [1e-7 * X, X[::-1]],
        lambda b, xs: ref.karcher(xs),
    ),
    Border(
        "karcher of opposite models is the first", "karcher", [X, -X], lambda b, xs: ref.karcher(xs)
    ),
    Border(
        "task_arithmetic does not divide by a sum of weights below 1e-8",
        "task_arithmetic",
        [X, X[::-1]],
        lambda b, xs: ref.task_arithmetic(b, xs, weights=[4e-9, 5e-9], normalize=True),
        ZERO,
        _weights(4e-9, 5e-9),
        {"normalize": True},
    ),
    Border(
        "ties divides by any sum of weights but zero",
        "ties",
        [X, X[::-1]],
        lambda b, xs: ref.ties(b, xs, weights=[4e-9, 5e-9], densities=[1.0, 1.0]),
        ZERO,
        _weights(4e-9, 5e-9),
    ),
    Border(
        "ties elects + when the sum is zero",
        "ties",
        [X, -X],
        lambda b, xs: ref.ties(b, xs, weights=[1.0, 1.0], densities=[1.0, 1.0]),
        ZERO,
        _weights(1.0, 1.0),
    ),
    Border(
        "ties keeps at least one element",
        "ties",
        [X],
        lambda b, xs: ref.ties(b, xs, weights=[1.0], densities=[0.1]),
        ZERO,
        [{"weight": 1.0, "density": 0.1}],
    ),
    Border(
        "breadcrumbs may keep none",
        "breadcrumbs",
        [X],
        lambda b, xs: ref.breadcrumbs(b, xs, weights=[1.0], densities=[0.1], gammas=[0.01]),
        X[::-1],
        [{"weight": 1.0, "density": 0.1}],
    ),
    Border(
        "breadcrumbs of density 1 forgets gamma",
        "breadcrumbs",
        [X],
        lambda b, xs: ref.breadcrumbs(b, xs, weights=[1.0], densities=[1.0], gammas=[0.5]),
        ZERO,
        [{"weight": 1.0, "density": 1.0, "gamma": 0.5}],
    ),
]


@pytest.mark.parametrize("border", BORDERS, ids=lambda border: border.name.replace(" ", "-"))
def test_agrees_at_a_border(
    border: Border, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_network(monkeypatch)
    merged = run_mergekit(
        tmp_path,
        border.method,
        [dict.fromkeys(SHAPES, x) for x in border.models],
        base=None if border.base is None else dict.fromkeys(SHAPES, border.base),
        model_parameters=border.each,
        parameters=border.parameters,
        precision="float64",
    )
    base = np.zeros_like(border.models[0]) if border.base is None else border.base
    expected = border.reference(base, list(border.models))
    # atol: a difference of two models, next to a base that is far larger, loses digits.
    np.testing.assert_allclose(merged["model.norm.weight"], expected, rtol=1e-9, atol=1e-14)


def test_multislerp_has_no_answer_for_three_that_cancel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_network(monkeypatch)
    models = [X, -X, ZERO]
    with pytest.raises(ValueError, match="sum of the input tensors is zero"):
        run_mergekit(
            tmp_path,
            "multislerp",
            [dict.fromkeys(SHAPES, x) for x in models],
            model_parameters=_weights(1.0, 1.0, 1.0),
            precision="float64",
        )
    with pytest.raises(ValueError, match="cancel out"):
        ref.multislerp(models, weights=[1.0, 1.0, 1.0])


@pytest.mark.parametrize(("density", "epsilon"), [(0.25, 0.25), (0.75, 0.25)])
def test_della_refuses_probabilities_of_0_and_1(
    density: float, epsilon: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_network(monkeypatch)
    with pytest.raises(ValueError, match="density"):
        run_mergekit(
            tmp_path,
            "della",
            [dict.fromkeys(SHAPES, X)],
            base=dict.fromkeys(SHAPES, ZERO),
            model_parameters=[{"weight": 1.0, "density": density, "epsilon": epsilon}],
            precision="float64",
        )
    with pytest.raises(ValueError, match="leaves"):
        ref.della(
            ZERO, [X], weights=[1.0], densities=[density], epsilons=[epsilon], uniforms=[ZERO]
        )

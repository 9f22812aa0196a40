"""Float64 references of the averages and of the methods that interpolate on a sphere.

``linear``, ``slerp``, ``nuslerp``, ``multislerp``, ``karcher``, ``passthrough``. Norms and dot
products run over the whole tensor unless a function says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.reference.sparsify import Array


def passthrough(tensor: Array, *, scale: float = 1.0) -> Array:
    """Return ``scale·x``."""
    return scale * tensor


def linear(tensors: Sequence[Array], *, weights: Sequence[float], normalize: bool = True) -> Array:
    """Return ``Σ w·x``, divided by ``Σ w`` if ``normalize``.

    Reference: Wortsman et al. 2022, Model soups, arXiv 2203.05482.
    Differs: mergekit returns infinities when ``Σ w = 0``; here that is an error.

    Raises:
        ValueError: When the weights sum to zero and ``normalize`` is set.
    """
    total = sum(weights) if normalize else 1.0
    if total == 0:
        raise ValueError("the weights sum to zero")
    mixed = np.zeros_like(tensors[0])
    for w, x in zip(weights, tensors, strict=True):
        mixed = mixed + w * x
    return mixed / total


def _arc(first: Array, second: Array, theta: float, t: float) -> Array:
    sine = np.sin(theta)
    return np.sin((1 - t) * theta) / sine * first + np.sin(t * theta) / sine * second


def slerp(base: Array, other: Array, *, t: float) -> Array:
    """Return ``sin((1-t)θ)/sinθ · base + sin(tθ)/sinθ · other``.

    θ is the angle between the two, from unit vectors; a tensor whose norm is at most 1e-8 enters
    the angle as it is. Where ``|cosθ| > 0.9995``, nearly opposite tensors included, the result is
    ``(1-t)·base + t·other``. The coefficients act on the tensors themselves, so that lengths are
    interpolated too.

    Reference: Shoemake 1985, Animating rotation with quaternion curves.
    """

    def unit(x: Array) -> Array:
        norm = np.linalg.norm(x)
        return x / norm if norm > 1e-8 else x

    cosine = float(np.clip((unit(base) * unit(other)).sum(), -1.0, 1.0))
    if abs(cosine) > 0.9995:
        return (1 - t) * base + t * other
    return _arc(base, other, float(np.arccos(cosine)), t)


def nuslerp(
    tensors: Sequence[Array],
    *,
    weights: Sequence[float],
    base: Array | None = None,
    flatten: bool = True,
    row_wise: bool = False,
) -> Array:
    """Slerp two tensors, or their task vectors, with ``t = w1 / (w0 + w1)``.

    ``t = 0.5`` when ``|w0 + w1| < 1e-6``. Not flattened, every vector along the last axis has its
    own angle, or along axis 0 if ``row_wise``; one-dimensional tensors are one vector in all cases.
    Linear where ``|sinθ| < 1e-8``; there is no threshold at 0.9995, and norms below 1e-7 count as
    1e-7 in the angle.

    Reference: Shoemake 1985; mergekit's guide to merge methods, NuSLERP.
    Differs: mergekit's guide has rows and columns the other way round than mergekit does it; this
        is what it does.
    """
    if base is not None:
        return base + nuslerp(
            [x - base for x in tensors], weights=weights, flatten=flatten, row_wise=row_wise
        )
    first, second = tensors
    total = weights[0] + weights[1]
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    if flatten or first.ndim == 1:
        return _nuslerp_vector(first.ravel(), second.ravel(), t).reshape(first.shape)
    axis = 0 if row_wise else -1
    vectors_a, vectors_b = np.moveaxis(first, axis, -1), np.moveaxis(second, axis, -1)
    merged = np.empty(vectors_a.shape)
    for place in np.ndindex(*vectors_a.shape[:-1]):
        merged[place] = _nuslerp_vector(vectors_a[place], vectors_b[place], t)
    return np.moveaxis(merged, -1, axis)


def _nuslerp_vector(a: Array, b: Array, t: float) -> Array:
    unit_a = a / max(float(np.linalg.norm(a)), 1e-7)
    unit_b = b / max(float(np.linalg.norm(b)), 1e-7)
    theta = float(np.arccos(np.clip((unit_a * unit_b).sum(), -1.0, 1.0)))
    if abs(np.sin(theta)) < 1e-8:
        return (1 - t) * a + t * b
    return _arc(a, b, theta, t)


def multislerp(
    tensors: Sequence[Array],
    *,
    weights: Sequence[float],
    base: Array | None = None,
    normalize_weights: bool = True,
    eps: float = 1e-8,
) -> Array:
    """Return the direction of the weighted mean of unit vectors, with the weighted mean length.

    With ``W = w/Σw`` (or ``w``), ``n_i = |x_i|`` and ``M = Σ W_i x_i/(n_i + eps)``:
    ``y = cos(eps) · M/|M| · Σ W_i n_i``; with a base, of task vectors, plus base. One model is
    returned as it is. When ``|M| < eps`` two models are averaged linearly, ``Σ W_i x_i``, and more
    have no answer. All tensors zero: the result is the base (or zero).

    Reference: mergekit's guide to merge methods, Multi-SLERP.
    Differs: the guide speaks of an interpolation in the tangent space at the weighted mean. The
        projections ``W·(u - (u·m)m)`` onto that space sum to zero, because m is parallel to
        ``Σ W·u``; what remains (and what mergekit returns) is the mean itself. A true barycentre
        would use the logarithmic map; see ``karcher``. mergekit raises for three or more zero task
        vectors, and returns NaN for weights that sum to zero.

    Raises:
        ValueError: When the weights sum to zero, or three or more models cancel out.
    """
    if len(tensors) == 1:
        return tensors[0].copy()
    origin = np.zeros_like(tensors[0]) if base is None else base
    vectors = [x - origin for x in tensors]
    total = sum(weights) if normalize_weights else 1.0
    if total == 0:
        raise ValueError("the weights sum to zero")
    shares = [w / total for w in weights]
    norms = [float(np.linalg.norm(v)) for v in vectors]
    if not any(norms):
        return origin.copy()
    mean = sum(
        (s * v / (n + eps) for s, v, n in zip(shares, vectors, norms, strict=True)),
        start=np.zeros_like(origin),
    )
    length = float(np.linalg.norm(mean))
    if length < eps:
        if len(vectors) > 2:
            raise ValueError("the weighted directions cancel out")
        return origin + shares[0] * vectors[0] + shares[1] * vectors[1]
    radius = sum(s * n for s, n in zip(shares, norms, strict=True))
    return origin + np.cos(eps) * mean / length * radius


def karcher(tensors: Sequence[Array], *, max_iter: int = 10, tol: float = 1e-5) -> Array:
    """Return the Karcher mean of the directions, with the mean of the lengths.

    ``u_i = x_i/|x_i|`` of the tensors with ``|x_i| > tol``; ``m`` starts at the normalised mean of
    the ``u_i``, or at the first of them when that mean is shorter than ``tol``. Then up to
    ``max_iter`` times: ``v = mean_i θ_i/sinθ_i · (u_i - cosθ_i·m)``; stop when ``|v| < tol``;
    ``m <- cos|v|·m + sin|v|·v/|v|``. A tensor parallel or opposite to m adds nothing to v.
    The result is ``m·Σ|x_i|/N``, where N counts the tensors left out as well.

    Reference: Karcher 1977, Riemannian center of mass; Functionality-Oriented LLM Merging on the
        Fisher-Rao Manifold, arXiv 2603.04972.
    """
    if len(tensors) == 1:
        return tensors[0].copy()
    norms = [float(np.linalg.norm(x)) for x in tensors]
    units = [x / n for x, n in zip(tensors, norms, strict=True) if n > tol]
    if not units:
        return np.zeros_like(tensors[0])
    mean = np.mean(units, axis=0)
    length = float(np.linalg.norm(mean))
    m = units[0] if length < tol else mean / length
    for _ in range(max_iter):
        step = np.zeros_like(m)
        for u in units:
            cosine = float(np.clip((u * m).sum(), -1.0, 1.0))
            theta = float(np.arccos(cosine))
            if np.sin(theta) > 1e-12:
                step = step + theta / np.sin(theta) * (u - cosine * m)
        step = step / len(units)
        size = float(np.linalg.norm(step))
        if size < tol:
            break
        m = np.cos(size) * m + np.sin(size) * step / size
    return m * (sum(norms) / len(tensors))

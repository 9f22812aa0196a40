"""The merge methods as whole-tensor torch operations, as anyone would write them at first.

Every step makes a tensor of the full size in float32; the result is rounded once. This is what
the fused kernels are measured against, and nothing that forge uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

Steps = Callable[[Sequence[Tensor]], Tensor]
"""Takes the base and the other models of one tensor in bfloat16, returns the merged one."""

DENSITY: Final = 0.5
WEIGHT: Final = 0.5
EPSILON: Final = 0.15
T: Final = 0.5


def linear(models: Sequence[Tensor]) -> Tensor:
    """Average all models, the base among them."""
    stacked = torch.stack([model.float() for model in models])
    weights = torch.ones(len(models)).view(-1, *[1] * models[0].dim())
    return ((stacked * weights).sum(0) / weights.sum()).bfloat16()


def slerp(models: Sequence[Tensor]) -> Tensor:
    """Interpolate between the base and the first model on the sphere."""
    a, b = models[0].float(), models[1].float()
    a_unit, b_unit = a / a.norm(), b / b.norm()
    cosine = (a_unit * b_unit).sum().clamp(-1, 1)
    if cosine.abs() > 0.9995:
        return ((1 - T) * a + T * b).bfloat16()
    angle = torch.acos(cosine)
    first = torch.sin((1 - T) * angle) / torch.sin(angle)
    second = torch.sin(T * angle) / torch.sin(angle)
    return (first * a + second * b).bfloat16()


def dare_ties(models: Sequence[Tensor]) -> Tensor:
    """Drop at random, rescale by the density, elect signs."""
    deltas = _deltas(models)
    masks = torch.bernoulli(torch.full_like(deltas, DENSITY))
    return _elect(models[0], deltas * masks / DENSITY, normalize=False)


def ties(models: Sequence[Tensor]) -> Tensor:
    """Keep the greatest magnitudes, elect signs, divide by the agreeing weights."""
    kept = []
    for delta in _deltas(models):
        count = max(1, int(DENSITY * delta.numel()))
        indices = delta.abs().view(-1).topk(count).indices
        mask = torch.zeros(delta.numel())
        mask[indices] = 1
        kept.append(delta * mask.view_as(delta))
    return _elect(models[0], torch.stack(kept), normalize=True)


def della(models: Sequence[Tensor]) -> Tensor:
    """Drop at random by rank within the row, rescale by the keep probability, elect signs."""
    deltas = _deltas(models)
    rank = deltas.abs().argsort(dim=-1).argsort(dim=-1).float()
    probability = DENSITY - EPSILON + 2 * EPSILON * rank / (deltas.shape[-1] - 1)
    masks = torch.bernoulli(probability)
    return _elect(models[0], deltas * masks / probability, normalize=True)


def _deltas(models: Sequence[Tensor]) -> Tensor:
    base = models[0].float()
    return torch.stack([model.float() - base for model in models[1:]])


def _elect(base: Tensor, deltas: Tensor, *, normalize: bool) -> Tensor:
    weighted = deltas * WEIGHT
    majority = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agrees = weighted.sign() == majority
    merged = (weighted * agrees).sum(0)
    if normalize:
        divisor = (WEIGHT * agrees).sum(0)
        merged = merged / torch.where(divisor == 0, 1.0, divisor)
    return (base.float() + merged).bfloat16()


STEPS: Final[dict[str, Steps]] = {
    "linear": linear,
    "slerp": slerp,
    "dare_ties": dare_ties,
    "ties": ties,
    "della": della,
}

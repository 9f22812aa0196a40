"""The merge methods as whole-tensor torch operations, as anyone would write them at first.

Every step makes a tensor of the full size in float32; the result is rounded once. This is what
the fused kernels are measured against, and nothing that forge uses.

A kernel of forge gives more than the merged tensor: whether each input and the result is finite,
and of task vectors the norms, the cosine, sign conflicts and shares kept. Given ``found``, the same
is found here, one operation a step as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

Found = dict[str, Tensor]
"""What was found on the way, by name."""

Steps = Callable[[Sequence[Tensor], Found | None], Tensor]
"""Takes the base and the other models of one tensor in bfloat16, returns the merged one."""

DENSITY: Final = 0.5
WEIGHT: Final = 0.5
EPSILON: Final = 0.15
T: Final = 0.5


def linear(models: Sequence[Tensor], found: Found | None = None) -> Tensor:
    """Average all models, the base among them."""
    stacked = torch.stack([model.float() for model in models])
    weights = torch.ones(len(models)).view(-1, *[1] * models[0].dim())
    return _checked(models, ((stacked * weights).sum(0) / weights.sum()).bfloat16(), found)


def slerp(models: Sequence[Tensor], found: Found | None = None) -> Tensor:
    """Interpolate between the base and the first model on the sphere."""
    a, b = models[0].float(), models[1].float()
    a_unit, b_unit = a / a.norm(), b / b.norm()
    cosine = (a_unit * b_unit).sum().clamp(-1, 1)
    if cosine.abs() > 0.9995:
        return _checked(models, ((1 - T) * a + T * b).bfloat16(), found)
    angle = torch.acos(cosine)
    first = torch.sin((1 - T) * angle) / torch.sin(angle)
    second = torch.sin(T * angle) / torch.sin(angle)
    return _checked(models, (first * a + second * b).bfloat16(), found)


def dare_ties(models: Sequence[Tensor], found: Found | None = None) -> Tensor:
    """Drop at random, rescale by the density, elect signs."""
    deltas = _deltas(models)
    masks = torch.bernoulli(torch.full_like(deltas, DENSITY))
    _diagnose(deltas, masks, found)
    merged = _elect(models[0], deltas * masks / DENSITY, normalize=False)
    return _checked(models, merged, found)


def ties(models: Sequence[Tensor], found: Found | None = None) -> Tensor:
    """Keep the greatest magnitudes, elect signs, divide by the agreeing weights."""
    deltas = _deltas(models)
    masks = []
    for delta in deltas:
        count = max(1, int(DENSITY * delta.numel()))
        indices = delta.abs().view(-1).topk(count).indices
        mask = torch.zeros(delta.numel())
        mask[indices] = 1
        masks.append(mask.view_as(delta))
    _diagnose(deltas, torch.stack(masks) if found is not None else deltas, found)
    kept = [delta * mask for delta, mask in zip(deltas, masks, strict=True)]
    return _checked(models, _elect(models[0], torch.stack(kept), normalize=True), found)


def della(models: Sequence[Tensor], found: Found | None = None) -> Tensor:
    """Drop at random by rank within the row, rescale by the keep probability, elect signs."""
    deltas = _deltas(models)
    rank = deltas.abs().argsort(dim=-1).argsort(dim=-1).float()
    probability = DENSITY - EPSILON + 2 * EPSILON * rank / (deltas.shape[-1] - 1)
    masks = torch.bernoulli(probability)
    _diagnose(deltas, masks, found)
    merged = _elect(models[0], deltas * masks / probability, normalize=True)
    return _checked(models, merged, found)


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


def _diagnose(deltas: Tensor, masks: Tensor, found: Found | None) -> None:
    """Find the norms and the cosine of two task vectors, their sign conflicts, what is kept."""
    if found is None:
        return
    first, second = deltas
    product = first * second
    found["norms"] = torch.stack([first.norm(), second.norm()])
    found["cosine"] = product.sum() / found["norms"].prod()
    found["conflicts"] = (product < 0).sum()
    found["kept"] = masks.count_nonzero(dim=tuple(range(1, masks.dim())))


def _checked(models: Sequence[Tensor], merged: Tensor, found: Found | None) -> Tensor:
    """Find whether all inputs and the result are finite."""
    if found is not None:
        found["finite"] = torch.stack([tensor.isfinite().all() for tensor in (*models, merged)])
    return merged


STEPS: Final[dict[str, Steps]] = {
    "linear": linear,
    "slerp": slerp,
    "dare_ties": dare_ties,
    "ties": ties,
    "della": della,
}

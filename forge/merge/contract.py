"""What a merge method is given and what it returns.

A method is a module ``forge/merge/methods/<name>.py`` with a function
``merge(operands, call)`` that writes the result through ``operands`` and returns statistics. It
knows tensors only: no recipe, no file, no name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt


from forge.recipes.parameters import ParameterValue


@dataclass(frozen=True, slots=True)
class Stream:
    """Where the random numbers of one model and tensor come from: see ``kernels/cpu/philox``."""

    key: int
    stream: int


@dataclass(frozen=True, slots=True)
class MethodCall:
    """The parameters of one output tensor.

    Attributes:
        values: Global parameters by name.
        models: Parameters of each model beside the base, in the order of the operands.
        streams: Random stream of each model beside the base.
        depth: Where the tensor's layer stands in the result, from 0 for the first to 1 for the
            last; ``None`` outside the layers.
        transposed: Whether linear layers store [in, out] instead of [out, in].
    """

    values: Mapping[str, ParameterValue]
    models: tuple[Mapping[str, ParameterValue], ...]
    streams: tuple[Stream, ...] = ()
    depth: float | None = None
    transposed: bool = False

    def number(self, name: str) -> float:
        """Return a global number."""
        return float(self.values[name])

    def flag(self, name: str) -> bool:
        """Return a global boolean."""
        return bool(self.values[name])

    def word(self, name: str) -> str:
        """Return a global choice."""
        return str(self.values[name])

    def of_models(self, name: str) -> list[float]:
        """Return a number of each model."""
        return [float(model[name]) for model in self.models]


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """What a merge learned about one tensor on the way.

    Attributes:
        bad_inputs: For each input, the base first when there is one: whether it holds a NaN or Inf.
        bad_output: Whether the result holds one.
        norms: Euclidean norm of each task vector (of each model, for methods without a base).
        cosines: Cosines between them, pairs in the order (1,0), (2,0), (2,1), …; NaN-free: the
            cosine with a zero vector is 0.
        conflict_share: Share of positions where task vectors disagree in sign.
        kept_shares: Share of each task vector that survived sparsifying.
        angle_degrees: Angle between the two interpolated vectors.
        fallback: Why a simpler formula was used, when it was.
        notes: Further numbers of this method, by name.
    """

    bad_inputs: tuple[bool, ...]
    bad_output: bool
    norms: tuple[float, ...] = ()
    cosines: tuple[float, ...] = ()
    conflict_share: float | None = None
    kept_shares: tuple[float, ...] = ()
    angle_degrees: float | None = None
    fallback: str | None = None
    notes: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """Return what is known, as plain JSON values with six significant digits."""
        record: dict[str, object] = {}
        if self.norms:
            record["norms"] = [_short(value) for value in self.norms]
        if self.cosines:
            record["cosines"] = [_short(value) for value in self.cosines]
        if self.conflict_share is not None:
            record["conflict_share"] = _short(self.conflict_share)
        if self.kept_shares:
            record["kept_shares"] = [_short(value) for value in self.kept_shares]
        if self.angle_degrees is not None:
            record["angle_degrees"] = _short(self.angle_degrees)
        if self.fallback:
            record["fallback"] = self.fallback
        record.update({name: _short(value) for name, value in self.notes.items()})
        return record


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def norms_and_cosines(
    triangle: npt.NDArray[Any] | Sequence[float], count: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Read norms and cosines off the lower triangle of a Gram matrix, row by row."""
    squares = [float(triangle[m * (m + 3) // 2]) for m in range(count)]
    norms = tuple(math.sqrt(max(square, 0.0)) for square in squares)
    cosines = []
    for m in range(count):
        for other in range(m):
            product = norms[m] * norms[other]
            inner = float(triangle[m * (m + 1) // 2 + other])
            cosines.append(max(-1.0, min(1.0, inner / product)) if product > 0 else 0.0)
    return norms, tuple(cosines)

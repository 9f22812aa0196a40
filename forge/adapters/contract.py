"""What is asked of an extraction, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from forge.adapters.plan import Embeddings
from forge.core.dtypes import BY_TORCH_NAME
from forge.core.errors import IncompatibleError


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of an extraction.

    Attributes:
        rank: Rank of the factors; with ``share``, the largest allowed, ``None`` for any.
        share: Take for each tensor the smallest rank that keeps this share of its energy.
        embeddings: What becomes of embedding and head.
        dtype: Torch name of the factors' type.
    """

    rank: int | None
    share: float | None
    embeddings: Embeddings
    dtype: str

    def as_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "rank": self.rank,
            "energy": self.share,
            "embeddings": self.embeddings,
            "dtype": self.dtype,
        }


@dataclass(frozen=True, slots=True)
class TensorEnergy:
    """What became of one tensor's difference.

    Attributes:
        name: The tensor, in the base's files.
        shape: Its shape.
        fate: ``factors``, ``whole``, ``bias`` or ``lost``.
        rank: Rank of its factors, or ``None``.
        norm: Frobenius norm of the difference, or ``None`` where the shapes differ.
        kept: Share of the energy that the adapter keeps.
    """

    name: str
    shape: tuple[int, ...]
    fate: str
    rank: int | None
    norm: float | None
    kept: float


@dataclass(frozen=True, slots=True)
class ExtractResult:
    """What an extraction made.

    Attributes:
        out: Its folder.
        manifest: What its ``forge_manifest.json`` says.
        tensors: What differed, in the base's order.
        kept: Share of all energy that the adapter keeps.
        num_tensors: Tensors of the adapter.
        resumed_tensors: How many of them an earlier run had finished.
        output_bytes: Bytes of its tensors.
        seconds: Wall time, in seconds.
    """

    out: Path
    manifest: dict[str, object]
    tensors: tuple[TensorEnergy, ...]
    kept: float
    num_tensors: int
    resumed_tensors: int
    output_bytes: int
    seconds: float


def check_request(request: Request) -> None:
    """Refuse what cannot be asked for.

    Args:
        request: What is asked for.

    Raises:
        IncompatibleError: A value is out of its range.
    """
    if request.rank is None and request.share is None:
        raise IncompatibleError("Give a rank (--rank 32), or a share of the energy (--energy 0.9).")
    if request.rank is not None and request.rank < 1:
        raise IncompatibleError(f"A rank of {request.rank} holds nothing; give at least 1.")
    if request.share is not None and not 0 < request.share <= 1:
        raise IncompatibleError(
            f"The energy to keep is a share above 0 and at most 1, not {request.share}; try 0.9."
        )
    known = [name for name, row in BY_TORCH_NAME.items() if row.mergeable and name != "float64"]
    if request.dtype not in known:
        raise IncompatibleError(f"Factors are stored as {', '.join(known)}, not {request.dtype}.")

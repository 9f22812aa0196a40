"""Say in Hugging Face's words how a GGUF stretches its rotary embeddings.

Three kinds are stated as keys. The one of Llama 3.1 is not: the converter worked out a factor for
each frequency and stored the factors as a tensor. They are a function of four numbers, three of
which are the same in all published models, so the fourth is read off, and the tensor is
worked out again: only if it comes out the same, the numbers are believed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Final

from forge.checkpoints.gguf.header import GgufTensor
from forge.checkpoints.gguf.metadata import Metadata, shortest

_LOW, _HIGH, _ORIGINAL_CONTEXT = 1.0, 4.0, 8192
_MAX_FACTORS: Final = 1 << 14


def rotary_scaling(
    metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, object]
) -> dict[str, object] | None:
    """Return ``rope_scaling``.

    Args:
        metadata: The model's metadata.
        tensors: All its tensors by name.
        config: Its config so far, with ``head_dim`` and ``rope_theta``.

    Returns:
        The value, or ``None`` for embeddings that are not stretched.

    Raises:
        CheckpointError: They are stretched in a way that forge cannot put into words.
    """
    if "rope_freqs.weight" in tensors:
        return _llama3(metadata, tensors["rope_freqs.weight"], config)
    if "rope_factors_long.weight" in tensors:
        return {
            "rope_type": "longrope",
            "long_factor": _factors(metadata, tensors, "rope_factors_long.weight"),
            "short_factor": _factors(metadata, tensors, "rope_factors_short.weight"),
        }
    kind = metadata.optional_text(".rope.scaling.type")
    if kind in (None, "none"):
        # An old key; llama.cpp reads it still.
        factor = metadata.real(".rope.scale_linear", 1.0)
        return None if factor == 1 else {"rope_type": "linear", "factor": factor}
    if kind == "linear":
        return {"rope_type": "linear", "factor": metadata.real(".rope.scaling.factor")}
    if kind == "yarn":
        return _yarn(metadata)
    raise metadata.wrong(
        f"stretches its rotary embeddings by {str(kind)[:40]!r}, which forge cannot say in a "
        "config. Put the original config.json beside the file"
    )


def _yarn(metadata: Metadata) -> dict[str, object]:
    scaling: dict[str, object] = {
        "rope_type": "yarn",
        "factor": metadata.real(".rope.scaling.factor"),
        "original_max_position_embeddings": metadata.positive(
            ".rope.scaling.original_context_length"
        ),
    }
    for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if f".rope.scaling.{theirs}" in metadata:
            scaling[ours] = metadata.real(f".rope.scaling.{theirs}")
    return scaling


def _llama3(
    metadata: Metadata, tensor: GgufTensor, config: Mapping[str, object]
) -> dict[str, object]:
    stored = _values(metadata, tensor)
    dimension, theta = config["head_dim"], config["rope_theta"]
    assert isinstance(dimension, int)
    assert isinstance(theta, float)
    factor = max(stored)
    expected = [
        _llama3_factor(theta ** (-2 * index / dimension), factor) for index in range(len(stored))
    ]
    same = all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(stored, expected, strict=True))
    if len(stored) != dimension // 2 or not same:
        raise metadata.wrong(
            "stretches its rotary embeddings by factors ('rope_freqs.weight') that are not those "
            "of Llama 3.1, 3.2 or 3.3. Put the original config.json beside the file"
        )
    return {
        "rope_type": "llama3",
        "factor": shortest(factor),
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _ORIGINAL_CONTEXT,
    }


def _llama3_factor(frequency: float, factor: float) -> float:
    """Return by how much Llama 3.1 lowers a frequency, in radians per position."""
    wavelength = 2 * math.pi / frequency
    if wavelength < _ORIGINAL_CONTEXT / _HIGH:
        return 1.0
    if wavelength > _ORIGINAL_CONTEXT / _LOW:
        return factor
    smooth = (_ORIGINAL_CONTEXT / wavelength - _LOW) / (_HIGH - _LOW)
    return 1 / ((1 - smooth) / factor + smooth)


def _factors(metadata: Metadata, tensors: Mapping[str, GgufTensor], name: str) -> list[float]:
    if name not in tensors:
        raise metadata.wrong(f"lacks the tensor '{name}', without which its twin means nothing")
    return [shortest(value) for value in _values(metadata, tensors[name])]


def _values(metadata: Metadata, tensor: GgufTensor) -> tuple[float, ...]:
    """Read a short vector of float32."""
    if tensor.type.name != "F32" or not 0 < tensor.numel <= _MAX_FACTORS:
        raise metadata.wrong(
            f"holds '{tensor.name}' as {tensor.type.name} {list(tensor.shape)}; it must be a short "
            "vector of F32"
        )
    try:
        with tensor.file.open("rb") as file:
            file.seek(tensor.offset)
            raw = file.read(tensor.nbytes)
    except OSError as error:
        raise metadata.wrong(f"cannot be read: {error.strerror}") from error
    if len(raw) != tensor.nbytes:
        raise metadata.wrong("changed while it was read; run again")
    values: tuple[float, ...] = struct.unpack(f"<{tensor.numel}f", raw)
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise metadata.wrong(f"holds impossible factors in '{tensor.name}'")
    return values

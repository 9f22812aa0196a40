"""What AWQ's three versions say alike in ``config.json``, and how wide GEMV's rows are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from forge.core.errors import CheckpointError, IncompatibleError
from forge.formats.contract import Scheme

_PER_WORD = 8


def write(version: str, scheme: Scheme, modules_to_not_convert: Sequence[str]) -> dict[str, object]:
    """Return AWQ's ``quantization_config``.

    Args:
        version: ``gemm``, ``gemv`` or ``gemv_fast``.
        scheme: Bits and groups.
        modules_to_not_convert: Linear modules that stay in full precision.
    """
    return {
        "quant_method": "awq",
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        # Also of a symmetric scheme: its zero points, all 8, are in the file.
        "zero_point": True,
        "version": version,
        "modules_to_not_convert": list(modules_to_not_convert) or None,
    }


def read(config: Mapping[str, object]) -> Scheme:
    """Return the scheme of AWQ's ``quantization_config``.

    Args:
        config: The ``quantization_config``, or AutoAWQ's ``quant_config.json``, which names the
            same things ``w_bit`` and ``q_group_size``.

    Raises:
        CheckpointError: A number is missing, or there are no zero points.
    """
    bits = config.get("bits", config.get("w_bit"))
    group_size = config.get("group_size", config.get("q_group_size"))
    if type(bits) is not int or type(group_size) is not int or group_size < 1 or bits < 1:
        raise CheckpointError(
            "The quantization_config of an AWQ checkpoint must state bits and group_size as "
            f"positive numbers; it states {bits!r} and {group_size!r}."
        )
    if config.get("zero_point", True) is not True:
        raise CheckpointError("AWQ without zero points is not supported; its layout has them.")
    return Scheme(bits, group_size, symmetric=False)


def zeros_width(num_in: int, group_size: int) -> int:
    """Return how many words GEMV's zero points of one output feature take.

    Its kernels read whole vectors, so a row is padded to as many words as one vector of codes
    spans groups.

    Args:
        num_in: Input features.
        group_size: 32, 64, or a multiple of 128.

    Raises:
        IncompatibleError: The kernels know no such group size.
    """
    if group_size in (32, 64):
        multiple = 128 // group_size
    elif group_size >= 128 and group_size % 128 == 0:
        multiple = 1
    else:
        raise IncompatibleError(
            f"AWQ GEMV has groups of 32, 64, or a multiple of 128, not of {group_size}."
        )
    width = -(-(num_in // group_size) // _PER_WORD)
    return -(-width // multiple) * multiple

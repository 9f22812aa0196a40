"""AWQ checkpoints, of AutoAWQ's three versions and of other writers of the same layouts.

A weight is ``(code - zero) * scale``, rounded once to the type of the scales, as AutoAWQ's and
gptqmodel's ``dequantize`` do. The kernels of ``gemv_fast`` multiply and add with one rounding of
their own at run time, so what they compute with can differ from its codes in the last place.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.checkpoints.dequantizing.stored import Arrays, DecodedTensor, Family, StoredTensors
from forge.core.errors import IncompatibleError
from forge.formats import awq_config, awq_gemm, awq_gemv, awq_gemv_fast
from forge.formats.contract import Part, Scheme
from forge.formats.numbers import FLOATS, numbers_of

_LAYOUTS: Final = {"gemm": awq_gemm, "gemv": awq_gemv, "gemv_fast": awq_gemv_fast}
_WHOLE_ROW: Final = -1


def find(stored: StoredTensors, declared: Mapping[str, object]) -> Family:
    """Find the layers of an AWQ checkpoint.

    Args:
        stored: Its tensors.
        declared: Its ``quantization_config``.

    Raises:
        IncompatibleError: It is a version that forge does not decode.
        CheckpointError: A part is missing or is something else.
    """
    stated = declared.get("version", declared.get("format", "gemm"))
    version = stated.lower() if isinstance(stated, str) else repr(stated)
    if version not in _LAYOUTS or declared.get("backend") == "llm-awq":
        raise IncompatibleError(
            f"'{stored.label}' is AWQ of version {stated!r}"
            f"{' by llm-awq' if declared.get('backend') == 'llm-awq' else ''}; forge decodes "
            f"{', '.join(_LAYOUTS)}. Save it as gemm with its own library, or start from the "
            "model in full precision."
        )
    group_size = declared.get("group_size", declared.get("q_group_size"))
    layout, tensors = _LAYOUTS[version], []
    scheme = None
    for module in stored.modules("qweight"):
        shape = stored.matrix(f"{module}.qweight", ("I32", "I16"))
        # Shapes of AWQ follow from the codes alone, whatever the groups.
        shape_OI = layout.shape_of({"qweight": shape}, Scheme())
        stated_size = shape_OI[1] if group_size == _WHOLE_ROW else group_size
        scheme = awq_config.read({**declared, "group_size": stated_size})
        tensors.append(_tensor(stored, module, version, shape_OI, scheme))
    groups = "whole rows" if group_size == _WHOLE_ROW else f"groups of {group_size}"
    title = f"{layout.TITLE}, {scheme.bits if scheme else 4} bits, {groups}"
    return Family(title, tuple(tensors))


def _tensor(
    stored: StoredTensors, module: str, version: str, shape_OI: tuple[int, int], scheme: Scheme
) -> DecodedTensor:
    scale_dtype = stored.info(f"{module}.scales").dtype
    try:
        parts = _parts(version, shape_OI, scheme, scale_dtype)
    except IncompatibleError as error:
        raise stored.wrong(module, str(error)) from error
    for part in parts:
        stored.take(f"{module}.{part.suffix}", (part.dtype,), part.shape)
    dtype = stored.dtype_for(scale_dtype)
    return DecodedTensor(
        f"{module}.weight",
        shape_OI,
        dtype,
        {part.suffix: f"{module}.{part.suffix}" for part in parts},
        partial(_decode, version, shape_OI, scheme, scale_dtype, dtype),
    )


def _parts(
    version: str, shape_OI: tuple[int, int], scheme: Scheme, scale_dtype: str
) -> tuple[Part, ...]:
    if version == "gemm" and scale_dtype in FLOATS:
        return awq_gemm.parts(shape_OI, scheme, scale_dtype)
    found: tuple[Part, ...] = _LAYOUTS[version].parts(shape_OI, scheme)
    return found


def _decode(
    version: str,
    shape_OI: tuple[int, int],
    scheme: Scheme,
    scale_dtype: str,
    dtype: str,
    arrays: Arrays,
) -> npt.NDArray[np.generic]:
    weight = _LAYOUTS[version].decode(
        arrays, shape_OI=shape_OI, scheme=scheme, scale_dtype=scale_dtype
    )
    return numbers_of(weight, dtype)

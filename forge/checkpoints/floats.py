"""Turn the bytes of floating-point tensors into numpy arrays and back, for the rare slow path.

Merges run in ``forge.kernels``; this is for sources that must compute what they return.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_NUMPY: Final = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


def decode(data: memoryview, dtype: str) -> npt.NDArray[np.float32] | npt.NDArray[np.float64]:
    """Return the values of a tensor's bytes.

    Args:
        data: The bytes.
        dtype: ``BF16``, ``F16``, ``F32`` or ``F64``.

    Returns:
        A one-dimensional array: float64 for ``F64``, float32 otherwise; both exact.
    """
    if dtype == "BF16":
        bits = np.frombuffer(data, np.uint16).astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32)
    values = np.frombuffer(data, _NUMPY[dtype])
    return values if dtype == "F64" else values.astype(np.float32)


def encode(values: npt.NDArray[np.floating], dtype: str) -> npt.NDArray[np.generic]:
    """Round values to a tensor's type, to nearest, ties to even.

    Args:
        values: Float32, or float64 for ``F64``.
        dtype: ``BF16``, ``F16``, ``F32`` or ``F64``.

    Returns:
        An array of the same shape whose bytes are the tensor's; ``BF16`` as uint16 bits.
    """
    if dtype != "BF16":
        # A value beyond the type's range becomes an infinity, which the merge reports.
        with np.errstate(over="ignore"):
            return values.astype(_NUMPY[dtype])
    single = np.ascontiguousarray(values, np.float32)
    bits = single.view(np.uint32)
    # Adding half of the dropped range, less one unless the kept part is odd, carries into
    # the kept part exactly when rounding to nearest even goes up.
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(single), quiet, rounded).astype(np.uint16)

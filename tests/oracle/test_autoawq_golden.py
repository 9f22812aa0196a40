"""AutoAWQ's own tensors are ours, bit for bit, in all three of its layouts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from forge.formats.catalog import load_format
from forge.formats.contract import QuantizedWeight, Scheme
from forge.quantize.methods.rtn import quantize_rtn
from tests.oracle.environments import python_of
from tests.oracle.make_autoawq_golden import (
    AUTOAWQ_REQUIREMENTS,
    CASES,
    ROUNDING_GROUP_SIZES,
    case_name,
)

_HERE = Path(__file__).parent
_GOLDEN = _HERE / "golden" / "autoawq.safetensors"
_PARTS = ("qweight", "qzeros", "scales")


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[np.generic]]:
    return load_file(_GOLDEN)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case_name(*case))
def test_packing_equals_autoawq(
    golden: dict[str, NDArray[np.generic]], case: tuple[str, int, tuple[int, int]]
) -> None:
    version, group_size, shape = case
    prefix = case_name(*case)
    layout = load_format(version)
    weight = QuantizedWeight(
        np.asarray(golden[f"{prefix}.codes_OI"], np.uint8),
        np.asarray(golden[f"{prefix}.scales_OG"], np.float16),
        np.asarray(golden[f"{prefix}.zeros_OG"], np.uint8),
        Scheme(4, group_size),
    )
    packed = layout.pack(weight)
    assert set(packed) == set(_PARTS)
    for part in _PARTS:
        theirs = golden[f"{prefix}.{part}"]
        assert packed[part].dtype == theirs.dtype
        assert packed[part].shape == theirs.shape
        # Bytes and not values: a zero point of 0 is -0 in 'qzeros' of gemv_fast.
        assert packed[part].tobytes() == theirs.tobytes(), part

    theirs = {part: golden[f"{prefix}.{part}"] for part in _PARTS}
    shapes = {part: array.shape for part, array in theirs.items()}
    assert layout.shape_of(shapes, weight.scheme) == shape
    read = layout.unpack(theirs, shape_OI=shape, scheme=weight.scheme)
    np.testing.assert_array_equal(read.codes_OI, weight.codes_OI)
    np.testing.assert_array_equal(read.zeros_OG, weight.zeros_OG)
    np.testing.assert_array_equal(read.scales_OG, weight.scales_OG)


def test_golden_cases_are_not_trivial(golden: dict[str, NDArray[np.generic]]) -> None:
    for case in CASES:
        codes, zeros = (golden[f"{case_name(*case)}.{name}"] for name in ("codes_OI", "zeros_OG"))
        assert len(np.unique(codes)) == 16
        assert {0, 15} <= set(np.unique(zeros))


@pytest.mark.parametrize("group_size", ROUNDING_GROUP_SIZES)
def test_rounding_equals_autoawq(golden: dict[str, NDArray[np.generic]], group_size: int) -> None:
    prefix = f"rounding-g{group_size}"
    weight = np.asarray(golden[f"{prefix}.weight_OI"], np.float32)
    theirs = np.asarray(golden[f"{prefix}.scales_OG"], np.float32)
    ours = quantize_rtn(weight, Scheme(4, group_size))
    np.testing.assert_array_equal(ours.scales_OG, theirs.astype(np.float16))
    np.testing.assert_array_equal(ours.zeros_OG, golden[f"{prefix}.zeros_OG"])
    np.testing.assert_array_equal(ours.codes_OI, golden[f"{prefix}.codes_OI"])
    assert len(np.unique(ours.zeros_OG)) > 10


@pytest.mark.slow
def test_golden_tensors_are_autoawqs(tmp_path: Path) -> None:
    """Make them again with AutoAWQ itself, in an environment of its own."""
    python = python_of("autoawq", AUTOAWQ_REQUIREMENTS)
    again = tmp_path / "autoawq.safetensors"
    script = _HERE / "make_autoawq_golden.py"
    subprocess.run([str(python), "-W", "ignore", str(script), str(again)], check=True)
    assert again.read_bytes() == _GOLDEN.read_bytes()

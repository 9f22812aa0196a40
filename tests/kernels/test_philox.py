"""The reference generator gives the published answers, and the kernel gives the reference's."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from forge.kernels.cpu import philox
from tests.reference.philox import philox4x32, uniforms

# Kernels' functions have no entry from Python.
fill = njit(philox.fill.py_func, error_model="numpy")

# Known answers of Philox4x32-10, from the Random123 distribution (kat_vectors).
KNOWN = [
    ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_reference_gives_the_known_answers(
    counter: list[int], key: tuple[int, int], expected: list[int]
) -> None:
    assert philox4x32(np.array([counter], np.uint64), key).tolist() == [expected]


@pytest.mark.parametrize("start", [0, 128, 1024 * 7, (1 << 35) - 128, 1 << 40])
@pytest.mark.parametrize("lower", [0, 1])
def test_kernel_equals_reference_anywhere_in_a_tensor(start: int, lower: int) -> None:
    key, stream = -0x123456789ABCDEF, 0x0FEDCBA987654321
    words = np.zeros(256, np.uint32)
    fill(words, key, stream, start, 200, lower)
    element = start + np.arange(200)
    index = (element >> 7) * 16 + (element & 15)
    columns = [index & 0xFFFFFFFF, (index >> 32) + (lower << 31)]
    columns += [np.full(200, stream & 0xFFFFFFFF), np.full(200, stream >> 32)]
    unsigned = key % (1 << 64)
    expected = philox4x32(
        np.stack(columns, axis=1).astype(np.uint64), (unsigned & 0xFFFFFFFF, unsigned >> 32)
    )[np.arange(200), (element >> 5) & 3]
    halves = (expected.astype(np.int64) >> (16 * ((element >> 4) & 1))) & 0xFFFF
    assert words[:200].tolist() == halves.tolist()


def test_uniforms_are_uniform_and_streams_independent() -> None:
    first = uniforms(200_000, key=1, stream=2)
    second = uniforms(200_000, key=1, stream=3)
    counts, _ = np.histogram(first, bins=100, range=(0, 1))
    chi_square = float((((counts - 2000) ** 2) / 2000).sum())
    assert chi_square < 160  # 99 degrees of freedom: P = 1e-4
    assert abs(float(np.corrcoef(first, second)[0, 1])) < 0.01

"""Loops that are emitted for LLVM compute what their operators say."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from forge.kernels.cpu.lanes import F32, F64, I16, I32, I64, Emitter, Lanes, emitted

COUNT = 64


@emitted
def list_odd(emitter: Emitter, count: Lanes, source: Lanes, target: Lanes) -> Lanes:
    """List the places of odd numbers, sixteen at a time; return their sum."""
    places = emitter.vector(list(range(16)), I32)
    start = (emitter.number(0), places, emitter.number(0))
    with emitter.steps(count, 16, *start) as (i, found, numbers, total):
        here = emitter.load(source + (i << 2), I32, 16)
        is_odd = (here & 1).differs(0)
        numbers[0].compress(is_odd).store(target + (found[0] << 2))
        found[0] += is_odd.count()
        numbers[0] += 16
        total[0] += is_odd.choose(here, 0).reduce("add").to(I64)
    return total[0]


@emitted
def rearrange(emitter: Emitter, source: Lanes, target: Lanes) -> None:
    """Write several arrangements of four numbers, 64 bytes apart."""
    x = emitter.load(source, I32, 4)
    y = emitter.load(source + 16, I32, 4)
    singles = [emitter.load(source + 4 * place, I32) for place in range(4)]
    for place, made in enumerate(
        [
            x.moved(1),
            x.joined(y),
            x.alternate(y),
            emitter.packed(singles[::-1]),
            x.least(y),
            x.greatest(2) ^ 1,
            singles[1].splat(4) * 3,
            (x.to(F64) / 3.0 - 0.25).to(F32),
            (x.to(F32) * 2.5).to(I32),
            x.equals(y).to(I16),
        ]
    ):
        made.store(target + 64 * place)


@njit(error_model="numpy")
def run_list_odd(count, source, target):  # type: ignore[no-untyped-def]
    return list_odd(count, source, target)


@njit(error_model="numpy")
def run_rearrange(source, target):  # type: ignore[no-untyped-def]
    rearrange(source, target)


@pytest.mark.parametrize("count", [0, 16, COUNT])
def test_a_loop_keeps_its_variables(count: int) -> None:
    numbers = np.random.default_rng(count).integers(0, 1 << 20, COUNT).astype(np.uint32)
    target = np.zeros(COUNT + 16, np.uint32)
    total = run_list_odd(count, numbers.ctypes.data, target.ctypes.data)
    odd = np.flatnonzero(numbers[:count] & 1)
    assert total == numbers[odd].sum()
    assert target[: len(odd)].tolist() == odd.tolist()


def test_lanes_move_and_convert_as_they_say() -> None:
    numbers = np.array([7, 1, 0xFFFFFFFF, 4, 7, 0x20005, 3, 9], np.uint32)
    x, y = numbers[:4], numbers[4:]
    target = np.zeros((10, 16), np.uint32)
    run_rearrange(numbers.ctypes.data, target.ctypes.data)
    assert target[0, :4].tolist() == [0, 7, 1, 0xFFFFFFFF]
    assert target[1, :8].tolist() == numbers.tolist()
    halves, others = x.view(np.uint16)[::2], y.view(np.uint16)[::2]
    assert target[2, :4].view(np.uint16).tolist() == np.stack([halves, others], 1).ravel().tolist()
    assert target[3, :4].tolist() == x[::-1].tolist()
    assert target[4, :4].tolist() == np.minimum(x, y).tolist()
    assert target[5, :4].tolist() == (np.maximum(x, 2) ^ 1).tolist()
    assert target[6, :4].tolist() == [3, 3, 3, 3]
    expected = (x / 3 - 0.25).astype(np.float32)
    assert target[7, :4].view(np.float32).tolist() == expected.tolist()
    assert target[8, :2].tolist() == [17, 2]
    assert target[9, :2].view(np.uint16).tolist() == [1, 0, 0, 0]

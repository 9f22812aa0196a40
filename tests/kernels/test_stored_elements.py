"""Kernels that take bfloat16 where it is stored give what those over work rows give."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from forge.kernels.cpu.layout import BAND, DROP
from forge.kernels.operands import Operands
from forge.merge import consensus, span
from forge.merge.consensus import Sparsity
from forge.merge.contract import MethodCall, TensorStatistics
from tests.merge.operands import Array, decode, encode

Bits = NDArray[np.uint16]

EVERY_BFLOAT16: Bits = np.arange(1 << 16).astype(np.uint16)
IS_FINITE = (EVERY_BFLOAT16 & 0x7F80) != 0x7F80


def run(
    merge: Callable[[Operands], object], inputs: tuple[Bits, ...], *, has_base: bool
) -> tuple[Bits, object]:
    """Merge flat bfloat16 inputs; return the result and what the merge returned."""
    result = np.zeros(inputs[0].size, np.uint16)
    target = result.view(np.uint8)

    def emit(offset: int, data: memoryview) -> None:
        target[offset : offset + len(data)] = np.frombuffer(data, np.uint8)

    operands = Operands(
        inputs=inputs, dtypes=("BF16",) * len(inputs), has_base=has_base,
        shape=(inputs[0].size,), out_dtype="BF16", emit=emit,
    )  # fmt: skip
    return result, merge(operands)


def by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have everything that follows read into work rows."""
    monkeypatch.setattr(Operands, "are_stored", property(lambda self: False))


@pytest.mark.parametrize("shift", [0.0, 2.0**-8, 2.0**-9, 1.5 * 2.0**-9, -(2.0**-9)])
def test_every_bfloat16_is_rounded_once(shift: float) -> None:
    """Sums that fall on, half-way between and beside all numbers, subnormal ones among them."""
    x = EVERY_BFLOAT16[IS_FINITE]
    coefficients = np.array([[1.0, shift]])
    result, bad = run(lambda o: span.combine(o, coefficients), (x, x), has_base=False)
    with np.errstate(over="ignore"):
        values = decode(x, "BF16")
        expected = encode(values + shift * values, "BF16")
    assert np.array_equal(result, expected)
    assert bad == ((False, False), bool(np.any((expected & 0x7F80) == 0x7F80)))


@pytest.mark.parametrize("special", [0x7F80, 0xFF80, 0x7FC0, 0x7F81])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("at", [0, 1023, 1024, 2999])
def test_an_input_that_is_not_finite_is_named(special: int, place: int, at: int) -> None:
    generator = np.random.default_rng(5)
    inputs = tuple(encode(generator.standard_normal(3000), "BF16") for _ in range(3))
    inputs[place][at] = special
    expected = tuple(m == place for m in range(3))
    statistics = run(lambda o: merge_pairs(o, 2, DENSE), inputs, has_base=True)[1]
    assert isinstance(statistics, TensorStatistics)
    assert statistics.bad_inputs == expected
    assert statistics.bad_output
    # A weight of 0 hides nothing.
    ones = np.array([[0.0 if m == place else 1.0 for m in range(3)]])
    result, bad = run(lambda o: span.combine(o, ones), inputs, has_base=False)
    assert bad == (expected, True)
    assert (result[at] & 0x7F80) == 0x7F80


def test_what_overflows_is_no_fault_of_the_inputs() -> None:
    great = np.full(2000, 0x7F7F, np.uint16)
    zero = np.zeros(2000, np.uint16)
    statistics = run(lambda o: merge_pairs(o, 2, DENSE), (zero, great, great), has_base=True)[1]
    assert isinstance(statistics, TensorStatistics)
    assert not any(statistics.bad_inputs)
    assert statistics.bad_output


DENSE = Sparsity()
BORDER = int(np.float32(0.75).view(np.int32))


def merge_pairs(
    operands: Operands,
    num_models: int,
    sparsity: Sparsity,
    *,
    weights: tuple[float, ...] = (1.0, 1.0),
    normalize: bool = False,
    elect: bool = True,
) -> TensorStatistics:
    call = MethodCall(
        {"lambda": 0.75, "normalize": normalize, "rescale": "none"},
        tuple({"weight": weight} for weight in weights[:num_models]),
        (),
    )
    return consensus.merge_task_vectors(operands, call, [sparsity] * num_models, elect=elect)


@pytest.mark.parametrize("num_models", [1, 2])
@pytest.mark.parametrize("elect", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.3, 0.7), (-1.0, -1.0), (0.0, 1.0)])
@pytest.mark.parametrize(
    "sparsity",
    [
        DENSE,
        Sparsity((DROP, 7, 9, 1 << 31), 2.0),
        Sparsity((DROP, 7, 9, 0x80000001)),
        Sparsity((BAND, BORDER, 100, -1, 0)),
        Sparsity((BAND, BORDER, 5, BORDER + (1 << 20), 3)),
    ],
    ids=["dense", "drop", "drop by all bits", "band", "band with holes"],
)
def test_stored_and_rows_are_one(
    monkeypatch: pytest.MonkeyPatch,
    sparsity: Sparsity,
    weights: tuple[float, ...],
    num_models: int,
    *,
    normalize: bool,
    elect: bool,
) -> None:
    """Bits and diagnostics; many magnitudes are equal, so quotas end within blocks."""
    generator = np.random.default_rng(11)

    def some() -> Bits:
        values: Array = np.round(generator.standard_normal(5000) * 4) / 4
        return encode(values, "BF16")

    inputs = tuple(some() for _ in range(1 + num_models))

    def merge(operands: Operands) -> TensorStatistics:
        return merge_pairs(
            operands, num_models, sparsity, weights=weights, normalize=normalize, elect=elect
        )

    stored, of_stored = run(merge, inputs, has_base=True)
    by_rows(monkeypatch)
    rows, of_rows = run(merge, inputs, has_base=True)
    assert np.array_equal(stored, rows)
    assert of_stored == of_rows

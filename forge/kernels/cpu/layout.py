"""What kernels, compiler and callers agree on: sizes, codes, and the layout of the arrays.

Task-vector kernel, with M models beside the base:

    params  [0] λ, then for each model: weight · rescaling factor
    counts  [0] base not finite · [1 … M] model not finite · [M+1] result not finite
            [M+2] positions with a sign conflict · [M+3 … 2M+2] elements kept by each model
            then for each model SETTINGS words: a sparsify code and its arguments
    stats   the lower triangle of the Gram matrix of the task vectors, row by row
            for ``magnitudes``: Σ|δ| of each model, then Σ|δ′| of each model

    DROP takes key, stream and the threshold on a 32-bit word; BAND takes the bound to keep
    inside and the bound to drop inside (bits, quota; bits -1 for none) and two counters of equal
    elements that begin at 0; SCALED reads one factor for each element from a further input.

Digit kernels, with T targets (a target is one order statistic of one model's values):

    counts  [0] bits below the digit · [1] bits of the digit
            [2 … T+1] bits above the digit, -1 for the first digit · [T+2 … 2T+1] model
            then T histograms of DIGIT_BINS

Window kernel: counts of T targets, WINDOW_WORDS each: model · least and greatest bits of the
window · address of an array for magnitude bits in their own width · its length · and, counted
by the kernel, elements above the window · equal to its greatest bits · strictly inside · equal
to its least bits.
"""

from __future__ import annotations

from typing import Final, Literal

BLOCK: Final = 1024
"""Elements in one row of the work array."""

Compute = Literal["float32", "float64"]
"""Type of the work rows."""

UNREACHABLE: Final = (
    "NRT_Free",
    "NRT_MemInfo_call_dtor",
    "numba_do_raise",
    "numba_gil_ensure",
    "numba_gil_release",
    "numba_runtime_build_excinfo_struct",
    "numba_unpickle",
)
"""Symbols of numba's runtime that object code may name but never calls; see ``_binding``."""

MOST_UNROLLED: Final = 4
"""Models up to which kernels are compiled for their number."""

DENSE: Final = 0
DROP: Final = 1
BAND: Final = 2
SCALED: Final = 3

KINDS: Final = ("dense", "drop", "band", "scaled")
"""Word of each sparsify code in the names of kernels; a merge uses one beside DENSE."""

PARAMS_HEAD: Final = 1
PARAMS_PER_MODEL: Final = 2
SETTINGS: Final = 7
BASE: Final = 0
WORDS: Final = 1
TOTAL: Final = 2
DIVISOR: Final = 4
ELECTED: Final = 6
WORK_HEAD: Final = 8
"""Scratch rows; total, divisor and elected take two, because they are sums in float64."""

WINDOW_WORDS: Final = 9

WINDOW_SPILL: Final = 16
"""Elements that the window kernel may write beyond the length of an array."""

PLACE_STEPS: Final = 1024
"""Steps that a range of magnitudes is cut into, again and again, to find one at a place."""

DIGIT_BITS: Final = 16
DIGIT_BINS: Final = 1 << DIGIT_BITS

STRIPES: Final = 64
"""Counters of DELLA's ranking whose prefix sums are taken side by side."""

PADDING: Final = 32
"""Elements to a multiple of which DELLA's ranking fills up a row."""

GROUP: Final = 128
"""Elements whose random numbers are made together."""

"""The Triton kernels behind ``packed_matmul``, which explains them. Needs triton.

Both load each packed word once, as a tensor [WORDS, OUTPUTS], and then take its codes one place
after another. The inputs of one place are ``word * codes + place``, so the activations are loaded
in that order as well, and no tensor is ever rearranged. A word never spans two groups.
"""

# Triton compiles these functions and types them itself; mypy cannot see its language.
# mypy: ignore-errors
# It reads annotations as values, so there is no `from __future__ import annotations`.
import triton
import triton.language as tl

LANES_A_BLOCK = 16


@triton.jit
def _load_words(
    words, scales, zeros, word, outputs, num_words, num_groups, num_outputs,
    GROUP_WORDS: tl.constexpr, HAS_ZEROS: tl.constexpr,
):  # fmt: skip
    """Return words, scales and zero points, each [WORDS, OUTPUTS]."""
    block = (outputs // 16)[None, :].to(tl.int64)
    lane = (outputs % 16)[None, :]
    is_there = (word[:, None] < num_words) & (outputs[None, :] < num_outputs)
    packed = tl.load(
        words + (block * num_words + word[:, None]) * 16 + lane, mask=is_there, other=0
    )
    place = (block * num_groups + (word // GROUP_WORDS)[:, None]) * 16 + lane
    scale = tl.load(scales + place, mask=is_there, other=0.0).to(tl.float32)
    if HAS_ZEROS:
        zero = tl.load(zeros + place, mask=is_there, other=0).to(tl.float32)
    else:
        zero = tl.zeros_like(scale)
    return packed, scale, zero


@triton.jit
def _values(packed, table, place: tl.constexpr, BITS: tl.constexpr, HAS_ZEROS: tl.constexpr):
    """Return what the codes at one place of their words stand for, float32."""
    code = (packed >> (place * BITS)) & ((1 << BITS) - 1)
    if HAS_ZEROS:
        return code.to(tl.float32)
    else:  # noqa: RET505 - to Triton, this is a branch of the compiler
        return tl.load(table + code)


@triton.jit
def decode(
    x, words, scales, zeros, table, out, num_rows, num_outputs, steps_a_part,
    num_inputs, num_words, num_groups,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, WORDS: tl.constexpr,
    GROUP_WORDS: tl.constexpr, BITS: tl.constexpr, HAS_ZEROS: tl.constexpr,
):  # fmt: skip
    """Write one part of the sums of OUTPUTS outputs for up to ROWS rows."""
    codes: tl.constexpr = 32 // BITS
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    part = tl.program_id(1)
    rows = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for step in range(part * steps_a_part, (part + 1) * steps_a_part):
        word = step * WORDS + tl.arange(0, WORDS)
        packed, scale, zero = _load_words(
            words, scales, zeros, word, outputs, num_words, num_groups, num_outputs,
            GROUP_WORDS, HAS_ZEROS,
        )  # fmt: skip
        for row in tl.static_range(ROWS):
            dot = tl.zeros((WORDS, OUTPUTS), tl.float32)
            inputs_total = tl.zeros((WORDS,), tl.float32)
            for place in tl.static_range(codes):
                inputs = word * codes + place
                is_there = (inputs < num_inputs) & (row < num_rows)
                value = tl.load(x + row * num_inputs + inputs, mask=is_there, other=0.0)
                value = value.to(tl.float32)
                dot += _values(packed, table, place, BITS, HAS_ZEROS) * value[:, None]
                inputs_total += value
            term = tl.sum(scale * (dot - zero * inputs_total[:, None]), axis=0)
            total += tl.where(rows[:, None] == row, term[None, :], 0.0)
    place = (part * num_rows + rows[:, None]) * num_outputs + outputs[None, :]
    is_there = (rows[:, None] < num_rows) & (outputs[None, :] < num_outputs)
    tl.store(out + place, total, mask=is_there)


@triton.jit
def prefill(
    x, words, scales, zeros, table, out, num_rows, num_outputs,
    num_inputs, num_words, num_groups,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, WORDS: tl.constexpr,
    GROUP_WORDS: tl.constexpr, BITS: tl.constexpr, HAS_ZEROS: tl.constexpr,
):  # fmt: skip
    """Write a tile of ROWS rows and OUTPUTS outputs."""
    codes: tl.constexpr = 32 // BITS
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    outputs = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for first in range(0, num_words, WORDS):
        word = first + tl.arange(0, WORDS)
        packed, scale, zero = _load_words(
            words, scales, zeros, word, outputs, num_words, num_groups, num_outputs,
            GROUP_WORDS, HAS_ZEROS,
        )  # fmt: skip
        for place in tl.static_range(codes):
            inputs = (word * codes + place)[None, :]
            is_there = (rows < num_rows) & (inputs < num_inputs)
            value = tl.load(x + rows * num_inputs + inputs, mask=is_there, other=0.0)
            weight = (_values(packed, table, place, BITS, HAS_ZEROS) - zero) * scale
            total = tl.dot(value, weight.to(value.dtype), total, input_precision="ieee")
    is_there = (rows < num_rows) & (outputs[None, :] < num_outputs)
    place = rows * num_outputs + outputs[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=is_there)

"""The Triton kernels behind ``packed_matmul``, which explains them. Needs triton.

All load each packed word once, as a tensor [WORDS, OUTPUTS], and take its codes one place after
another. The inputs of one place are ``word * codes + place``. A word never spans two groups.

A code becomes a number without a conversion: its bits are moved to the top of a mantissa, under
the exponent of one, which makes 1 + code / 2**BITS exactly. A GPU converts integers at an eighth
of the rate at which it multiplies.
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
def _one_and(packed, place: tl.constexpr, BITS: tl.constexpr):
    """Return 1 + code / 2**BITS of the codes at one place of their words, float32."""
    left: tl.constexpr = 23 - BITS - place * BITS
    if left >= 0:
        moved = packed << left
    else:
        moved = packed >> -left
    return ((moved & (((1 << BITS) - 1) << (23 - BITS))) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def decode_codes(
    x, words, scales, zeros, table, out, num_rows, num_outputs, steps_a_part,
    num_inputs, num_words, num_groups,
    OUTPUTS: tl.constexpr, WORDS: tl.constexpr,
    GROUP_WORDS: tl.constexpr, BITS: tl.constexpr, HAS_ZEROS: tl.constexpr,
):  # fmt: skip
    """Write one part of the sums of OUTPUTS outputs for one row; codes have zero points."""
    codes: tl.constexpr = 32 // BITS
    levels: tl.constexpr = 1 << BITS
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    part = tl.program_id(1)
    row = tl.program_id(2)
    total = tl.zeros((WORDS, OUTPUTS), tl.float32)
    for step in range(part * steps_a_part, (part + 1) * steps_a_part):
        word = step * WORDS + tl.arange(0, WORDS)
        packed, scale, zero = _load_words(
            words, scales, zeros, word, outputs, num_words, num_groups, num_outputs,
            GROUP_WORDS, HAS_ZEROS,
        )  # fmt: skip
        dot = tl.zeros((WORDS, OUTPUTS), tl.float32)
        inputs_total = tl.zeros((WORDS,), tl.float32)
        for place in tl.static_range(codes):
            inputs = word * codes + place
            value = tl.load(x + row * num_inputs + inputs, mask=inputs < num_inputs, other=0.0)
            value = value.to(tl.float32)
            dot += _one_and(packed, place, BITS) * value[:, None]
            inputs_total += value
        total += scale * (levels * dot - (zero + levels) * inputs_total[:, None])
    place = (part * num_rows + row) * num_outputs + outputs
    total = tl.sum(total, axis=0).to(out.dtype.element_ty)
    tl.store(out + place, total, mask=outputs < num_outputs)


@triton.jit
def decode_table(
    x, words, scales, zeros, table, out, num_rows, num_outputs, steps_a_part,
    num_inputs, num_words, num_groups,
    OUTPUTS: tl.constexpr, WORDS: tl.constexpr,
    GROUP_WORDS: tl.constexpr, BITS: tl.constexpr, HAS_ZEROS: tl.constexpr,
):  # fmt: skip
    """As ``decode_codes``, for codes that look up a table: all of a word's at once."""
    codes: tl.constexpr = 32 // BITS
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    part = tl.program_id(1)
    row = tl.program_id(2)
    place = tl.arange(0, codes)
    total = tl.zeros((WORDS, OUTPUTS), tl.float32)
    for step in range(part * steps_a_part, (part + 1) * steps_a_part):
        word = step * WORDS + tl.arange(0, WORDS)
        packed, scale, _ = _load_words(
            words, scales, zeros, word, outputs, num_words, num_groups, num_outputs,
            GROUP_WORDS, HAS_ZEROS,
        )  # fmt: skip
        inputs = word[:, None] * codes + place[None, :]
        value = tl.load(x + row * num_inputs + inputs, mask=inputs < num_inputs, other=0.0)
        code = (packed[:, :, None] >> (place * BITS)[None, None, :]) & ((1 << BITS) - 1)
        terms = tl.load(table + code) * value.to(tl.float32)[:, None, :]
        total += scale * tl.sum(terms, axis=2)
    where = (part * num_rows + row) * num_outputs + outputs
    total = tl.sum(total, axis=0).to(out.dtype.element_ty)
    tl.store(out + where, total, mask=outputs < num_outputs)


@triton.jit
def tile(
    x, words, scales, zeros, table, out, num_rows, num_outputs, steps_a_part,
    num_inputs, num_words, num_groups,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, WORDS: tl.constexpr,
    GROUP_WORDS: tl.constexpr, BITS: tl.constexpr, HAS_ZEROS: tl.constexpr,
):  # fmt: skip
    """Write one part of the sums of ROWS rows and OUTPUTS outputs; codes have zero points.

    The activations are [rows, codes, words]: those of one place lie side by side.
    """
    codes: tl.constexpr = 32 // BITS
    levels: tl.constexpr = 1 << BITS
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    part = tl.program_id(1)
    rows = tl.arange(0, ROWS)[:, None]
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for step in range(part * steps_a_part, (part + 1) * steps_a_part):
        word = step * WORDS + tl.arange(0, WORDS)
        packed, scale, zero = _load_words(
            words, scales, zeros, word, outputs, num_words, num_groups, num_outputs,
            GROUP_WORDS, HAS_ZEROS,
        )  # fmt: skip
        is_there = (word[None, :] < num_words) & (rows < num_rows)
        for place in tl.static_range(codes):
            inputs = (rows * codes + place) * num_words + word[None, :]
            value = tl.load(x + inputs, mask=is_there, other=0.0)
            weight = (_one_and(packed, place, BITS) * levels - (zero + levels)) * scale
            total = tl.dot(value, weight.to(value.dtype), total, input_precision="ieee")
    is_there = (rows < num_rows) & (outputs[None, :] < num_outputs)
    place = (part * num_rows + rows) * num_outputs + outputs[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=is_there)


@triton.jit
def dequantize(
    words, scales, zeros, table, out, first_output, num_outputs,
    num_inputs, num_words, num_groups,
    OUTPUTS: tl.constexpr, WORDS: tl.constexpr,
    GROUP_WORDS: tl.constexpr, BITS: tl.constexpr, HAS_ZEROS: tl.constexpr,
):  # fmt: skip
    """Write a tile of the weight, [O, I], from ``first_output`` on."""
    codes: tl.constexpr = 32 // BITS
    outputs = first_output + tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    packed, scale, zero = _load_words(
        words, scales, zeros, word, outputs, num_words, num_groups, num_outputs,
        GROUP_WORDS, HAS_ZEROS,
    )  # fmt: skip
    place = tl.arange(0, codes)
    code = (packed[:, :, None] >> (place * BITS)[None, None, :]) & ((1 << BITS) - 1)
    if HAS_ZEROS:
        value = (code.to(tl.float32) - zero[:, :, None]) * scale[:, :, None]
    else:
        value = tl.load(table + code) * scale[:, :, None]
    value = tl.permute(value.to(out.dtype.element_ty), (1, 0, 2))
    value = tl.reshape(value, (OUTPUTS, WORDS * codes))
    inputs = tl.program_id(1) * (WORDS * codes) + tl.arange(0, WORDS * codes)
    is_there = (outputs[:, None] < num_outputs) & (inputs[None, :] < num_inputs)
    rows = (outputs - first_output).to(tl.int64)[:, None]
    tl.store(out + rows * num_inputs + inputs[None, :], value, mask=is_there)

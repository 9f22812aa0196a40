"""Multiply activations with quantized weights, reading nothing but the packed weights.

``y[m, o] = Σ_g s[o, g] · (Σ_{i in g} q[o, i] · x[m, i] − z[o, g] · Σ_{i in g} x[m, i])``

Codes become float32 exactly, products are summed in float32, and scale and zero point are
applied once a group, to sixteen outputs at a time. So the result is that of dequantizing and
multiplying in float32; nothing is rounded to fewer bits on the way, activations least of all.

A row of activations needs two instructions for sixteen weights beside the one that widens them,
which keeps up with main memory; what doubled the speed is the prefetch 8 KiB ahead, because
hardware stops at the end of every page. The same loop with 16 rows serves the prompt: widening
is then shared by 16 multiplications.

Every output is computed by one thread in a fixed order, so results do not depend on how many
there are. Arguments and layout: ``packed_layout.py``. Activations lie as float32 ``[tile, I,
row of tile]`` and their group sums as ``[tile, G, row of tile]``.

Kernels are made when they are asked for by name: ``u4_1`` multiplies one row, ``u4_16`` tiles of
sixteen, ``u4_bf16`` dequantizes; ``u4_1_portable`` is what a CPU without AVX-512 runs.
"""

from __future__ import annotations

import numpy as np
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from forge.kernels.cpu.memory import pointer
from forge.kernels.cpu.quantized import lanes
from forge.kernels.cpu.quantized.packed_layout import (
    ACTIVATIONS,
    BLOCKS,
    DEPTH,
    GROUPS,
    KINDS,
    LANES,
    NEXT,
    NUM_ARGUMENTS,
    OUT,
    SCALES,
    STRIDE,
    SUMS,
    TAKE,
    TILE_ROWS,
    TILES,
    WORDS,
    ZEROS,
)

_AHEAD = 8192
_WORD_BYTES = 4 * LANES
_CHAINS = {1: 4, 2: 4, 4: 2}
"""Sums kept apart for each row, so that one multiplication need not wait for the last."""


def __getattr__(name):
    """Return the kernel of that name."""
    kind, _, rest = name.partition("_")
    tile, _, variant = rest.partition("_")
    if kind in KINDS and variant in ("", "portable"):
        if tile == "bf16":
            return _expansion(KINDS[kind], portable=bool(variant))
        if tile in map(str, TILE_ROWS):
            return _product(KINDS[kind], int(tile), portable=bool(variant))
    raise AttributeError(f"module {__name__} has no {name}")


@intrinsic
def _take(typingctx, address, count):
    """Add to the counter at an address, and return what it was before."""

    def codegen(context, builder, signature, args):
        counter = builder.inttoptr(args[0], lanes.ADDRESS.as_pointer())
        return builder.atomic_rmw("add", counter, args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


def _scale(b, kind, scales, group):
    form = lanes.HALVES if kind.scale_bytes == 2 else lanes.SINGLES
    size = kind.scale_bytes * LANES
    scale = lanes.load(b, form, lanes.at(b, scales, group, size), kind.scale_bytes)
    return b.fpext(scale, lanes.SINGLES) if kind.scale_bytes == 2 else scale


def _zero(b, zeros, group):
    return b.uitofp(lanes.load(b, lanes.BYTES, lanes.at(b, zeros, group, LANES), 1), lanes.SINGLES)


def _load_words(b, words, position):
    address = lanes.at(b, words, position, _WORD_BYTES)
    lanes.prefetch(b, b.add(address, lanes.ADDRESS(_AHEAD)))
    return lanes.load(b, lanes.WORDS, address, 4)


def _product_block(kind, rows, *, portable):
    """Return an intrinsic that computes ``rows`` rows of sixteen outputs."""
    chains = _CHAINS.get(rows, 1)

    def add_word(b, packed, inputs, parts):
        for number in range(kind.codes):
            codes = lanes.code_values(
                b, packed, number, bits=kind.bits, table=kind.table, portable=portable
            )
            for row in range(rows):
                place = b.add(inputs, lanes.ADDRESS(4 * (number * rows + row)))
                value = lanes.splat(b, lanes.load(b, lanes.SINGLE, place, 4))
                part = parts[row][number % chains]
                b.store(lanes.multiply_add(b, codes, value, b.load(part)), part)

    def add_group(b, args, group, parts, totals):
        scale = _scale(b, kind, args.scales, group)
        zero = _zero(b, args.zeros, group) if kind.has_zeros else None
        for row in range(rows):
            dot = b.load(parts[row][0])
            for part in parts[row][1:]:
                dot = b.fadd(dot, b.load(part))
            if zero is not None:
                place = b.add(b.mul(group, lanes.ADDRESS(rows)), lanes.ADDRESS(row))
                total = lanes.load(b, lanes.SINGLE, lanes.at(b, args.sums, place, 4), 4)
                dot = lanes.multiply_add(b, b.fneg(zero), lanes.splat(b, total), dot)
            b.store(lanes.multiply_add(b, dot, scale, b.load(totals[row])), totals[row])

    def codegen(context, b, signature, values):
        args = _BlockArguments(*values)
        nothing = lanes.every_lane(lanes.SINGLES, 0.0)
        totals = [cgutils.alloca_once(b, lanes.SINGLES) for _ in range(rows)]
        parts = [[cgutils.alloca_once(b, lanes.SINGLES) for _ in range(chains)] for _ in totals]
        for variable in totals:
            b.store(nothing, variable)
        with cgutils.for_range(b, args.num_groups) as group_loop:
            for row_parts in parts:
                for variable in row_parts:
                    b.store(nothing, variable)
            first = b.mul(group_loop.index, args.depth)
            with cgutils.for_range(b, args.depth) as word_loop:
                position = b.add(first, word_loop.index)
                packed = _load_words(b, args.words, position)
                inputs = lanes.at(b, args.x, position, 4 * kind.codes * rows)
                add_word(b, packed, inputs, parts)
            add_group(b, args, group_loop.index, parts, totals)
        for row in range(rows):
            target = b.add(args.out, b.mul(args.stride, lanes.ADDRESS(row)))
            lanes.store(b, b.load(totals[row]), target, 4)
        return context.get_dummy_value()

    return _block_intrinsic(codegen)


def _expansion_block(kind, *, portable):
    """Return an intrinsic that writes sixteen outputs' weights, an input to a row of bfloat16."""

    def codegen(context, b, signature, values):
        args = _BlockArguments(*values)
        with cgutils.for_range(b, args.num_groups) as group_loop:
            scale = _scale(b, kind, args.scales, group_loop.index)
            zero = _zero(b, args.zeros, group_loop.index) if kind.has_zeros else None
            first = b.mul(group_loop.index, args.depth)
            with cgutils.for_range(b, args.depth) as word_loop:
                position = b.add(first, word_loop.index)
                packed = _load_words(b, args.words, position)
                row = b.mul(position, lanes.ADDRESS(kind.codes))
                for number in range(kind.codes):
                    weight = lanes.code_values(
                        b, packed, number, bits=kind.bits, table=kind.table, portable=portable
                    )
                    if zero is not None:
                        weight = b.fsub(weight, zero)
                    weight = lanes.to_bf16(b, b.fmul(weight, scale))
                    offset = b.mul(args.stride, b.add(row, lanes.ADDRESS(number)))
                    lanes.store(b, weight, b.add(args.out, offset), 2)
        return context.get_dummy_value()

    return _block_intrinsic(codegen)


class _BlockArguments:
    """The arguments of an intrinsic over one block, by name."""

    def __init__(self, words, scales, zeros, x, sums, out, stride, num_groups, depth):
        self.words, self.scales, self.zeros = words, scales, zeros
        self.x, self.sums, self.out = x, sums, out
        self.stride, self.num_groups, self.depth = stride, num_groups, depth


def _block_intrinsic(codegen):
    def block(typingctx, words, scales, zeros, x, sums, out, stride, num_groups, depth):
        return types.void(*[types.int64] * 9), codegen

    return intrinsic(block)


def _product(kind, rows, *, portable):
    """Return the word kernel that multiplies tiles of ``rows`` rows with the weight."""
    return _over_blocks(_product_block(kind, rows, portable=portable), kind, out_bytes=4, rows=rows)


def _expansion(kind, *, portable):
    """Return the word kernel that dequantizes into bfloat16 [I, outputs]."""
    return _over_blocks(_expansion_block(kind, portable=portable), kind, out_bytes=2, rows=1)


def _over_blocks(block, kind, *, out_bytes, rows):
    scale_bytes = kind.scale_bytes * LANES
    tile_words = 4 * kind.codes * rows
    out_block = out_bytes * LANES

    def kernel(address):
        a = carray(pointer(address), NUM_ARGUMENTS, np.int64)
        num_groups, num_blocks, take = a[GROUPS], a[BLOCKS], a[TAKE]
        num_words = num_groups * a[DEPTH]
        while True:
            start = _take(address + 8 * NEXT, take)
            if start >= num_blocks:
                break
            for b in range(start, min(start + take, num_blocks)):
                for tile in range(a[TILES]):
                    block(
                        a[WORDS] + b * num_words * _WORD_BYTES,
                        a[SCALES] + b * num_groups * scale_bytes,
                        a[ZEROS] + b * num_groups * LANES,
                        a[ACTIVATIONS] + tile * num_words * tile_words,
                        a[SUMS] + tile * num_groups * (4 * rows),
                        a[OUT] + tile * rows * a[STRIDE] + b * out_block,
                        a[STRIDE],
                        num_groups,
                        a[DEPTH],
                    )

    return kernel


def lay_out_4(codes, words, num_outputs, num_words):
    """Lay out codes of four bits as the kernels stream them.

    ``codes`` is the address of uint8 ``[num_outputs, 8 * num_words]``, ``words`` that of
    uint32 ``[blocks, num_words, 16]``, zero at first.
    """
    inputs = carray(pointer(codes), (num_outputs, num_words), np.uint64)
    num_blocks = (num_outputs + LANES - 1) // LANES
    target = carray(pointer(words), (num_blocks, num_words, LANES), np.uint32)
    for output in range(num_outputs):
        for k in range(num_words):
            # Eight bytes of four bits, folded into their neighbours until they are one word.
            eight = inputs[output, k]
            eight = (eight | (eight >> np.uint64(4))) & np.uint64(0x00FF00FF00FF00FF)
            eight = (eight | (eight >> np.uint64(8))) & np.uint64(0x0000FFFF0000FFFF)
            eight = (eight | (eight >> np.uint64(16))) & np.uint64(0xFFFFFFFF)
            target[output // LANES, k, output % LANES] = np.uint32(eight)


def lay_out_8(codes, words, num_outputs, num_words):
    """Lay out codes of eight bits, as ``lay_out_4`` does."""
    inputs = carray(pointer(codes), (num_outputs, num_words), np.uint32)
    num_blocks = (num_outputs + LANES - 1) // LANES
    target = carray(pointer(words), (num_blocks, num_words, LANES), np.uint32)
    for output in range(num_outputs):
        for k in range(num_words):
            target[output // LANES, k, output % LANES] = inputs[output, k]

"""The plain LoRA: two thin factors whose product is added to a weight.

    W' = W + s·B·A        s = alpha / r, or alpha / √r for rank-stabilized LoRA

W is [O, I], B [O, R], A [R, I] (O out, I in, R rank). For an embedding W is [V, D], and the
adapter, B [D, R] and A [R, V], is transposed, as are layers that store W as [I, O].

Factors of a stack of experts lie in one pair: A [E·R, I] holds one expert after the other, B
[O, R·E] holds for each r all experts. The stack is one tensor [E, O, I] ([E, I, O] where it is
stored transposed) or, in files of earlier versions, one tensor for each expert, with the halves
of ``gate_up_proj`` apart.

The product is summed in float64 from values that float64 holds exactly, so that no order in which
a matrix library sums changes what is left after rounding; it is added in float32 and rounded once
to the type of W.

Reference: Hu et al. 2021, LoRA, arXiv:2106.09685; Kalajdzievski 2023, rsLoRA, arXiv:2312.03732;
PEFT 0.21, ``peft.tuners.lora.layer`` (``Linear``, ``Embedding``, ``ParamWrapper``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from forge.checkpoints.floats import decode
from forge.checkpoints.lora.rows import Floats, Rows, Step
from forge.checkpoints.source import SafetensorsSource

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Factors:
    """Two factors, and how their product lies in a stored tensor.

    Attributes:
        a: Name of A in the adapter.
        b: Name of B in the adapter.
        scale: s of the formula.
        transposed: Whether the tensor is stored ``[I, O]``.
        num_experts: E; 1 for a single matrix.
        expert: The expert whose matrix the tensor is; ``None`` when it holds all.
        first_out: The first row of B that belongs to the tensor.
        num_out: How many do; ``None`` for all.
    """

    a: str
    b: str
    scale: float
    transposed: bool = False
    num_experts: int = 1
    expert: int | None = None
    first_out: int = 0
    num_out: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The adapter's tensors that this reads."""
        return (self.a, self.b)

    def begin(self, original: Rows, adapter: SafetensorsSource) -> Step:
        """Return the step that adds the product.

        Args:
            original: The tensor before any step.
            adapter: Holds the factors.
        """
        product = self.product(adapter)

        def step(block_RC: Floats, begin: int) -> Floats:
            delta_RC = product.rows(begin, len(block_RC))
            total: Floats = block_RC + delta_RC.astype(block_RC.dtype)
            return total

        return step

    def product(self, adapter: SafetensorsSource) -> Product:
        """Return the scaled product, to be computed row by row.

        Args:
            adapter: Holds the factors.
        """
        a, b = adapter.info(self.a), adapter.info(self.b)
        num_experts, rank = self.num_experts, a.shape[0] // self.num_experts
        a_ERI = decode(adapter.read(self.a), a.dtype).reshape(num_experts, rank, a.shape[1])
        b_ORE = decode(adapter.read(self.b), b.dtype).reshape(b.shape[0], rank, num_experts)
        if self.expert is not None:
            a_ERI = a_ERI[self.expert : self.expert + 1]
            b_ORE = b_ORE[:, :, self.expert : self.expert + 1]
        if self.num_out is not None:
            b_ORE = b_ORE[self.first_out : self.first_out + self.num_out]
        b_EOR = b_ORE.transpose(2, 0, 1)
        left, right = (a_ERI.transpose(0, 2, 1), b_EOR.transpose(0, 2, 1))
        if not self.transposed:
            left, right = b_EOR, a_ERI
        wide = np.ascontiguousarray(left, np.float64)
        return Product(wide * self.scale, np.ascontiguousarray(right, np.float64))


@dataclass(frozen=True, slots=True)
class Product:
    """Left times right, matrix by matrix.

    Attributes:
        left_ENR: N rows of each matrix.
        right_ERC: C columns of each.
    """

    left_ENR: Doubles
    right_ERC: Doubles

    def rows(self, begin: int, count: int) -> Doubles:
        """Return some rows of the product.

        Args:
            begin: The first, counted through all matrices.
            count: How many.

        Returns:
            Their values [count, C], float64.
        """
        rows_each = self.left_ENR.shape[1]
        if len(self.left_ENR) == 1:
            single: Doubles = self.left_ENR[0, begin : begin + count] @ self.right_ERC[0]
            return single
        result = np.empty((count, self.right_ERC.shape[2]))
        done = 0
        while done < count:
            number, first = divmod(begin + done, rows_each)
            size = min(rows_each - first, count - done)
            part_NR = self.left_ENR[number, first : first + size]
            np.matmul(part_NR, self.right_ERC[number], out=result[done : done + size])
            done += size
        return result

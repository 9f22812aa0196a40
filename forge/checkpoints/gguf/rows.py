"""The orders in which GGUF keeps the rows of attention weights, and the way back.

Rotary embeddings turn pairs of a head's elements. For some families llama.cpp takes neighbours,
(0, 1), (2, 3), ..., where Hugging Face's models take elements that lie half a head apart, (0, d/2),
(1, d/2 + 1), ...; the rows of ``q_proj`` and ``k_proj`` are stored accordingly. Fused projections
hold all rows of q, then all of k, then all of v, where Hugging Face's files hold q, k and v of
one head, or of one group of heads, together.

All of these move whole rows, and a row is a whole number of blocks, so the rows are moved while
they are packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Kind = Literal["pairs", "heads", "groups"]


@dataclass(frozen=True, slots=True)
class RowOrder:
    """An order of rows.

    Attributes:
        kind: ``pairs`` of rotary elements, q, k and v of ``heads``, or those of ``groups``.
        num_heads: Heads of this tensor; for ``groups``, query heads.
        num_groups: For ``groups``, key and value heads.
    """

    kind: Kind
    num_heads: int
    num_groups: int = 1

    def divides(self, num_rows: int) -> bool:
        """Tell whether a tensor of that many rows can have this order."""
        if self.kind == "pairs":
            return num_rows % (2 * self.num_heads) == 0
        if self.kind == "heads":
            return num_rows % (3 * self.num_heads) == 0
        per_head = self.num_heads + 2 * self.num_groups
        return self.num_heads % self.num_groups == 0 and num_rows % per_head == 0

    def places(self, num_rows: int) -> npt.NDArray[np.intp]:
        """Return which row of the file each row of Hugging Face's tensor is.

        Args:
            num_rows: Rows of the tensor, for which ``divides`` is true.

        Returns:
            [num_rows], a permutation.
        """
        import numpy as np

        rows = np.arange(num_rows)
        if self.kind == "pairs":
            return rows.reshape(self.num_heads, -1, 2).swapaxes(1, 2).reshape(-1)
        if self.kind == "heads":
            return rows.reshape(3, self.num_heads, -1).swapaxes(0, 1).reshape(-1)
        width = num_rows // (self.num_heads + 2 * self.num_groups)
        query, key, value = np.split(
            rows, [self.num_heads * width, (self.num_heads + self.num_groups) * width]
        )
        parts = (
            query.reshape(self.num_groups, -1, width),
            key.reshape(self.num_groups, 1, width),
            value.reshape(self.num_groups, 1, width),
        )
        return np.concatenate(parts, axis=1).reshape(-1)

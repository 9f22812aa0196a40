"""Tell that routers are merged: their scores are compared with each other, not added up.

An expert's matrices may be averaged like any others, if the experts of one number are relatives,
which those of two fine-tunes of one mixture are. A router's rows decide which experts compute at
all, and between the choices of two models lies no choice that both would make.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from forge.merge.check.report import Notebook
from forge.merge.check.stack import WrittenTensor

ROUTERS: Final = (
    "block_sparse_moe.gate.weight", "mlp.gate.weight", "mlp.router.weight",
    "feed_forward.router.weight", "mlp.shared_expert_gate.weight",
)  # fmt: skip
"""How routers are called, relative to a layer."""


def note_routers(tensors: Sequence[WrittenTensor], notes: Notebook) -> None:
    """Warn of routers that are made of several models.

    Args:
        tensors: What will be written.
        notes: Receives the finding.
    """
    found = [
        tensor.name
        for tensor in tensors
        if len(tensor.inputs) > 1 and f".{tensor.name}".endswith(tuple(f".{n}" for n in ROUTERS))
    ]
    if not found:
        return
    more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
    word = next(name for name in ROUTERS if found[0].endswith(name))
    verb = "are routers" if len(found) > 1 else "is a router"
    notes.warning(
        "routers",
        f"'{found[0]}'{more} {verb}, and a merged router can send tokens to experts that none of "
        f"the models would choose; a filter on '{word}' can keep one model's.",
    )

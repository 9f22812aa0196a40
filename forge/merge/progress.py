"""Who hears how a merge goes: the same as for any long piece of work."""

from __future__ import annotations

from forge.checkpoints.progress import Progress, Silence

__all__ = ["Progress", "Silence"]

"""What the calibrated search does, as a frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

SEARCHES: Final = ("sketch", "gram", "module")
SKETCH_ROWS: Final = 256


@dataclass(frozen=True, slots=True)
class AwqSettings:
    """How scales are judged, and what else is done about rounding errors.

    Attributes:
        search: ``sketch`` judges a scale by the error of a linear's outputs on 256 signed sums of
            calibration tokens, ``gram`` by its error on all tokens, through their second moments,
            and ``module`` as AutoAWQ does, by the error of the attention's or the MLP's outputs.
        clip: Whether each group's largest magnitude is searched for, too.
        duo_scaling: Whether weights count in a scale beside activations.
        error_feedback: Whether later columns make up for the rounding errors of earlier ones.
        keep: Modules that stay in full precision; see ``forge.architectures.blocks.is_kept``.
        device: Where blocks run, such as ``cpu`` or ``cuda``; the search runs on the CPU.
        seed: Seed of the sketch's signs.
        threads: Threads to use; 0 for as many as the process may run on. Results do not depend
            on it.
        spill_folder: Where hidden states go when they exceed ``spill_above_bytes``; ``None`` for
            the system's folder of temporary files.
        spill_above_bytes: Size from which hidden states are kept in a mapped file.
    """

    search: str = "sketch"
    clip: bool = True
    duo_scaling: bool = True
    error_feedback: bool = False
    keep: tuple[str, ...] = ()
    device: str = "cpu"
    seed: int = 0
    threads: int = 0
    spill_folder: Path | None = None
    spill_above_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise ValueError(f"no search '{self.search}'; there are {', '.join(SEARCHES)}")

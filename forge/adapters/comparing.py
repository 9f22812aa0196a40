"""Compare two models tensor by tensor: what differs, and by how much.

The energy of a difference is the sum of its squares. Tensors of equal bytes are told without any
arithmetic, and the largest are compared first, so that no thread is left with one at the end.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from forge.adapters.delta import Delta
from forge.adapters.jobs import run_all
from forge.adapters.plan import Pairing
from forge.checkpoints.progress import Progress
from forge.core.dtypes import DTYPES
from forge.core.errors import IncompatibleError, NonFiniteError


def energies_of(pairing: Pairing, *, threads: int, progress: Progress) -> dict[str, float]:
    """Return the energies of the tensors that differ.

    Args:
        pairing: The models.
        threads: Tensors at work at once.
        progress: Hears how it goes.

    Returns:
        Sums of squares by the base's names; not a number where the shapes differ.

    Raises:
        IncompatibleError: Values that differ are of a type that no adapter can hold.
        NonFiniteError: A tensor holds a NaN or an infinity.
    """
    pairs = pairing.pairs
    sizes = {name: base.source.info(base.name).nbytes for name, (_, base) in pairs.items()}
    progress.stage("comparing")
    progress.start(sum(sizes.values()), 0)
    energies: dict[str, float] = {}

    def compare(name: str) -> None:
        energies[name] = _energy(pairing, name)
        progress.advance(sizes[name])

    names = sorted(pairs, key=lambda name: -sizes[name])
    run_all((partial(compare, name) for name in names), num_threads=threads)
    return {name: energies[name] for name in pairs if energies[name] != 0}


def _energy(pairing: Pairing, name: str) -> float:
    tuned, base = pairing.pairs[name]
    mine, its = tuned.source.info(tuned.name), base.source.info(base.name)
    if mine.shape != its.shape:
        return math.nan
    if mine.dtype == its.dtype and tuned.source.read(tuned.name) == base.source.read(base.name):
        return 0.0
    if not DTYPES[mine.dtype].mergeable:
        raise IncompatibleError(
            f"'{name}' holds {mine.dtype} values that differ, which no adapter can hold."
        )
    with np.errstate(invalid="ignore", over="ignore"):
        energy = Delta(tuned, base).squares()
    if not math.isfinite(energy):
        raise NonFiniteError(
            f"'{name}' of '{tuned.source.label}' or '{base.source.label}' holds a NaN or an "
            "infinity. Repair or replace that checkpoint."
        )
    return energy

"""Of what a stack is made: which layers of which model, by which method, and how large they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from forge.cli.tables import count_text, size_text, table
from forge.core.dtypes import DTYPES

if TYPE_CHECKING:
    from forge.merge.plan import MergeJob, MergePlan


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring layers of the result that come from neighbouring layers of the same models."""

    first: int
    last: int
    method: str
    models: tuple[tuple[str, int], ...]
    num_parameters: int
    num_bytes: int

    def goes_on(self, other: _Run) -> bool:
        """Return whether the other run's layers continue this one's."""
        return (self.method, self.models) == (other.method, other.models)

    def joined(self, other: _Run) -> _Run:
        """Return both as one."""
        return _Run(
            self.first,
            other.last,
            self.method,
            self.models,
            self.num_parameters + other.num_parameters,
            self.num_bytes + other.num_bytes,
        )


def stack_text(plan: MergePlan, *, width: int | None) -> str:
    """Return a table of the runs of layers that a result is stacked of.

    Args:
        plan: The plan.
        width: Columns of the terminal; ``None`` wraps nothing.

    Returns:
        The table; nothing for a merge whose layers stay where they were, in one run.
    """
    runs: list[_Run] = []
    for layer, jobs in groupby(plan.jobs, key=lambda job: job.layer):
        if layer is None:
            continue
        run = _run_of(plan, layer, list(jobs))
        if runs and runs[-1].goes_on(run):
            runs[-1] = runs[-1].joined(run)
        else:
            runs.append(run)
    if len(runs) < 2 and all(shift == 0 for run in runs for _, shift in run.models):
        return ""
    heads = ("LAYERS", "METHOD", "PARAMETERS", "BYTES", "FROM")
    cells = [
        (
            _range(run.first, run.last),
            run.method,
            count_text(run.num_parameters),
            size_text(run.num_bytes),
            ", ".join(
                f"{model} {_range(run.first + shift, run.last + shift)}"
                for model, shift in run.models
            ),
        )
        for run in runs
    ]
    return table(heads, cells, right=heads[2:4], width=width)


def _run_of(plan: MergePlan, layer: int, jobs: Sequence[MergeJob]) -> _Run:
    first = jobs[0]
    numbers = [plan.architecture.layer_of(item.name) for item in first.inputs]
    counts = [math.prod(job.shape) for job in jobs]
    sizes = [
        count * DTYPES[job.dtype].itemsize for count, job in zip(counts, jobs, strict=True)
    ]  # fmt: skip
    return _Run(
        layer,
        layer,
        first.method,
        tuple(
            (str(item.model), 0 if number is None else number - layer)
            for item, number in zip(first.inputs, numbers, strict=True)
        ),
        sum(counts),
        sum(sizes),
    )


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"

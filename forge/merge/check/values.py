"""Find parameter values that mean nothing for a tensor, though each alone is in its range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from forge.core.enumeration import some
from forge.merge.check.report import Notebook
from forge.merge.check.stack import WrittenTensor
from forge.merge.plan import MergeJob, MergePlan
from forge.recipes.coverage import dead_filters, missing_values
from forge.recipes.merge_types import MergeRecipe

_NORMALIZED_BY: Final = {"linear": "normalize", "multislerp": "normalize_weights"}
_ZERO: Final = 1e-8


def check_filters(recipe: MergeRecipe, tensors: Sequence[WrittenTensor], notes: Notebook) -> None:
    """Report filters that match no tensor, and tensors for which a parameter has no value.

    Args:
        recipe: The recipe.
        tensors: What will be written.
        notes: Receives the findings.
    """
    names = [tensor.name for tensor in tensors]
    for problem in dead_filters(recipe, names):
        notes.error("dead-filter", str(problem))
    for problem in missing_values(recipe, names):
        notes.error("missing-value", str(problem))


def check_values(recipe: MergeRecipe, plan: MergePlan, notes: Notebook) -> None:
    """Report weights that cancel out, DELLA probabilities outside (0, 1), missing statistics.

    Args:
        recipe: The recipe.
        plan: Its plan, which has the values of every tensor.
        notes: Receives the findings.
    """
    for method in recipe.methods:
        jobs = [job for job in plan.jobs if job.method == method.name]
        if method.name in ("linear", "multislerp", "nuslerp", "regmean", "fisher"):
            _check_division(method.name, [job for job in jobs if _is_undefined(job)], notes)
        elif method.parameter("normalize") is not None:
            _check_cancelling([job for job in jobs if _cancels(job)], notes)
        if method.statistics:
            _note_missing(method.name, [job for job in jobs if None in job.companions], plan, notes)
        if method.parameter("epsilon") and method.parameter("density"):
            _check_probabilities(jobs, notes)


def _weights(job: MergeJob) -> list[float]:
    return [float(values["weight"]) for values in job.models]


def _is_undefined(job: MergeJob) -> bool:
    flag = _NORMALIZED_BY.get(job.method)
    # One model is a copy of itself in multislerp, whatever its weight.
    if (flag and not job.values[flag]) or (job.method == "multislerp" and len(job.models) == 1):
        return False
    return math.fsum(_weights(job)) == 0


def _check_division(method: str, jobs: Sequence[MergeJob], notes: Notebook) -> None:
    if not jobs:
        return
    flag = _NORMALIZED_BY.get(method)
    ways = f", or set '{flag}: false'" if flag else ""
    notes.error(
        "weights-sum-to-zero",
        f"The weights of {_first(jobs)} are {_shown(_weights(jobs[0]))} and sum to zero, but "
        f"{method} divides by their sum. Change a weight{ways}.",
    )


def _cancels(job: MergeJob) -> bool:
    weights = _weights(job)
    return bool(job.values["normalize"]) and any(weights) and abs(math.fsum(weights)) < _ZERO


def _check_cancelling(jobs: Sequence[MergeJob], notes: Notebook) -> None:
    if jobs:
        notes.warning(
            "weights-cancel",
            f"The weights of {_first(jobs)} are {_shown(_weights(jobs[0]))} and sum to zero, so "
            "'normalize' has nothing to divide by where all models agree, and does not divide "
            "there. Write 'normalize: false' if differences are meant.",
        )


def _check_probabilities(jobs: Sequence[MergeJob], notes: Notebook) -> None:
    wrong: list[tuple[MergeJob, float, float]] = []
    for job in jobs:
        for values in job.models:
            density, epsilon = float(values["density"]), float(values["epsilon"])
            if 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
                wrong.append((job, density, epsilon))
                break
    if wrong:
        _, density, epsilon = wrong[0]
        notes.error(
            "keep-probability",
            f"density {density:g} ± epsilon {epsilon:g} of {_first([job for job, _, _ in wrong])} "
            "leaves (0, 1), and each element is kept with a probability in that range. Lower "
            "epsilon, or move the density towards 0.5.",
        )


def _note_missing(method: str, jobs: Sequence[MergeJob], plan: MergePlan, notes: Notebook) -> None:
    if jobs:
        notes.notice(
            "statistics",
            f"{len(jobs):,} of {len(plan.jobs):,} tensors have no statistics of every model, so "
            f"{method} takes their plain mean: {some([job.output for job in jobs])}.",
        )


def _first(jobs: Sequence[MergeJob]) -> str:
    more = len(jobs) - 1
    return f"'{jobs[0].output}'" + (f" and {more:,} more tensors" if more else "")


def _shown(weights: Sequence[float]) -> str:
    return ", ".join(f"{weight:g}" for weight in weights)

"""A merge that has been checked and planned, before any weight is read.

What a merge and a stage of a recipe have in common: a run writes it, a stage computes its tensors
for the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.source import TensorSource
from forge.core.errors import ForgeError, IncompatibleError
from forge.merge.check.preflight import check_merge
from forge.merge.plan import MergePlan
from forge.merge.vocabulary.planning import VocabularyPlan, plan_vocabulary, remap
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference


@dataclass(frozen=True, slots=True)
class Prepared:
    """A merge that has been checked and planned, before any weight is read."""

    recipe: MergeRecipe
    checkpoints: Mapping[ModelReference, Checkpoint]
    vocabulary: VocabularyPlan | None
    plan: MergePlan
    notices: tuple[str, ...]
    warnings: frozenset[str] = frozenset()  # those of the notices that are probably not meant


def prepare_opened(
    recipe: MergeRecipe, checkpoints: Mapping[ModelReference, Checkpoint], out: Path | None
) -> Prepared:
    """Check a recipe whose models are open already.

    Raises:
        IncompatibleError: The check found errors; the message lists all of them.
    """
    try:
        vocabulary = plan_vocabulary(recipe, checkpoints)
    except ForgeError:
        vocabulary = None  # The check meets the same error and reports it among all others.
    report = check_merge(recipe, checkpoints, out=out, vocabulary=vocabulary)
    if report.errors or report.plan is None:
        raise IncompatibleError("\n".join(finding.message for finding in report.errors))
    texts = [finding.message for finding in (*report.warnings, *report.notices)]
    if vocabulary is not None:
        vocabulary = vocabulary.without_documents()
    warnings = frozenset(finding.message for finding in report.warnings)
    notices = (*recipe.notices, *texts)
    return Prepared(recipe, checkpoints, vocabulary, report.plan, notices, warnings)


def sources_of(prepared: Prepared, folder: Path) -> Mapping[ModelReference, TensorSource]:
    """Return the tensors of every model, embeddings in the order of the result's vocabulary.

    Statistics come by the name of their folder.

    Args:
        prepared: The merge.
        folder: Where rearranged embeddings are put while they are read.
    """
    checkpoints = prepared.checkpoints
    sources: dict[ModelReference, TensorSource] = {
        ModelReference(checkpoint.statistics.label): checkpoint.statistics.source
        for checkpoint in checkpoints.values()
        if checkpoint.statistics is not None
    }
    sources |= {model: checkpoint.source for model, checkpoint in checkpoints.items()}
    if prepared.vocabulary is not None:
        sources |= remap(checkpoints, prepared.vocabulary, folder)
    return sources

"""Find everything that speaks against a merge before any weight is read.

Only headers and configurations are looked at, so a check of local models takes well under two
seconds. All problems are found together, like ones grouped into one finding, and a mistake of
the user is never an exception. Where nothing is wrong, the merge is planned as it would run:
a recipe that passes the check has a plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from forge.architectures.names import architecture_of
from forge.architectures.written import is_written
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.header import TensorInfo
from forge.checkpoints.source import TensorSource
from forge.core.enumeration import listed, some
from forge.core.errors import ForgeError, RecipeError
from forge.merge.alignment import AlignedSource
from forge.merge.check.configs import check_configs, check_same_models
from forge.merge.check.parts import note_parts
from forge.merge.check.report import CheckReport, Finding, ModelFacts, Notebook
from forge.merge.check.resources import check_resources
from forge.merge.check.result_tokens import check_result_tokens
from forge.merge.check.routers import note_routers
from forge.merge.check.sources import note_sources
from forge.merge.check.special_ids import check_special_ids
from forge.merge.check.stack import (
    Subject,
    leader,
    subject_of,
    vocabulary_models,
    written_tensors,
)
from forge.merge.check.tensors import check_tensors
from forge.merge.check.tokenizers import check_tokenizers, read_all_tokenizers
from forge.merge.check.values import check_filters, check_values
from forge.merge.plan import MergePlan
from forge.merge.planning import build_plan
from forge.merge.vocabulary.planning import RemappedSource, VocabularyPlan, plan_vocabulary, remap
from forge.merge.vocabulary.round_trip import Change
from forge.merge.vocabulary.tokens import Tokenizer
from forge.recipes.merge_types import MergeRecipe, OutputSlice
from forge.recipes.reference import ModelReference

__all__ = ["CheckReport", "Finding", "ModelFacts", "check_merge"]

_MAX_MISSING_LAYERS: Final = 10_000
"""Beyond it a number of layers is a stranger's invention, and must not size a loop."""


def check_merge(
    recipe: MergeRecipe,
    checkpoints: Mapping[ModelReference, Checkpoint],
    *,
    out: Path | None = None,
    vocabulary: VocabularyPlan | None = None,
) -> CheckReport:
    """Check a merge.

    Args:
        recipe: What to merge.
        checkpoints: Every model of ``recipe.references()``, and of ``recipe.tokenizer``.
        out: Folder that the result will be; free space is looked up there.
        vocabulary: The result's vocabulary when it has been planned already.

    Returns:
        All findings. Nothing is raised for a mistake of the user.
    """
    notes = Notebook()
    note_sources(checkpoints, notes, read=recipe.references())
    subjects = _subjects(recipe, checkpoints, notes)
    note_parts(subjects, leader(recipe), notes)
    slices = _slices(recipe, subjects, notes)
    tokenizers = table = None
    if slices is not None:
        tensors = written_tensors(recipe, slices, subjects)
        check_same_models(recipe, slices, subjects, notes)
        misfits = check_configs(recipe, slices, subjects, notes)
        check_tensors(recipe, slices, subjects, tensors, notes, misfits=misfits)
        note_routers(tensors, notes)
        speaking = vocabulary_models(recipe, slices)
        tokenizers = read_all_tokenizers(checkpoints, vocabulary, notes)
        if tokenizers is not None:
            table = check_tokenizers(recipe, speaking, subjects, checkpoints, tokenizers, notes)
        if misfits or notes.has("vocabulary-size"):
            # Ids that mean different tokens are a consequence; one sentence tells the cause.
            notes.withdraw("tokenizer")
        check_special_ids(recipe, speaking, checkpoints, notes)
        check_filters(recipe, tensors, notes)
    if recipe.tokenizer is not None and vocabulary is None and not notes.has_errors:
        vocabulary = _vocabulary(recipe, checkpoints, tokenizers, notes)
    if vocabulary is not None:
        for text in vocabulary.notices:
            notes.notice("vocabulary", text)
    texts: Mapping[str, tuple[Change, ...]] = {}
    if slices is not None and tokenizers is not None and not notes.has_errors:
        texts = check_result_tokens(recipe, speaking, checkpoints, tokenizers, vocabulary, notes)
    sources = _sources(checkpoints, vocabulary, notes)
    plan = _plan(recipe, checkpoints, sources, notes)
    if plan is not None:
        check_values(recipe, plan, notes)
        _note_left_out(subjects[leader(recipe)], plan, notes)
    scratch = 0 if plan is None else _scratch_bytes(plan, sources)
    needs = check_resources(recipe, checkpoints, plan, scratch, out, notes)
    return CheckReport(
        notes.sorted(),
        needs.input_bytes,
        needs.output_bytes,
        needs.memory_bytes,
        needs.free_disk_bytes,
        tuple(facts_of(checkpoint) for checkpoint in checkpoints.values()),
        plan,
        table,
        texts,
    )


def _subjects(
    recipe: MergeRecipe, checkpoints: Mapping[ModelReference, Checkpoint], notes: Notebook
) -> dict[ModelReference, Subject]:
    """Sort the tensors of every model that can be understood; report the others."""
    subjects: dict[ModelReference, Subject] = {}
    for model in recipe.references():
        checkpoint = checkpoints[model]
        try:
            architecture = architecture_of(
                checkpoint.config, tensor_names=checkpoint.source.names()
            )
            num_layers = architecture.num_layers(checkpoint.config)
        except ForgeError as error:
            notes.error("architecture", f"{model}: {error}")
            continue
        if architecture.notice is not None:
            notes.notice("architecture-inferred", f"{model}: {architecture.notice}")
        subject = subject_of(checkpoint, architecture, num_layers)
        if num_layers > len(subject.layers) + _MAX_MISSING_LAYERS:
            notes.error(
                "layers-missing",
                f"{model}: config.json states {num_layers:,} layers, but its files hold "
                f"{len(subject.layers)}. The checkpoint is incomplete, or its config.json is that "
                "of another model.",
            )
            continue
        subjects[model] = subject
    return subjects


def _slices(
    recipe: MergeRecipe, subjects: Mapping[ModelReference, Subject], notes: Notebook
) -> tuple[OutputSlice, ...] | None:
    models = recipe.references()
    if any(model not in subjects for model in models):
        return None
    kinds = {model: subjects[model].architecture.name for model in models}
    lead = leader(recipe)
    others = [model for model in models if kinds[model] != kinds[lead]]
    if others:
        listing = listed(f"{model} is a '{kinds[model]}' model" for model in others)
        notes.error(
            "architecture",
            f"{lead} is a '{kinds[lead]}' model but {listing}: one config.json cannot describe "
            "both, so merge models of one architecture.",
        )
        return None
    try:
        return recipe.effective_slices({model: subjects[model].num_layers for model in models})
    except RecipeError as error:
        for problem in error.problems:
            notes.error("layer-range", str(problem))
    except ForgeError as error:
        notes.error("layer-count", str(error))
    return None


def _vocabulary(
    recipe: MergeRecipe,
    checkpoints: Mapping[ModelReference, Checkpoint],
    tokenizers: Mapping[ModelReference, Tokenizer | None] | None,
    notes: Notebook,
) -> VocabularyPlan | None:
    try:
        return plan_vocabulary(recipe, checkpoints, known=tokenizers)
    except ForgeError as error:
        notes.error("vocabulary", str(error))
        return None


def _sources(
    checkpoints: Mapping[ModelReference, Checkpoint],
    vocabulary: VocabularyPlan | None,
    notes: Notebook,
) -> Mapping[ModelReference, TensorSource]:
    if vocabulary is None or notes.has_errors:
        return {}
    try:
        # Nothing is written to the folder before a tensor is read, and none is.
        return remap(checkpoints, vocabulary, Path())
    except ForgeError as error:
        notes.error("vocabulary", str(error))
        return {}


def _plan(
    recipe: MergeRecipe,
    checkpoints: Mapping[ModelReference, Checkpoint],
    sources: Mapping[ModelReference, TensorSource],
    notes: Notebook,
) -> MergePlan | None:
    """Plan the merge as it would run, unless it is known already that it cannot."""
    if notes.has_errors:
        return None
    try:
        return build_plan(recipe, checkpoints, sources)
    except ForgeError as error:
        notes.error("plan", str(error))
        return None


def _scratch_bytes(plan: MergePlan, sources: Mapping[ModelReference, TensorSource]) -> int:
    """Return the bytes of what will be rearranged while the merge runs."""
    read: dict[ModelReference, set[str]] = {}
    for item in (item for job in plan.jobs for item in job.inputs):
        read.setdefault(item.model, set()).add(item.name)
    return sum(
        source.scratch_bytes(read.get(model, ()))
        for model, source in sources.items()
        if isinstance(source, RemappedSource)
    )


def _note_left_out(lead: Subject, plan: MergePlan, notes: Notebook) -> None:
    written = {job.output for job in plan.jobs}
    names = [
        name
        for name in lead.checkpoint.source.names()
        if name not in written and not is_written(name, lead.architecture, tied=lead.tied)
    ]
    if names:
        notes.notice(
            "left-out",
            f"{lead.reference} holds {some(names)}, which loaders compute anew or ignore (a "
            "buffer, or the head of a model whose config.json ties it to the embedding). The "
            "result does not hold them.",
        )


def facts_of(checkpoint: Checkpoint) -> ModelFacts:
    """Return what a model is, from its headers and its configuration.

    Args:
        checkpoint: The model.
    """
    counts: dict[str, int] = {}
    infos = list(_infos(checkpoint.source))
    for info in infos:
        counts[info.dtype] = counts.get(info.dtype, 0) + info.numel
    kind = checkpoint.config.get("model_type")
    if isinstance(checkpoint.source, AlignedSource):
        kind = checkpoint.source.family
    num_layers = rows = None
    tied = False
    try:
        architecture = architecture_of(checkpoint.config, tensor_names=[i.name for i in infos])
        tied = architecture.is_tied(checkpoint.config)
        rows = next(
            (
                info.shape[0]
                for info in infos
                if info.name in architecture.embeddings and info.shape
            ),
            None,
        )
        num_layers = architecture.num_layers(checkpoint.config)
    except ForgeError:
        # Reported as a finding already; a fact that is not known is None.
        pass
    return ModelFacts(
        model=str(checkpoint.reference),
        revision=checkpoint.revision,
        architecture=kind if isinstance(kind, str) else None,
        dtypes=tuple(sorted(counts, key=lambda dtype: (-counts[dtype], dtype))),
        num_layers=num_layers,
        num_tensors=len(infos),
        num_parameters=sum(counts.values()),
        vocab_rows=rows,
        tied=tied,
    )


def _infos(source: TensorSource) -> Iterable[TensorInfo]:
    return (source.info(name) for name in source.names())

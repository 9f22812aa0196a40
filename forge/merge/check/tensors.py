"""Compare what the models' headers say about the tensors that will be merged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from forge.architectures.table import FURTHER_LAYERS
from forge.checkpoints.header import TensorInfo
from forge.core.dtypes import BY_TORCH_NAME, DTYPES
from forge.core.enumeration import listed, some
from forge.merge.check.report import Notebook
from forge.merge.check.stack import (
    Subject,
    WrittenTensor,
    contributors,
    is_result_tied,
    leader,
    vocabulary_models,
)
from forge.recipes.merge_types import MergeRecipe, OutputSlice
from forge.recipes.reference import ModelReference

_WITH_HEAD: Final = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")

Difference = tuple[ModelReference, TensorInfo, ModelReference, TensorInfo]
"""A model with its tensor, and another model with the tensor that should be alike."""


def check_tensors(
    recipe: MergeRecipe,
    slices: tuple[OutputSlice, ...],
    subjects: Mapping[ModelReference, Subject],
    tensors: Sequence[WrittenTensor],
    notes: Notebook,
    *,
    misfits: frozenset[ModelReference] = frozenset(),
) -> None:
    """Report tensors that are missing, misshapen, or of types that do not go together.

    Args:
        recipe: The recipe.
        slices: The runs of layers of the result.
        subjects: Every model.
        tensors: What will be written.
        notes: Receives the findings.
        misfits: Models whose configurations tell already that their tensors cannot fit.
    """
    for subject in subjects.values():
        _check_layers(subject, notes)
    _note_ties(recipe, slices, subjects, notes)
    for model in vocabulary_models(recipe, slices):
        _check_head(subjects[model], notes)
    _check_missing(tensors, subjects, misfits, notes)
    _check_shapes(recipe, subjects[leader(recipe)], tensors, misfits, notes)
    _check_types(recipe, tensors, notes)


def _gaps(subject: Subject) -> set[int]:
    return set(range(subject.num_layers)) - set(subject.layers)


def _check_layers(subject: Subject, notes: Notebook) -> None:
    """Compare the number of layers in config.json with the layers in the files."""
    gaps = sorted(_gaps(subject))
    extra = sorted(number for number in subject.layers if number >= subject.num_layers)
    prefix = next(iter(subject.architecture.layer_prefixes), "")
    if gaps and not subject.layers:
        notes.error(
            "layers-missing",
            f"{subject.reference} has no tensors named '{prefix}<number>.', as models of the "
            f"architecture '{subject.architecture.name}' have. Is its config.json that of "
            "another model?",
        )
    elif gaps:
        shown = ", ".join(str(number) for number in gaps[:3])
        more = f" and {len(gaps) - 3} more" if len(gaps) > 3 else ""
        notes.error(
            "layers-missing",
            f"{subject.reference}: config.json states {subject.num_layers} layers, but its files "
            f"hold no layer {shown}{more}. The checkpoint is incomplete, or its config.json is "
            "that of another model.",
        )
    if extra:
        notes.warning(
            "layers-extra",
            f"{subject.reference}: config.json states {subject.num_layers} layers, but its files "
            f"also hold layer {extra[0]}{' and others' if len(extra) > 1 else ''} (such layers "
            "predict further tokens, or are left over). They are not merged and not written"
            f"{_promise(subject)}.",
        )


def _promise(subject: Subject) -> str:
    if not subject.text_config.get(FURTHER_LAYERS):
        return ""
    return f", and {FURTHER_LAYERS} is written as 0 for a result made after {subject.reference}"


def _note_ties(
    recipe: MergeRecipe,
    slices: tuple[OutputSlice, ...],
    subjects: Mapping[ModelReference, Subject],
    notes: Notebook,
) -> None:
    """Say what becomes of the head where some models share it with the embedding."""
    models = vocabulary_models(recipe, slices)
    tied = [model for model in models if subjects[model].tied]
    untied = [model for model in models if not subjects[model].tied]
    lead, is_tied = models[0], is_result_tied(recipe, slices, subjects)
    first, last = contributors(recipe, slices[0]), contributors(recipe, slices[-1])
    ends = {*first, *last}
    if tied and untied and not is_tied and ends.intersection(tied):
        notes.notice(
            "tied-mismatch",
            f"{listed(tied)} {_verb(tied)} tied (the embedding is the head) but {listed(untied)} "
            f"{_verb(untied)} not, so the result is untied: its head is merged of the tied "
            "embedding and the other heads, and tie_word_embeddings is written as false.",
        )
    elif tied and untied:
        agreeing, word = (tied, "tied") if is_tied else (untied, "untied")
        notes.notice(
            "tied-mismatch",
            f"The result is {word}, as {listed(agreeing)} {_verb(agreeing)}, of which its "
            f"embedding and head are made: tie_word_embeddings is written as {_json(is_tied)}, "
            f"not as in the config.json of {lead}.",
        )
    elif is_tied and list(first) != list(last):
        notes.notice(
            "tied-stack",
            f"The result is tied, so its head is the embedding of {listed(first)}, not that of "
            f"{listed(last)}, whose layers come last.",
        )


def _json(flag: bool) -> str:
    return "true" if flag else "false"


def _verb(models: Sequence[ModelReference]) -> str:
    return "is" if len(models) == 1 else "are"


def _check_head(subject: Subject, notes: Notebook) -> None:
    classes = subject.checkpoint.config.get("architectures")
    names = [str(name) for name in classes] if isinstance(classes, list) else []
    expects_head = not names or any(name.endswith(_WITH_HEAD) for name in names)
    if subject.tied or not expects_head or subject.architecture.notice is not None:
        # What a family that is not in the table calls its head is not known.
        return
    if not any(name in subject.others for name in subject.architecture.heads):
        notes.error(
            "head-missing",
            f"{subject.reference} has no '{subject.architecture.heads[0]}', and its config.json "
            "does not tie the head to the embedding (tie_word_embeddings). A loader would make up "
            "a random head. Repair its config.json or its weights.",
        )


def _check_missing(
    tensors: Sequence[WrittenTensor],
    subjects: Mapping[ModelReference, Subject],
    misfits: frozenset[ModelReference],
    notes: Notebook,
) -> None:
    gaps = {model: _gaps(subject) for model, subject in subjects.items()}
    lacking: dict[tuple[ModelReference, ModelReference], list[str]] = {}
    for tensor in tensors:
        for model, name in tensor.missing:
            # Of a layer that is missing altogether, the layer was reported.
            if misfits & {model, tensor.inputs[0][0]}:
                continue
            if subjects[model].architecture.layer_of(name) not in gaps[model]:
                holder = tensor.inputs[0][0]
                lacking.setdefault((model, holder), []).append(name)
    for (model, holder), names in lacking.items():
        count = "a tensor" if len(names) == 1 else f"{len(names):,} tensors"
        notes.error(
            "tensors-missing",
            f"{model} lacks {count} that {holder} has: {some(names)}. "
            f"{_hint(names, subjects[model])}",
        )


def _hint(names: Sequence[str], subject: Subject) -> str:
    own = [*subject.others, *(name for layer in subject.layers.values() for name in layer)]
    # One example tells; all of thousands of names against all others would take minutes.
    for name in names[:3]:
        for other in own:
            long, short = (name, other) if len(name) > len(other) else (other, name)
            if long != short and long.endswith(f".{short}"):
                return (
                    f"It calls that tensor '{other}': one of the two was saved with an outer "
                    "module. Load and save it with transformers to bring the names in line."
                )
    return "Merge models of one architecture, or restrict 'slices' to layers that both have."


def _check_shapes(
    recipe: MergeRecipe,
    lead: Subject,
    tensors: Sequence[WrittenTensor],
    misfits: frozenset[ModelReference],
    notes: Notebook,
) -> None:
    shapes: dict[tuple[ModelReference, ModelReference], list[Difference]] = {}
    rows: dict[tuple[ModelReference, ModelReference], list[Difference]] = {}
    for tensor in tensors:
        first, info = tensor.inputs[0]
        has_rows = lead.architecture.vocabulary_axis(tensor.name) == 0 and info.shape != ()
        for model, other in tensor.inputs[1:]:
            if other.shape == info.shape or misfits & {first, model}:
                continue
            found = (first, info, model, other)
            if (
                has_rows
                and other.shape[1:] == info.shape[1:]
                and len(other.shape) == len(info.shape)
            ):
                rows.setdefault((first, model), []).append(found)
            else:
                shapes.setdefault((first, model), []).append(found)
    for differences in shapes.values():
        first, info, model, other = differences[0]
        more = len(differences) - 1
        also = f", and {more:,} more tensors differ" if more > 1 else ""
        also = ", and one more tensor differs" if more == 1 else also
        notes.error(
            "shapes",
            f"'{info.name}' is {list(info.shape)} in {first} but {_named(info, other)}"
            f"{list(other.shape)} in {model}{also}. Merge models of one architecture, or restrict "
            "'slices'.",
        )
    if recipe.tokenizer is not None:
        return
    for differences in rows.values():
        first, info, model, other = differences[0]
        notes.error(
            "vocabulary-size",
            f"'{info.name}' has {info.shape[0]:,} rows in {first} but {other.shape[0]:,} in "
            f"{model}: their vocabularies differ in size. Add 'tokenizer: {{source: base}}' to "
            f"keep the tokens of {first} alone, or 'tokenizer: {{source: union}}' to keep those "
            "of all.",
        )


def _named(info: TensorInfo, other: TensorInfo) -> str:
    return "" if info.name == other.name else f"'{other.name}' "


def _check_types(recipe: MergeRecipe, tensors: Sequence[WrittenTensor], notes: Notebook) -> None:
    whole: list[str] = []
    unlike: list[str] = []
    unknown: list[str] = []
    types: defaultdict[ModelReference, set[str]] = defaultdict(set)
    for tensor in tensors:
        kinds = {info.dtype for _, info in tensor.inputs}
        floats = {DTYPES[kind].is_float for kind in kinds}
        if floats == {False}:
            (whole if len(kinds) == 1 else unlike).append(tensor.inputs[0][1].name)
        elif floats != {True}:
            unlike.append(tensor.inputs[0][1].name)
        elif not all(DTYPES[kind].mergeable for kind in kinds):
            unknown.append(tensor.inputs[0][1].name)
        else:
            for model, info in tensor.inputs:
                types[model].add(info.dtype)
    if unlike:
        notes.error(
            "types",
            f"{some(unlike)} hold whole numbers in one model and another type in another. Whole "
            "numbers cannot be merged; merge models of one architecture.",
        )
    if unknown:
        notes.error(
            "types",
            f"{some(unknown)} are stored in a type that forge does not compute with. Convert the "
            "model to bfloat16 first.",
        )
    if whole:
        notes.notice(
            "whole-numbers",
            f"{some(whole)} hold whole numbers. They are copied, and must be the same in all "
            "models.",
        )
    _note_precision(recipe, types, notes)


def _note_precision(
    recipe: MergeRecipe, types: Mapping[ModelReference, set[str]], notes: Notebook
) -> None:
    kinds = set().union(*types.values())
    if not kinds:
        return
    if len(kinds) > 1:
        listing = listed(f"{model} is {' and '.join(sorted(own))}" for model, own in types.items())
        wide = "float64" if "F64" in kinds else "float32"
        notes.notice(
            "mixed-types",
            f"The models are stored in different types: {listing}. The arithmetic is done in "
            f"{wide}, and the result is rounded once.",
        )
    target = recipe.out_dtype or recipe.dtype
    if target is None or BY_TORCH_NAME[target].name not in ("BF16", "F16"):
        return
    wide_kinds = sorted(kinds & {"F32", "F64"})
    if wide_kinds:
        notes.notice(
            "narrowed",
            f"The sources hold {' and '.join(wide_kinds)}, and the result is written as {target}, "
            "which keeps fewer digits. Write 'out_dtype: float32' to keep them.",
        )
    if target == "float16" and kinds - {"F16"}:
        notes.notice(
            "narrowed",
            "The result is written as float16, which ends at 65504; a larger value stops the "
            "merge. Write 'out_dtype: bfloat16' if that happens.",
        )

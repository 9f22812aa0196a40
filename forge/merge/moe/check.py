"""Find everything that speaks against a mixture of experts before any weight is read.

The result is a frame, which is the base without its MLPs, and the MLPs of the experts. So of an
expert only its MLPs must fit: their widths, their number and their activation function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from forge.architectures.experts import (
    EXPERT_FAMILIES,
    MATRICES,
    ExpertFamily,
    expert_family_of,
)
from forge.architectures.names import architecture_of
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.companions import read_tokenizer_files
from forge.checkpoints.sidecars import layer_entries
from forge.core.dtypes import DTYPES
from forge.core.enumeration import some
from forge.core.errors import ForgeError
from forge.merge.check.report import Notebook
from forge.merge.check.sources import note_sources
from forge.merge.check.stack import Subject, subject_of
from forge.recipes.moe_types import ExpertEntry, MoeRecipe
from forge.recipes.reference import ModelReference

_MOST_LAYERS: Final = 10_000
"""Beyond it a number of layers is a stranger's invention, and must not size a loop."""
_TORCH_BYTES: Final = 260_000_000
"""Interpreter, torch and transformers, before any work."""
_VOCABULARIES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


@dataclass(frozen=True, slots=True)
class Frame:
    """What is known of a mixture whose models fit together.

    Attributes:
        family: What it will be.
        subjects: All models.
        num_layers: Its layers.
        hidden_size: Width of its states.
        expert_size: Width of an expert.
        shared_size: Width of the shared expert, or ``None`` where there is none.
    """

    family: ExpertFamily
    subjects: Mapping[ModelReference, Subject]
    num_layers: int
    hidden_size: int
    expert_size: int
    shared_size: int | None


def check_models(
    recipe: MoeRecipe, checkpoints: Mapping[ModelReference, Checkpoint], notes: Notebook
) -> Frame | None:
    """Check the models of a mixture.

    Args:
        recipe: What to build.
        checkpoints: Every model of ``recipe.references()``.
        notes: Receives the findings.

    Returns:
        The frame, or ``None`` when there is an error.
    """
    note_sources(checkpoints, notes, read=recipe.references())
    family = _family(recipe, checkpoints[recipe.base_model], notes)
    if family is None:
        return None
    subjects = _subjects(recipe, checkpoints, family, notes)
    if notes.has_errors:
        return None
    base = subjects[recipe.base_model]
    hidden_size = _check_base(base, family, notes)
    _check_shared_count(recipe, family, notes)
    sizes = {
        entry.source_model: _check_expert(subjects[entry.source_model], base, hidden_size, notes)
        for entry in (*recipe.experts, *recipe.shared_experts)
    }
    expert_size = sizes[recipe.experts[0].source_model]
    _check_one_size(recipe.experts, sizes, notes)
    _check_tokenizer(recipe, checkpoints[recipe.base_model], notes)
    _note_routers(recipe, family, notes)
    if notes.has_errors or hidden_size is None or expert_size is None:
        return None
    shared = [sizes[entry.source_model] for entry in recipe.shared_experts]
    return Frame(
        family, subjects, base.num_layers, hidden_size, expert_size, shared[0] if shared else None
    )


def reading_bytes(recipe: MoeRecipe, frame: Frame) -> int:
    """Estimate the memory that reading the prompts needs: one block of the base, in float32.

    Args:
        recipe: What to build.
        frame: Its models.

    Returns:
        Bytes; 0 where no model is run.
    """
    if recipe.gate_mode != "hidden":
        return 0
    layers = frame.subjects[recipe.base_model].layers.values()
    largest = max(sum(info.numel for info in layer.values()) for layer in layers)
    return _TORCH_BYTES + 4 * largest


def _family(recipe: MoeRecipe, base: Checkpoint, notes: Notebook) -> ExpertFamily | None:
    kind = base.config.get("model_type")
    family = expert_family_of(kind)
    if family is None:
        listing = ", ".join(f"{row.name} of {' or '.join(row.dense)}" for row in EXPERT_FAMILIES)
        is_mixture = any(kind == row.name for row in EXPERT_FAMILIES)
        why = (
            "is a mixture of experts already" if is_mixture else "has no mixture that forge builds"
        )
        notes.error(
            "family",
            f"{recipe.base_model} is a '{kind}' model, which {why}; it builds {listing}, so name a "
            "dense base of one of those.",
        )
        return None
    if recipe.architecture not in (None, family.name):
        notes.error(
            "family",
            f"'architecture: {recipe.architecture}' cannot be built of {recipe.base_model}, a "
            f"'{kind}' model: write 'architecture: {family.name}', or remove the key.",
        )
        return None
    return family


def _subjects(
    recipe: MoeRecipe,
    checkpoints: Mapping[ModelReference, Checkpoint],
    family: ExpertFamily,
    notes: Notebook,
) -> dict[ModelReference, Subject]:
    """Sort the tensors of every model that can be used; report the others."""
    subjects: dict[ModelReference, Subject] = {}
    for model in recipe.references():
        checkpoint = checkpoints[model]
        kind = checkpoint.config.get("model_type")
        if kind not in family.dense:
            notes.error(
                "expert-family",
                f"{model} is a '{kind}' model, but experts of a {family.name} are "
                f"{' or '.join(family.dense)} models: name a dense model of the base's kind.",
            )
            continue
        try:
            architecture = architecture_of(
                checkpoint.config, tensor_names=checkpoint.source.names()
            )
            num_layers = architecture.num_layers(checkpoint.config)
        except ForgeError as error:
            notes.error("architecture", f"{model}: {error}")
            continue
        subject = subject_of(checkpoint, architecture, num_layers)
        if num_layers > _MOST_LAYERS or set(range(num_layers)) - set(subject.layers):
            notes.error(
                "layers-missing",
                f"{model}: config.json states {num_layers:,} layers, but its files hold "
                f"{len(subject.layers)}. The checkpoint is incomplete, or its config.json is that "
                "of another model.",
            )
            continue
        subjects[model] = subject
    return subjects


def _check_base(base: Subject, family: ExpertFamily, notes: Notebook) -> int | None:
    """Compare a base's layers with what the family takes over; return the hidden size."""
    prefix = f"{base.architecture.layer_prefixes[0]}0."
    lacking, strange = [], []
    for number in range(base.num_layers):
        held = {name.removeprefix(prefix) for name in base.layers[number]}
        at = f"{base.architecture.layer_prefixes[0]}{number}."
        lacking += [f"{at}{name}" for name in family.attention if name not in held]
        strange += [
            f"{at}{name}"
            for name in sorted(held)
            if name not in family.attention and not name.startswith("mlp.")
        ]
    if lacking:
        notes.error(
            "tensors-missing",
            f"{base.reference} lacks {some(lacking)}, which a {family.name} layer needs.",
        )
    if strange:
        notes.error(
            "tensors-left",
            f"{base.reference} has {some(strange)}, for which a {family.name} layer has no place; "
            "without them it would be another model.",
        )
    _check_windows(base, family, notes)
    norm = base.layers[0].get(f"{prefix}{family.attention[0]}")
    return norm.shape[0] if norm is not None and len(norm.shape) == 1 else None


def _check_windows(base: Subject, family: ExpertFamily, notes: Notebook) -> None:
    """Refuse kinds of layers that the family's config cannot tell apart."""
    try:
        kinds = set(attention_kinds(base))
    except ForgeError as error:
        notes.error("layer-lists", str(error))
        return
    if "layer_types" in family.dropped and len(kinds) > 1:
        notes.error(
            "layer-lists",
            f"{base.reference} has layers of several kinds ({', '.join(sorted(kinds))}), and the "
            f"config.json of a {family.name} model has one for all layers.",
        )


def attention_kinds(subject: Subject) -> list[str]:
    """Return the kind of attention of each layer of a dense model, as its loader finds it.

    Args:
        subject: The model.
    """
    entries = layer_entries(
        subject.architecture, subject.checkpoint.config, label=str(subject.reference)
    )
    return [str(entry.get("layer_types", "full_attention")) for entry in entries]


def _check_shared_count(recipe: MoeRecipe, family: ExpertFamily, notes: Notebook) -> None:
    count = len(recipe.shared_experts)
    if family.shared is None and count:
        notes.error(
            "shared-experts",
            f"A {family.name} has no shared expert, but {count} {'is' if count == 1 else 'are'} "
            "listed: remove 'shared_experts'.",
        )
    elif family.shared is not None and count != 1:
        notes.error(
            "shared-experts",
            f"A {family.name} has exactly one shared expert, but {count} are listed: write one "
            "'- source_model: ...' under 'shared_experts', say the base with residual_scale 0.1.",
        )


def _check_expert(
    expert: Subject, base: Subject, hidden_size: int | None, notes: Notebook
) -> int | None:
    """Compare an expert's MLPs with the base; return their width."""
    if expert.num_layers != base.num_layers:
        notes.error(
            "layer-count",
            f"{expert.reference} has {expert.num_layers} layers but the base {base.reference} has "
            f"{base.num_layers}: an expert gives one MLP to each layer, so name one of as many.",
        )
        return None
    prefix = expert.architecture.layer_prefixes[0]
    lacking, strange, unreadable = [], [], []
    shapes: dict[tuple[int, ...], str] = {}
    for number in range(expert.num_layers):
        held = expert.layers[number]
        for matrix in MATRICES:
            info = held.get(f"{prefix}0.mlp.{matrix}.weight")
            if info is None:
                lacking.append(f"{prefix}{number}.mlp.{matrix}.weight")
                continue
            if not DTYPES[info.dtype].mergeable:
                unreadable.append(info.name)
            # The last matrix leads back, so its axes are the other way round.
            shapes.setdefault(info.shape[::-1] if matrix == MATRICES[2] else info.shape, info.name)
        strange += [info.name for name, info in held.items() if ".mlp." in name and "bias" in name]
    if lacking:
        notes.error(
            "tensors-missing", f"{expert.reference} lacks {some(lacking)}, so it is no expert."
        )
    if strange:
        notes.error(
            "tensors-left",
            f"{expert.reference} has {some(strange)}, for which an expert has no place; without "
            "them it would be another model.",
        )
    if unreadable:
        notes.error(
            "types", f"{some(unreadable)} of {expert.reference} are of a type forge cannot write."
        )
    _check_activation(expert, base, notes)
    _note_vocabulary(expert, base, notes)
    if lacking or not shapes:
        return None
    if len(shapes) > 1:
        (one, first), (two, second) = list(shapes.items())[:2]
        notes.error(
            "shapes",
            f"The MLPs of {expert.reference} are not of one size ('{first}' is {list(one)}, "
            f"'{second}' {list(two)}), and experts must be.",
        )
        return None
    width, inner = next(iter(shapes)) if len(next(iter(shapes))) == 2 else (0, 0)
    if hidden_size is not None and inner != hidden_size:
        notes.error(
            "shapes",
            f"{expert.reference} has a hidden size of {inner:,} but the base {base.reference} of "
            f"{hidden_size:,}: experts read the base's states, so name one of the same size.",
        )
        return None
    return width


def _check_activation(expert: Subject, base: Subject, notes: Notebook) -> None:
    ours, theirs = (
        subject.text_config.get("hidden_act", "silu") for subject in (base, expert)
    )  # fmt: skip
    if ours != theirs:
        notes.error(
            "activation",
            f"hidden_act is {theirs} in {expert.reference} but {ours} in the base "
            f"{base.reference}: an expert does not work with another activation function.",
        )


def _note_vocabulary(expert: Subject, base: Subject, notes: Notebook) -> None:
    ours, theirs = base.vocab_rows, expert.vocab_rows
    if ours != theirs and None not in (ours, theirs):
        notes.notice(
            "vocabulary-size",
            f"{expert.reference} knows {theirs:,} tokens and the base {ours:,}; only its MLPs "
            "enter, so the result has the base's tokens, and what it learned about others is lost.",
        )


def _check_one_size(
    experts: Sequence[ExpertEntry],
    sizes: Mapping[ModelReference, int | None],
    notes: Notebook,
) -> None:
    first = experts[0].source_model
    for entry in experts[1:]:
        ours, theirs = sizes[first], sizes[entry.source_model]
        if ours is not None and theirs is not None and ours != theirs:
            notes.error(
                "shapes",
                f"{entry.source_model} has MLPs of width {theirs:,} but {first} of {ours:,}: "
                "experts of one mixture must be of one size.",
            )
    seen = {entry.source_model for entry in experts}
    if len(seen) < len(experts):
        notes.notice(
            "same-model",
            "A model is listed as several experts, which differ by their prompts alone.",
        )


def _check_tokenizer(recipe: MoeRecipe, base: Checkpoint, notes: Notebook) -> None:
    """Look for the files of a tokenizer, which turns prompts into what the base reads."""
    files = read_tokenizer_files(base.tokenizer_root)
    if recipe.gate_mode != "random" and not any(name in files for name in _VOCABULARIES):
        notes.error(
            "tokenizer-missing",
            f"{base.reference} has no tokenizer, so it cannot read prompts. Copy its tokenizer "
            "files into the folder, or write 'gate_mode: random'.",
        )


def _note_routers(recipe: MoeRecipe, family: ExpertFamily, notes: Notebook) -> None:
    if recipe.gate_mode == "random":
        notes.warning(
            "random-routers",
            "The routers are random, so tokens go to experts by chance until they are trained.",
        )
    for entry in recipe.shared_experts:
        if family.shared is not None and (
            not entry.positive_prompts or recipe.gate_mode == "random"
        ):
            notes.notice(
                "shared-gate",
                f"The gate of the shared expert {entry.source_model} is zero, so it counts half "
                "everywhere (its sigmoid is 0.5).",
            )

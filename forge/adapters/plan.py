"""What of two models an adapter can hold: by low rank, whole, or not at all.

PEFT puts factors on linear layers. Everything else that a fine-tune changed (norms, positions,
routers of a kind of its own) fits into an adapter only as a whole module, ``modules_to_save``, and
biases as they are. Embedding and head are a choice, because they are large and because a tied pair
can be held whole alone. What fits nowhere is counted as lost and named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from forge.adapters.delta import Side
from forge.architectures.names import architecture_of
from forge.architectures.table import Architecture
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.lora.vocabulary import CONV1D_FAMILIES, Vocabulary, vocabulary_of
from forge.core.catalog import did_you_mean
from forge.core.dtypes import DTYPES
from forge.core.errors import IncompatibleError

Embeddings = Literal["skip", "full", "lora"]
Fate = Literal["factors", "whole", "bias", "lost"]

PREFIX: Final = "base_model.model."
EXPERTS: Final = ".experts."
_MLP: Final = ".mlp."
_LOADABLE_EXPERTS: Final = frozenset({"mixtral"})


@dataclass(frozen=True, slots=True)
class Changed:
    """A tensor that the fine-tune changed.

    Attributes:
        name: In the base's files.
        tuned: The fine-tune's tensor.
        base: The base's.
        energy: Sum of the squares of the difference; not a number when the shapes differ.
        fate: What becomes of the difference.
        module: The module as transformers has it.
        leaf: What the tensor is to its module: ``weight`` or ``bias``.
        transposed: Whether the tensor is stored ``[in, out]``.
        is_embedding: Whether its factors are an embedding's.
        by_parameter: Whether PEFT must be told of the weight instead of its module.
    """

    name: str
    tuned: Side
    base: Side
    energy: float
    fate: Fate
    module: str
    leaf: str
    transposed: bool
    is_embedding: bool
    by_parameter: bool

    @property
    def target(self) -> str:
        """What PEFT is told to put factors on."""
        return f"{self.module}.weight" if self.by_parameter else self.module

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the fine-tune's tensor."""
        return self.tuned.source.info(self.tuned.name).shape

    @property
    def side(self) -> int:
        """The largest rank that the difference can have."""
        return min(self.shape)


@dataclass(frozen=True, slots=True)
class Pairing:
    """Two models whose tensors correspond.

    Attributes:
        architecture: Their family.
        vocabulary: The base's embedding and head.
        pairs: The fine-tune's and the base's tensor, by the base's name.
        unties: Whether the fine-tune has a head of its own, and the base has not.
        rows: Tokens of the fine-tune where the base has another number, else ``None``.
    """

    architecture: Architecture
    vocabulary: Vocabulary
    pairs: Mapping[str, tuple[Side, Side]]
    unties: bool
    rows: int | None

    @property
    def has_foreign_experts(self) -> bool:
        """Whether it has experts whose factors PEFT does not load from files of single experts."""
        return self.architecture.name not in _LOADABLE_EXPERTS and any(
            EXPERTS in name for name in self.pairs
        )

    @property
    def shares_embedding(self) -> bool:
        """Whether both models tie their heads to their embeddings."""
        return self.vocabulary.tied and not self.unties


def pair_up(tuned: Checkpoint, base: Checkpoint, *, embeddings: Embeddings) -> Pairing:
    """Match the tensors of two models.

    Args:
        tuned: The fine-tune.
        base: Its base.
        embeddings: What is asked of embedding and head.

    Returns:
        The pairs.

    Raises:
        IncompatibleError: The two are not a model and a fine-tune of it.
    """
    labels = f"'{tuned.reference}' and '{base.reference}'"
    kinds = [str(checkpoint.config.get("model_type")) for checkpoint in (tuned, base)]
    if kinds[0] != kinds[1]:
        raise IncompatibleError(
            f"{labels} are of different architectures, {kinds[0]} and {kinds[1]}, so the one is "
            "not a fine-tune of the other. Name its own base."
        )
    names = [checkpoint.source.names() for checkpoint in (tuned, base)]
    architecture = architecture_of(base.config, tensor_names=names[1])
    vocabularies = [vocabulary_of(one.source, one.config) for one in (tuned, base)]
    theirs = {name: name for name in names[0]}
    ours = dict.fromkeys(names[1])
    _share_heads(vocabularies, theirs, ours)
    unties = vocabularies[1].tied and not vocabularies[0].tied
    for name in ours:
        if name not in theirs:
            raise IncompatibleError(
                f"'{name}' of '{base.reference}' is not in '{tuned.reference}'."
                f"{did_you_mean(name, theirs)} Is that its base?"
            )
    extra = [name for name in theirs if name not in ours]
    if extra:
        raise IncompatibleError(
            f"'{extra[0]}' of '{tuned.reference}' is not in '{base.reference}'."
            f"{did_you_mean(extra[0], ours)} Is that its base?"
        )
    head, embedding = vocabularies[1].head, vocabularies[1].embedding
    pairs = {}
    for name in ours:
        origin = embedding if name == head and vocabularies[1].tied and embedding else name
        pairs[name] = (Side(tuned.source, theirs[name]), Side(base.source, origin))
    rows = _check_shapes(pairs, vocabularies[1], labels, embeddings=embeddings)
    return Pairing(architecture, vocabularies[1], pairs, unties, rows)


def _share_heads(
    vocabularies: Sequence[Vocabulary], theirs: dict[str, str], ours: dict[str, None]
) -> None:
    """Give both a head if one has its own; a tied head is the embedding."""
    tuned, base = vocabularies
    if tuned.tied and base.tied:
        for vocabulary in vocabularies:
            if vocabulary.head is not None:
                theirs.pop(vocabulary.head, None)
                ours.pop(vocabulary.head, None)
    elif tuned.tied and base.head is not None and tuned.embedding is not None:
        theirs[base.head] = tuned.embedding
    elif base.tied and base.head is not None:
        ours[base.head] = None


def _check_shapes(
    pairs: Mapping[str, tuple[Side, Side]],
    vocabulary: Vocabulary,
    labels: str,
    *,
    embeddings: Embeddings,
) -> int | None:
    rows = None
    for name, (tuned, base) in pairs.items():
        mine, its = tuned.source.info(tuned.name), base.source.info(base.name)
        are_floats = DTYPES[mine.dtype].mergeable and DTYPES[its.dtype].mergeable
        if mine.shape == its.shape and (are_floats or mine.dtype == its.dtype):
            continue
        is_vocabulary = name in vocabulary.names and mine.shape[1:] == its.shape[1:]
        if not (are_floats and is_vocabulary):
            raise IncompatibleError(
                f"'{name}' is {mine.dtype} {list(mine.shape)} and {its.dtype} {list(its.shape)} "
                f"in {labels}. Name the base of the fine-tune, in full precision."
            )
        if embeddings != "full":
            raise IncompatibleError(
                f"{labels} have {mine.shape[0]:,} and {its.shape[0]:,} tokens. Factors cannot "
                "add tokens; pass --embeddings full to hold embedding and head whole."
            )
        rows = mine.shape[0]
    return rows


def sort_changes(
    pairing: Pairing,
    energies: Mapping[str, float],
    config: Mapping[str, object],
    *,
    embeddings: Embeddings,
) -> tuple[Changed, ...]:
    """Say what becomes of each difference.

    Args:
        pairing: The models.
        energies: Sums of squares of the tensors that differ.
        config: The base's ``config.json``.
        embeddings: What to do with embedding and head.

    Returns:
        The tensors that differ, in the base's order.

    Raises:
        IncompatibleError: Factors of a tied embedding are asked for.
    """
    vocabulary = pairing.vocabulary
    if embeddings == "lora" and vocabulary.tied and any(n in energies for n in vocabulary.names):
        raise IncompatibleError(
            "The base ties its head to its embedding, and factors on one of a tied pair change "
            "both when they are merged. Pass --embeddings full or skip."
        )
    changes = []
    for name in pairing.pairs:
        if name not in energies:
            continue
        tuned, base = pairing.pairs[name]
        module, _, leaf = name.rpartition(".")
        is_layer = pairing.architecture.layer_of(name) is not None
        fate = _fate(pairing, name, embeddings=embeddings)
        changes.append(
            Changed(
                name, tuned, base, energies[name], fate, in_memory(pairing.architecture, module),
                leaf,
                transposed=is_layer and config.get("model_type") in CONV1D_FAMILIES,
                is_embedding=name == vocabulary.embedding,
                by_parameter=pairing.has_foreign_experts and _MLP in name,
            )
        )  # fmt: skip
    return tuple(changes)


def _fate(pairing: Pairing, name: str, *, embeddings: Embeddings) -> Fate:
    shape = pairing.pairs[name][1].source.info(pairing.pairs[name][1].name).shape
    leaf = name.rpartition(".")[2]
    is_layer = pairing.architecture.layer_of(name) is not None
    if pairing.has_foreign_experts and _MLP in name:
        # PEFT takes the name of any module here for that of experts, but not the name of a weight.
        is_held = leaf == "weight" and len(shape) == 2 and EXPERTS not in name
        return "factors" if is_held else "lost"
    if name in pairing.vocabulary.names:
        fates: dict[Embeddings, Fate] = {"skip": "lost", "full": "whole", "lora": "factors"}
        return fates[embeddings]
    if leaf == "weight" and len(shape) == 2 and is_layer:
        return "factors"
    if leaf == "bias" and _is_linear(pairing, f"{name[: -len('bias')]}weight"):
        return "bias"
    return "whole" if leaf in ("weight", "bias") and len(shape) <= 2 else "lost"


def _is_linear(pairing: Pairing, weight: str) -> bool:
    if weight not in pairing.pairs:
        return False
    side = pairing.pairs[weight][1]
    return len(side.source.info(side.name).shape) == 2


def in_memory(architecture: Architecture, module: str) -> str:
    """Return a module's name as transformers has it.

    Args:
        architecture: The model's family.
        module: Its name in the files, where an outer part may be missing.
    """
    first, *others = architecture.layer_prefixes
    outer = next((first.removesuffix(other) for other in others if first.endswith(other)), "")
    is_head = f"{module}.weight" in architecture.heads
    return module if is_head or module.startswith(outer) else outer + module


def kept_share(changes: Sequence[Changed], kept: Mapping[str, float]) -> tuple[float, float]:
    """Return the energy of all differences, and the share that an adapter keeps of it.

    Args:
        changes: What differs; tensors of other shapes are left out of both.
        kept: Shares of the tensors that are held by factors.
    """
    total = found = 0.0
    for change in changes:
        if math.isnan(change.energy):
            continue
        total += change.energy
        if change.fate == "factors":
            found += change.energy * kept[change.name]
        elif change.fate != "lost":
            found += change.energy
    return total, found / total if total else 1.0

"""Place the tensors that an adapter holds whole: saved modules, biases, resized embeddings.

They come before everything else, because they can change how many tokens there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from forge.checkpoints.lora.fitting import Fitting
from forge.checkpoints.lora.names import Part
from forge.checkpoints.lora.source import Plan
from forge.core.dtypes import DTYPES


def add_whole(fit: Fitting, whole: dict[str, Part], part: Part) -> None:
    """Keep one of the copies that PEFT writes of a module that is trained and resized.

    Args:
        fit: The model and the adapter.
        whole: Whole tensors by the tensor that they stand for; receives the part.
        part: A whole tensor.

    Raises:
        CheckpointError: There are two that are no copies of each other.
    """
    former = whole.get(part.place)
    if former is None:
        whole[part.place] = part
        return
    copies = [one for one in (former, part) if ".modules_to_save." in one.name]
    if len(copies) != 1 or any(".base_layer." in one.name for one in (former, part)):
        fit.fail(f"holds '{part.place}' twice, as '{former.name}' and '{part.name}'")
    whole[part.place] = former if copies == [part] else part


def place_whole(fit: Fitting, whole: Mapping[str, Part]) -> None:
    """Plan to read whole tensors from the adapter instead of the model.

    Args:
        fit: The model and the adapter; receives the plans.
        whole: What the adapter holds whole, by the tensor that it stands for.

    Raises:
        CheckpointError: One is of another shape, or stands for nothing in the model.
    """
    embedding, head = fit.vocabulary.embedding, fit.vocabulary.head
    placed: dict[str, Part] = {}
    for place, part in whole.items():
        target = fit.find(place)
        if target in placed:
            fit.fail(f"changes '{target}' twice, by '{part.name}'")
        placed[target] = part
    both = [placed[name] for name in (embedding, head) if name is not None and name in placed]
    if fit.vocabulary.tied and embedding is not None and head is not None and both:
        _untie_or_share(fit, placed, both)
    for target, part in placed.items():
        origin = target if target in fit.known and not fit.is_tied(target) else embedding
        if origin is None:
            fit.fail(f"holds '{part.name}', and '{fit.base.label}' has no embedding to fit it to")
        _replace(fit, target, part.name, origin)
    _check_rows(fit)


def _untie_or_share(fit: Fitting, placed: dict[str, Part], both: list[Part]) -> None:
    embedding, head = fit.vocabulary.embedding, fit.vocabulary.head
    assert embedding is not None
    assert head is not None
    modules = [part.place.rpartition(".")[0] for part in both]
    if any(map(fit.config.is_saved_whole, modules)) and not fit.config.keeps_tie:
        fit.untied = True
        fit.notices.append(
            f"The adapter '{fit.adapter.label}' trains {' and '.join(modules)} whole, so "
            "embedding and head are tied no longer; PEFT's merge does the same."
        )
        if head not in placed:
            info = dataclasses.replace(fit.base.info(embedding), name=head)
            fit.plans[head] = Plan(info, embedding)
        return
    if len(both) == 2 and fit.read(both[0].name) != fit.read(both[1].name):
        fit.fail(
            f"holds '{both[0].name}' and '{both[1].name}' with different values, but the model "
            "ties the two. Untie the model first"
        )
    placed.pop(head, None)
    placed[embedding] = both[0]


def _replace(fit: Fitting, target: str, name: str, origin: str) -> None:
    base, own = fit.base.info(origin), fit.adapter.info(name)
    fit.check_float(base, own)
    is_vocabulary = target in fit.vocabulary.names and len(base.shape) == 2
    if own.shape != base.shape and not (
        is_vocabulary and len(own.shape) == 2 and own.shape[1] == base.shape[1]
    ):
        fit.fail(
            f"holds '{name}' of shape {list(own.shape)}, but '{origin}' of "
            f"'{fit.base.label}' is {list(base.shape)}. Is it an adapter of another model"
        )
    itemsize = DTYPES[base.dtype].itemsize
    info = dataclasses.replace(base, name=target, shape=own.shape, nbytes=own.numel * itemsize)
    fit.plans[target] = Plan(info, origin, whole=name)


def _check_rows(fit: Fitting) -> None:
    names = [fit.vocabulary.embedding]
    if not fit.vocabulary.tied or fit.untied:
        names.append(fit.vocabulary.head)
    rows = {
        name: fit.info(name).shape[0]
        for name in names
        if name is not None and (name in fit.known or name in fit.plans) and fit.info(name).shape
    }
    embedding = fit.vocabulary.embedding
    if embedding is None or embedding not in rows:
        return
    if len(set(rows.values())) > 1:
        listing = " and ".join(f"'{name}' {count:,}" for name, count in rows.items())
        fit.fail(
            f"changes the number of tokens of one part alone: {listing} rows. Save the other "
            "with it (save_embedding_layers=True), or resize the model first"
        )
    if rows[embedding] != fit.base.info(embedding).shape[0]:
        fit.rows = rows[embedding]
        fit.notices.append(
            f"The adapter '{fit.adapter.label}' changes the vocabulary from "
            f"{fit.base.info(embedding).shape[0]:,} to {fit.rows:,} rows."
        )


def check_complete(fit: Fitting, whole: Mapping[str, Part]) -> None:
    """Refuse an adapter that lacks a module which it says it holds whole.

    Args:
        fit: The model and the adapter.
        whole: What the adapter holds whole.

    Raises:
        CheckpointError: It lacks one.
    """
    modules = [place.rpartition(".")[0] for place in whole]
    for name in fit.config.modules_to_save:
        if not any(module.endswith(name) or f".{name}." in f".{module}." for module in modules):
            fit.fail(
                f"says modules_to_save = '{name}', but holds no tensor of such a module. "
                "Download or save it again"
            )

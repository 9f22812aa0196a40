"""Derive an output's ``config.json`` and model card from those of the models it is made of.

Everything here is a pure function of data that has been read already: the same models
and recipe give the same bytes, wherever the models lie.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge.architectures.layer_kinds import (
    DENSE_FIRST,
    DENSE_LAYERS,
    SIZE_LISTS,
    SPARSE_STEP,
    implied_lists,
    is_dense_layer,
)
from forge.architectures.table import Architecture
from forge.checkpoints.chat_templates import dump_json
from forge.core.errors import IncompatibleError
from forge.recipes.reference import ModelReference

_DTYPE_KEYS: Final = ("dtype", "torch_dtype")
_LOCAL_KEYS: Final = ("_name_or_path",)


@dataclass(frozen=True, slots=True)
class LayerOrigin:
    """Which layer of which model an output layer's configuration comes from.

    Attributes:
        config: That model's ``config.json``.
        layer: The number of its layer.
    """

    config: Mapping[str, object]
    layer: int


def layer_entries(
    architecture: Architecture, config: Mapping[str, object], *, label: str
) -> tuple[dict[str, object], ...]:
    """Return what a config says about each layer, for comparing models and for restacking.

    Args:
        architecture: The model's family.
        config: Its ``config.json``.
        label: What the user typed, for messages.

    Returns:
        One mapping per layer; for lists of layer numbers, whether the layer is in it. What the
        config leaves to a rule over layer numbers is spelt out.

    Raises:
        IncompatibleError: A list has not one entry per layer.
    """
    num_layers = architecture.num_layers(config)
    text = architecture.text_config(config)
    entries: list[dict[str, object]] = [{} for _ in range(num_layers)]
    implied = implied_lists(architecture, text, num_layers)
    for key in (*architecture.per_layer_lists, *SIZE_LISTS):
        values = text.get(key)
        if not isinstance(values, list):
            values = implied.get(key)
        if values is None:
            continue
        if len(values) != num_layers:
            raise IncompatibleError(
                f"config.json of '{label}' has {len(values)} entries in '{key}' "
                f"for {num_layers} layers."
            )
        for entry, value in zip(entries, values, strict=True):
            entry[key] = value
    for key in architecture.layer_number_lists:
        numbers = text.get(key)
        for number, entry in enumerate(entries):
            if key == DENSE_LAYERS:
                entry[key] = is_dense_layer(text, number)
            elif isinstance(numbers, list):
                entry[key] = number in numbers
    first = text.get(DENSE_FIRST)
    if type(first) is int:
        for number, entry in enumerate(entries):
            entry[DENSE_FIRST] = number < first
    return tuple(entries)


def merged_config(
    config: Mapping[str, object],
    architecture: Architecture,
    *,
    dtype: str | None = None,
    layers: Sequence[LayerOrigin] | None = None,
    vocab_size: int | None = None,
    tied: bool | None = None,
    label: str = "the base",
) -> dict[str, object]:
    """Return an output's ``config.json``.

    Args:
        config: That of the base, or of the first model.
        architecture: Its family.
        dtype: Torch name of the weights' type. The key that ``config`` uses is kept:
            transformers 5 writes ``dtype``, earlier ones ``torch_dtype``, and all read both.
        layers: Where each output layer comes from; ``None`` when the layers are the model's own.
        vocab_size: Rows of the embedding, when they changed.
        tied: Whether the head shares the embedding's weights, when that must be stated.
        label: What the user typed, for messages.

    Returns:
        The new config. Local paths are left out.

    Raises:
        IncompatibleError: A per-layer list does not fit the layers, or the models of a stack
            disagree on having it.
    """
    merged = {key: value for key, value in config.items() if key not in _LOCAL_KEYS}
    section = architecture.text_section
    is_nested = section is not None and isinstance(config.get(section), Mapping)
    text = dict(architecture.text_config(merged))
    for key in _LOCAL_KEYS:
        text.pop(key, None)
    entries = layer_entries(architecture, config, label=label)
    if layers is not None:
        _restack(text, architecture, config, layers, own=entries, label=label)
    if vocab_size is not None:
        text["vocab_size"] = vocab_size
        if "vocab_size" in merged:
            merged["vocab_size"] = vocab_size
    if dtype is not None:
        _set_dtype(text, dtype, default_key=None if is_nested else "torch_dtype")
    if tied is not None and (not is_nested or "tie_word_embeddings" in text):
        text["tie_word_embeddings"] = tied
    if not is_nested:
        return text
    assert section is not None
    merged[section] = text
    if dtype is not None:
        _set_dtype(merged, dtype, default_key="torch_dtype")
    if tied is not None:
        merged["tie_word_embeddings"] = tied
    return merged


def _set_dtype(config: dict[str, object], dtype: str, *, default_key: str | None) -> None:
    present: list[str] = [key for key in _DTYPE_KEYS if key in config]
    if not present and default_key is not None:
        present = [default_key]
    for key in present:
        config[key] = dtype


def _restack(
    text: dict[str, object],
    architecture: Architecture,
    config: Mapping[str, object],
    layers: Sequence[LayerOrigin],
    *,
    own: tuple[dict[str, object], ...],
    label: str,
) -> None:
    if not layers:
        raise IncompatibleError("The output would have no layers.")
    text[architecture.num_layers_key(config)] = len(layers)
    known = {id(config): own}
    stacked: list[dict[str, object]] = []
    for origin in layers:
        if id(origin.config) not in known:
            known[id(origin.config)] = layer_entries(architecture, origin.config, label=label)
        entries = known[id(origin.config)]
        if not 0 <= origin.layer < len(entries):
            raise IncompatibleError(
                f"The stack takes layer {origin.layer} of a model with {len(entries)} layers, "
                "which are counted from 0."
            )
        stacked.append(entries[origin.layer])
    keys = {key: None for entry in stacked for key in entry}
    for key in keys:
        if not all(key in entry for entry in stacked):
            raise IncompatibleError(
                f"Some of the stacked models have '{key}' in config.json and some have not, "
                "so it cannot be written for the output's layers."
            )
    lists = [key for key in (*architecture.per_layer_lists, *SIZE_LISTS) if key in keys]
    values = {key: [entry[key] for entry in stacked] for key in lists}
    is_stated = {key: isinstance(text.get(key), list) for key in lists}
    # With the lists that are written, because one rule may follow from another's list.
    written = {**text, **{key: values[key] for key in lists if is_stated[key]}}
    implied = implied_lists(architecture, written, len(layers))
    for key in lists:
        # A list that loaders would make of the rule by themselves need not be written.
        if is_stated[key] or implied.get(key) != values[key]:
            text[key] = values[key]
    for key in architecture.layer_number_lists:
        if key in keys:
            text[key] = [number for number, entry in enumerate(stacked) if entry[key]]
    if DENSE_LAYERS in keys and SPARSE_STEP in text:
        text[SPARSE_STEP] = 1
    if DENSE_FIRST in keys:
        dense = [bool(entry[DENSE_FIRST]) for entry in stacked]
        if dense != sorted(dense, reverse=True):
            raise IncompatibleError(
                f"Layer {dense.index(True, dense.index(False))} of the stack has one MLP and comes "
                f"behind a layer of experts, but config.json ({DENSE_FIRST}) can say so of the "
                "first layers only. Take such layers first."
            )
        text[DENSE_FIRST] = sum(dense)


def config_file(config: Mapping[str, object]) -> dict[str, bytes]:
    """Return ``config.json`` by name.

    Args:
        config: The config.

    Returns:
        One file.
    """
    return {"config.json": dump_json(config)}


def model_card(
    *,
    title: str,
    models: Sequence[ModelReference],
    method: str,
    recipe: str,
    local_paths: Collection[str],
) -> dict[str, bytes]:
    """Return a short ``README.md``: what the model was made of, how, and by which recipe.

    Args:
        title: Heading.
        models: All models, the base included.
        method: Name of the merge method.
        recipe: The resolved recipe as YAML.
        local_paths: Paths of those models and adapters that are local folders.

    Returns:
        One file. Models that lie in a local folder are named by its last part alone, in the
        recipe as in the list, so that no path of the machine is published.
    """
    for path in sorted(local_paths, key=len, reverse=True):
        recipe = recipe.replace(path, Path(path).name)
    names = [_public_name(model, local_paths) for model in models]
    parts = [part for model in models for part in (model, model.lora) if part is not None]
    parents = [part.path for part in parts if part.path not in local_paths]
    front = ["---"]
    if parents:
        # JSON strings are YAML strings, whatever they contain.
        front += ["base_model:", *(f"- {json.dumps(name)}" for name in dict.fromkeys(parents))]
    front += ["library_name: transformers", "tags:", "- merge", "- forge", "---"]
    # The fence must be longer than any run of backticks inside.
    fence = "```"
    while fence in recipe:
        fence += "`"
    body = [
        f"# {title}", "",
        f"A merge made with forge by the method `{method}`, of:", "",
        *(f"- {name}" for name in dict.fromkeys(names)), "",
        "`forge_manifest.json` records the hashes of all inputs and outputs; "
        "`forge verify` checks them.", "",
        "## Recipe", "",
        f"{fence}yaml", recipe.strip("\n"), fence, "",
    ]  # fmt: skip
    return {"README.md": "\n".join([*front, "", *body]).encode()}


def _public_name(model: ModelReference, local_paths: Collection[str]) -> str:
    path = Path(model.path).name if model.path in local_paths else model.path
    name = f"`{path}`" if model.revision is None else f"`{path}` at `{model.revision}`"
    if model.lora is None:
        return name
    return f"{name} with the adapter {_public_name(model.lora, local_paths)}"

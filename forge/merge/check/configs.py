"""Compare the configurations of the models: what would read the merged weights wrongly.

The result gets one ``config.json``, that of the base or of the first model. What shapes do
not show (how many heads a matrix holds, which rotation its queries were trained with) is
compared here, and every finding says whose value will be used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from forge.architectures.layer_kinds import implied_lists
from forge.checkpoints.sidecars import LayerOrigin, layer_entries, merged_config
from forge.checkpoints.special_ids import SPECIAL_IDS
from forge.core.enumeration import listed
from forge.core.errors import ForgeError
from forge.merge.check.report import Notebook
from forge.merge.check.rope import rope_of
from forge.merge.check.stack import Subject, contributors, leader
from forge.recipes.merge_types import MergeRecipe, OutputSlice
from forge.recipes.reference import ModelReference

_STRUCTURE: Final = (
    ("hidden_size", "n_embd", "d_model"),
    ("num_attention_heads", "n_head", "n_heads"),
    ("num_key_value_heads", "n_head_kv"),
    ("head_dim",),
    ("intermediate_size", "n_inner", "ffn_dim"),
    ("num_local_experts", "num_experts", "n_routed_experts"),
    ("num_experts_per_tok",),
    ("parallel_attn", "use_parallel_residual"),
    ("alibi",),
    ("new_decoder_architecture",),
)
_ACTIVATION: Final = ("hidden_act", "hidden_activation", "activation_function")
_EPSILON: Final = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps")
_WINDOW: Final = ("sliding_window", "use_sliding_window", "max_window_layers")
_ROPE: Final = (
    "rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq",
    "partial_rotary_factor", "rotary_pct", "rotary_emb_base", "rotary_dim",
)  # fmt: skip
_ELSEWHERE: Final = frozenset(
    {
        "_name_or_path", "_attn_implementation_autoset", "architectures", "auto_map", "dtype",
        "torch_dtype", "transformers_version", "model_type", "use_cache", "vocab_size",
        "tie_word_embeddings", "layer_types", "mlp_only_layers", "no_rope_layers",
        "num_hidden_layers", "n_layer", "n_layers", "quantization_config", "text_config",
        "unsloth_version", "unsloth_fixed",
        *_ACTIVATION, *_EPSILON, *_WINDOW, *SPECIAL_IDS, *_ROPE,
        *(key for keys in _STRUCTURE for key in keys),
    }
)  # fmt: skip
"""Keys that are compared otherwise, or do not change what the weights mean."""


def check_same_models(
    recipe: MergeRecipe,
    slices: tuple[OutputSlice, ...],
    subjects: Mapping[ModelReference, Subject],
    notes: Notebook,
) -> None:
    """Report two references that lead to one folder and are merged with each other.

    Args:
        recipe: The recipe.
        slices: The runs of layers of the result.
        subjects: Every model.
        notes: Receives the findings.
    """
    for part in slices:
        is_pair = part.method.max_models is not None
        places: dict[object, tuple[ModelReference, int]] = {}
        for model, start in contributors(recipe, part).items():
            place = (subjects[model].checkpoint.root.resolve(), str(model.lora), start)
            if place not in places:
                places[place] = (model, start)
                continue
            text = f"{places[place][0]} and {model} are the same folder"
            if is_pair:
                notes.error(
                    "same-model",
                    f"{text}, so {part.method.name} would return that model. Name the other model.",
                )
            else:
                notes.warning(
                    "same-model", f"{text}; that model counts twice. List each model once."
                )


def check_configs(
    recipe: MergeRecipe,
    slices: tuple[OutputSlice, ...],
    subjects: Mapping[ModelReference, Subject],
    notes: Notebook,
) -> frozenset[ModelReference]:
    """Report differences between the configurations that the result cannot express.

    Args:
        recipe: The recipe.
        slices: The runs of layers of the result.
        subjects: Every model.
        notes: Receives the findings.

    Returns:
        Models of another structure than the result's; that their tensors have other shapes, or are
        others, is a consequence that need not be told again, tensor by tensor.
    """
    lead = subjects[leader(recipe)]
    misfits: set[ModelReference] = set()
    models = dict.fromkeys(model for part in slices for model in contributors(recipe, part))
    for model in models:
        if model == lead.reference:
            continue
        other = subjects[model]
        if _check_structure(lead, other, notes):
            misfits.add(model)
        _check_activation(lead, other, notes)
        _check_soft(lead, other, notes)
        _check_rest(lead, other, notes)
    _check_layer_lists(recipe, slices, subjects, notes)
    return frozenset(misfits)


def _check_structure(lead: Subject, other: Subject, notes: Notebook) -> bool:
    differences = []
    for keys in _STRUCTURE:
        (key, ours), (_, theirs) = _structure(lead, keys), _structure(other, keys)
        if ours is not None and theirs is not None and ours != theirs:
            differences.append(f"{key} is {ours} in {lead.reference} but {theirs} in {{other}}")
    if differences:
        text = "; ".join(differences).replace("{other}", str(other.reference))
        notes.error(
            "structure",
            f"{text}: the config.json of {lead.reference}, which the result has, would misread the "
            "other's weights, so merge models of one architecture and size.",
        )
    return bool(differences)


def _structure(subject: Subject, keys: tuple[str, ...]) -> tuple[str, object]:
    """Return a key and its value, or the value that loaders take when it is absent."""
    key, value = _first(subject, keys)
    heads = _first(subject, _STRUCTURE[1])[1]
    if value is None and keys == _STRUCTURE[2]:
        return key, heads
    if value is None and key == "head_dim":
        hidden = _first(subject, _STRUCTURE[0])[1]
        if type(hidden) is int and type(heads) is int and heads > 0:
            return key, hidden // heads
    return key, value


def _first(subject: Subject, keys: tuple[str, ...]) -> tuple[str, object]:
    config = subject.text_config
    found = next((key for key in keys if config.get(key) is not None), keys[0])
    value = config.get(found)
    # Of a size for each layer, the layers are compared: see _check_layer_lists.
    return found, None if isinstance(value, list) else value


def _check_activation(lead: Subject, other: Subject, notes: Notebook) -> None:
    (key, ours), (_, theirs) = _first(lead, _ACTIVATION), _first(other, _ACTIVATION)
    if ours is None or theirs is None or ours == theirs:
        return
    text = f"{key} is {ours} in {lead.reference} but {theirs} in {other.reference}"
    if str(ours).startswith("gelu") and str(theirs).startswith("gelu"):
        notes.warning("activation", f"{text}. The result uses {ours}; the two are close.")
    else:
        notes.error(
            "activation",
            f"{text}. Weights trained for one activation do not work with another; merge models "
            "that agree.",
        )


def _check_soft(lead: Subject, other: Subject, notes: Notebook) -> None:
    """Report what may differ, but is then somebody's mistake more often than not."""
    (key, ours), (_, theirs) = _first(lead, _EPSILON), _first(other, _EPSILON)
    if ours is not None and theirs is not None and ours != theirs:
        notes.warning(
            "norm-eps",
            f"{key} is {ours} in {lead.reference} but {theirs} in {other.reference}. The result "
            f"uses {ours}.",
        )
    ours, theirs = rope_of(lead.text_config), rope_of(other.text_config)
    if ours != theirs:
        notes.warning(
            "rope",
            f"The rotary embedding (rope) is {ours} in {lead.reference} but {theirs} in "
            f"{other.reference}. The result uses that of {lead.reference}; queries and keys of the "
            "other were trained with another rotation.",
        )
    for key in _WINDOW:
        ours, theirs = lead.text_config.get(key), other.text_config.get(key)
        both = key in lead.text_config and key in other.text_config
        if both and ours != theirs:
            notes.warning(
                "attention-window",
                f"{key} is {_json(ours)} in {lead.reference} but {_json(theirs)} in "
                f"{other.reference}. The result uses {_json(ours)}.",
            )


def _check_rest(lead: Subject, other: Subject, notes: Notebook) -> None:
    ours, theirs = lead.text_config, other.text_config
    keys = sorted(
        key for key in ours if key in theirs and key not in _ELSEWHERE and ours[key] != theirs[key]
    )
    if keys:
        shown = ", ".join(f"{key} ({_json(ours[key])}, {_json(theirs[key])})" for key in keys[:3])
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        notes.notice(
            "config-differs",
            f"config.json of {lead.reference} and {other.reference} differ in {shown}{more}. The "
            f"result has the values of {lead.reference}.",
        )
    classes = [subject.checkpoint.config.get("architectures") for subject in (lead, other)]
    if all(isinstance(item, list) for item in classes) and classes[0] != classes[1]:
        notes.warning(
            "architecture-class",
            f"{lead.reference} is a {_json(classes[0])}, {other.reference} a {_json(classes[1])}. "
            f"The result is declared to be what {lead.reference} is.",
        )


def _check_layer_lists(
    recipe: MergeRecipe,
    slices: tuple[OutputSlice, ...],
    subjects: Mapping[ModelReference, Subject],
    notes: Notebook,
) -> None:
    """Compare lists such as layer_types with the layers that will be written."""
    lead = subjects[leader(recipe)]
    entries: dict[ModelReference, tuple[dict[str, object], ...]] = {}
    for model in dict.fromkeys(model for part in slices for model in contributors(recipe, part)):
        subject = subjects[model]
        try:
            entries[model] = layer_entries(
                subject.architecture, subject.checkpoint.config, label=str(model)
            )
        except ForgeError as error:
            notes.error("layer-lists", str(error))
            return
    origins: list[LayerOrigin] = []
    unlike: list[tuple[int, ModelReference, ModelReference]] = []
    for part in slices:
        first, *rest = contributors(recipe, part).items()
        for offset in range(part.num_layers):
            origins.append(LayerOrigin(subjects[first[0]].checkpoint.config, first[1] + offset))
            own = entries[first[0]][first[1] + offset]
            for model, start in rest:
                other = entries[model][start + offset]
                if any(own[key] != other[key] for key in own if key in other):
                    unlike.append((len(origins) - 1, first[0], model))
    if unlike:
        number, one, two = unlike[0]
        more = f" (and of {len(unlike) - 1} more)" if len(unlike) > 1 else ""
        notes.error(
            "layer-lists",
            f"The kind of layer {number}{more} of the result is not the same in {one} and {two} "
            f"({', '.join(entries[one][0])} in config.json). Such layers compute different things; "
            "merge layers of one kind.",
        )
    if recipe.slices:
        try:
            stacked = merged_config(
                lead.checkpoint.config, lead.architecture, layers=origins, label=str(lead.reference)
            )
        except ForgeError as error:
            notes.error("layer-lists", str(error))
            return
        _check_pattern(lead, origins, notes)
        ours, theirs = lead.text_config, lead.architecture.text_config(stacked)
        added = [key for key in theirs if key not in ours and isinstance(theirs[key], list)]
        if added:
            notes.notice(
                "layer-lists",
                f"{lead.reference} says by a rule over their numbers what its layers are, and "
                f"layers get new numbers here, so {listed(added)} is written out for each layer; "
                "loaders that know the rule alone (transformers before 4.53) would misread it.",
            )


def _check_pattern(lead: Subject, origins: list[LayerOrigin], notes: Notebook) -> None:
    pattern = lead.text_config.get("sliding_window_pattern")
    if type(pattern) is not int or pattern < 2 or "layer_types" in lead.text_config:
        return
    if "layer_types" in implied_lists(lead.architecture, lead.text_config, 1):
        return
    moved = [number for number, origin in enumerate(origins) if (number - origin.layer) % pattern]
    if moved:
        notes.error(
            "layer-lists",
            f"{lead.reference} alternates kinds of layers by their number (every {pattern} layers, "
            f"sliding_window_pattern), and layer {origins[moved[0]].layer} would become layer "
            f"{moved[0]}, of another kind. Move layers by multiples of {pattern}.",
        )


def _json(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

"""Read how a configuration rotates queries and keys, in whichever words it says so.

Until transformers 4 that was ``rope_theta`` beside ``rope_scaling`` (whose ``type`` later
became ``rope_type``), and ``rope_local_base_freq`` for sliding layers; transformers 5 writes
one ``rope_parameters``, with one mapping for each kind of layer where they differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_THETA_KEYS: Final = ("rope_theta", "rotary_emb_base")
_PART_KEYS: Final = ("partial_rotary_factor", "rotary_pct")
_USUAL_THETA: Final = 10000.0
_TEXT_ONLY: Final = ("default", "mrope")
"""Sections for height and width (mrope) turn tokens of text as no sections do."""


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotation, the same for configurations that mean the same.

    Attributes:
        items: Sorted settings; those of one kind of layer begin with its name.
    """

    items: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.items)


def rope_of(config: Mapping[str, object]) -> Rope:
    """Return the rotation that a configuration states.

    Args:
        config: The part of ``config.json`` that describes the language model.

    Returns:
        The rotation; what is not stated has its usual value.
    """
    parameters = config.get("rope_parameters")
    if isinstance(parameters, Mapping):
        kinds = {key: value for key, value in parameters.items() if isinstance(value, Mapping)}
        found = kinds if kinds and len(kinds) == len(parameters) else {"": parameters}
    else:
        scaling = config.get("rope_scaling")
        found = {"": scaling if isinstance(scaling, Mapping) else {}}
        local = config.get("rope_local_base_freq")
        if local is not None:
            found = {"full_attention": found[""], "sliding_attention": {"rope_theta": local}}
    items: list[tuple[str, str]] = []
    for kind, values in found.items():
        own = {**_outer(config, kind), **values}
        items += [(f"{kind} {key}".strip(), text) for key, text in _plain(own).items()]
    return Rope(tuple(sorted(items)))


def _outer(config: Mapping[str, object], kind: str) -> dict[str, object]:
    """Return what stands beside the scaling and holds for it, too."""
    theta = next((config[key] for key in _THETA_KEYS if config.get(key) is not None), None)
    part = next((config[key] for key in _PART_KEYS if config.get(key) is not None), None)
    return {"rope_theta": theta, "partial_rotary_factor": part}


def _plain(values: Mapping[str, object]) -> dict[str, str]:
    own = dict(values)
    kind = own.pop("rope_type", None) or own.pop("type", None) or "default"
    own.pop("type", None)
    theta = own.pop("rope_theta", None)
    part = own.pop("partial_rotary_factor", None)
    plain = {"rope_theta": _number(_USUAL_THETA if theta is None else theta)}
    if kind not in _TEXT_ONLY:
        plain["rope_type"] = str(kind)
        plain |= {key: _number(value) for key, value in own.items() if value is not None}
    if part is not None and part != 1:
        plain["partial_rotary_factor"] = _number(part)
    return plain


def _number(value: object) -> str:
    return f"{value:g}" if type(value) in (int, float) else str(value)

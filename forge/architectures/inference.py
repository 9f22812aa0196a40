"""Guess where the layers of an unknown family are, from the names of its tensors alone.

A model that no row describes can still be merged: averaging needs to know which tensors belong to
each other, and their names say so. What more is asked of a row, the order of the layers, serves
gradients and slices. Most models number their decoder blocks in one place (``model.layers.0.``);
others in several, an encoder's beside a decoder's, or a vision tower's beside a language model's.
Of runs that begin at 0 and have no gap, one whose length the config states is taken, the longest
first, and of runs of one length the one of most tensors (a decoder has more than an encoder). All
other tensors are merged by name, like embeddings. The notice says what was taken for what.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from forge.architectures.table import Architecture

_NUMBERED: Final = re.compile(r"(.*?(?:^|\.))([0-9]{1,7})\.")
_LAYER_KEYS: Final = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers",
    "decoder_layers",
)  # fmt: skip
_EMBEDDINGS: Final = (
    "embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight",
    "tok_embeddings.weight",
)  # fmt: skip
_HEADS: Final = ("lm_head.weight", "lm_head.bias", "embed_out.weight")
_TEXT_SECTION: Final = "text_config"
_SHOWN: Final = 3


@dataclass(slots=True)
class _Run:
    """Tensors that are numbered in one place."""

    prefix: str
    numbers: set[int]
    num_tensors: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether the numbers begin at 0 and leave none out."""
        return len(self.numbers) == max(self.numbers) + 1


def infer(model_type: str, config: Mapping[str, object], names: Sequence[str]) -> Architecture:
    """Return a row for a family that the table does not know.

    Args:
        model_type: Its name.
        config: ``config.json``.
        names: Names of the model's tensors.

    Returns:
        The row, with a notice that says what was taken for its layers. It has no layers when
        nothing is numbered in a row.
    """
    section = _TEXT_SECTION if isinstance(config.get(_TEXT_SECTION), Mapping) else None
    text = Architecture(model_type, text_section=section).text_config(config)
    stated = {
        key: value
        for key in _LAYER_KEYS
        if isinstance(value := text.get(key), int) and type(value) is int and value > 0
    }
    runs = _runs(names)
    chosen = _choose(runs, tuple(stated.values()))
    num_layers = 0 if chosen is None else len(chosen.numbers)
    if len(runs) == 1 and stated:
        # Nothing else could be meant, so a file that lacks layers shows as one that does.
        num_layers = max(num_layers, next(iter(stated.values())))
    keys = tuple(key for key, value in stated.items() if value == num_layers)
    return Architecture(
        model_type,
        layer_prefixes=() if chosen is None else (chosen.prefix,),
        embeddings=tuple(name for name in names if name.endswith(_EMBEDDINGS)),
        heads=_HEADS,
        num_layers_keys=keys,
        per_layer_lists=tuple(
            key
            for key, value in text.items()
            if "layer" in key and isinstance(value, list) and len(value) == num_layers
        ),
        text_section=section,
        inferred_layers=num_layers,
        notice=_notice(model_type, chosen, runs),
    )


def _runs(names: Sequence[str]) -> list[_Run]:
    runs: dict[str, _Run] = {}
    for name in names:
        match = _NUMBERED.match(name)
        if match is not None:
            run = runs.setdefault(match[1], _Run(match[1], set()))
            run.numbers.add(int(match[2]))
            run.num_tensors += 1
    return sorted(runs.values(), key=lambda run: run.prefix)


def _choose(runs: Sequence[_Run], stated: Sequence[int]) -> _Run | None:
    if len(runs) == 1 and stated:
        return runs[0]
    whole = [run for run in runs if run.is_whole]
    return max(
        whole,
        key=lambda run: (len(run.numbers) in stated, len(run.numbers), run.num_tensors),
        default=None,
    )


def _notice(model_type: str, chosen: _Run | None, runs: Sequence[_Run]) -> str:
    start = f"The architecture '{model_type}' is not in forge's table;"
    if chosen is None:
        return (
            f"{start} no layers were found in its tensor names. All tensors are merged by name, "
            "with the value that a gradient has for the first layer."
        )
    text = f"{start} its layers were taken to be '{chosen.prefix}<number>.'"
    others = [f"'{run.prefix}<number>.'" for run in runs if run is not chosen]
    if not others:
        return f"{text}."
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    return (
        f"{text}, {len(chosen.numbers)} of them. Gradients and slices go by those; all "
        f"other tensors, those of {', '.join(others[:_SHOWN])}{more} included, are merged by "
        "name, with the value that a gradient has for the first layer."
    )

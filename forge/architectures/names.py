"""Find the architecture of a model, from its config or, failing that, from its tensor names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from forge.architectures.table import ARCHITECTURES, Architecture
from forge.core.errors import IncompatibleError

_NUMBERED: Final = re.compile(r"(.*?(?:^|\.))\d+\.")
_USUAL_LAYER_KEYS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_USUAL_EMBEDDINGS: Final = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")


def architecture_of(
    config: Mapping[str, object], *, tensor_names: Iterable[str] = ()
) -> Architecture:
    """Return the row of a model's family.

    A family that has no row is inferred when all numbered tensor names share one prefix,
    as in ``model.layers.0.``; the row then carries a notice.

    Args:
        config: ``config.json``.
        tensor_names: Names of the model's tensors, for inference.

    Returns:
        The row.

    Raises:
        IncompatibleError: The family is unknown and cannot be inferred.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise IncompatibleError("config.json has no 'model_type'; the architecture is unknown.")
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    names = tuple(tensor_names)
    prefixes = sorted({match[1] for name in names if (match := _NUMBERED.match(name))})
    if len(prefixes) != 1:
        found = f"; numbered tensors begin with {', '.join(prefixes[:4])}" if prefixes else ""
        raise IncompatibleError(
            f"The architecture '{model_type}' is not in forge's table{found}."
            f"{ARCHITECTURES.suggest(model_type)} Known: {', '.join(ARCHITECTURES.names())}."
        )
    return Architecture(
        model_type,
        layer_prefixes=(prefixes[0],),
        embeddings=tuple(name for name in names if name.endswith(_USUAL_EMBEDDINGS)),
        num_layers_keys=_USUAL_LAYER_KEYS,
        notice=(
            f"The architecture '{model_type}' is not in forge's table; its layers were taken to be "
            f"'{prefixes[0]}<number>.'."
        ),
    )


def layers_present(architecture: Architecture, tensor_names: Iterable[str]) -> tuple[int, ...]:
    """Return the numbers of the layers that tensors belong to.

    Args:
        architecture: The model's family.
        tensor_names: Names of its tensors.

    Returns:
        The numbers, ascending.
    """
    numbers = {architecture.layer_of(name) for name in tensor_names}
    return tuple(sorted(number for number in numbers if number is not None))

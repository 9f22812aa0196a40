"""Find the architecture of a model, from its config or, failing that, from its tensor names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from forge.architectures.inference import infer
from forge.architectures.table import ARCHITECTURES, Architecture
from forge.core.errors import IncompatibleError


def architecture_of(
    config: Mapping[str, object], *, tensor_names: Iterable[str] = ()
) -> Architecture:
    """Return the row of a model's family.

    A family that has no row is inferred from the names of its tensors; the row then carries a
    notice, which every verb that relies on it shows.

    Args:
        config: ``config.json``.
        tensor_names: Names of the model's tensors, for inference.

    Returns:
        The row.

    Raises:
        IncompatibleError: The config names no family; or an unknown one, and there are no tensor
            names to infer it from.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise IncompatibleError("config.json has no 'model_type'; the architecture is unknown.")
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    names = tuple(tensor_names)
    if not names:
        raise IncompatibleError(
            f"The architecture '{model_type}' is not in forge's table."
            f"{ARCHITECTURES.suggest(model_type)} Known: {', '.join(ARCHITECTURES.names())}."
        )
    return infer(model_type, config, names)


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

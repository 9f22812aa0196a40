"""Find the layout of a quantized checkpoint by what its ``config.json`` declares."""

from __future__ import annotations

from collections.abc import Mapping

from forge.core.errors import CheckpointError
from forge.formats.catalog import FORMATS, identify, load_format
from forge.verify.bnb_layouts import BlocksOf4Bits, RowsOf8Bits
from forge.verify.codes_layout import GroupsOfCodes
from forge.verify.stored import Layout, kept_names


def layout_of(config: Mapping[str, object]) -> Layout:
    """Return the layout that a ``config.json`` declares.

    Args:
        config: The configuration.

    Returns:
        The layout.

    Raises:
        CheckpointError: It declares none, or none that forge writes.
    """
    declared = config.get("quantization_config")
    if not isinstance(declared, Mapping):
        raise CheckpointError("config.json has no 'quantization_config'; nothing is quantized.")
    row = identify(declared)
    if row is None:
        raise CheckpointError(
            f"config.json declares the quantization {declared.get('quant_method')!r} in a variant "
            f"that forge does not write, so it cannot be verified. Known: "
            f"{', '.join(FORMATS.names())}."
        )
    if row.kind == "codes":
        code_format = load_format(row.name)
        return GroupsOfCodes(row.name, code_format, code_format.scheme_of(declared))
    if row.name == "bnb-int8":
        return RowsOf8Bits()
    nested = declared.get("bnb_4bit_use_double_quant") is True
    return BlocksOf4Bits(row.name.removeprefix("bnb-"), nested)


def kept_modules(config: Mapping[str, object]) -> tuple[str, ...]:
    """Return the modules that a ``config.json`` declares to be in full precision.

    Args:
        config: The configuration.
    """
    declared = config.get("quantization_config")
    return kept_names(declared) if isinstance(declared, Mapping) else ()

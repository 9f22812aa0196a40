"""How one variant writes a linear layer: the one place that knows all kinds of formats.

A layout of codes needs a method's ``QuantizedWeight``; bitsandbytes' formats choose their own
codes and read the weight straight from its file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, cast

import numpy as np
import numpy.typing as npt

from forge.architectures.blocks import Linear
from forge.formats import bnb_4bit, bnb_int8
from forge.formats.catalog import format_row, load_format
from forge.formats.contract import LayoutFormat, Part, QuantizedWeight, Scheme
from forge.formats.raw_weight import RawWeight
from forge.recipes.quantize_types import Variant

Emit = Callable[[str, int, "npt.NDArray[np.generic]"], None]
"""Takes a part's suffix, a byte offset in it, and the bytes."""

_USUAL_MEAN: Final = np.float32(0.0123456789)
"""Stands for a mean that nobody has computed yet, where only sizes are asked for."""


def scheme_of(variant: Variant) -> Scheme:
    """Return the scheme of a variant of codes.

    Args:
        variant: The variant.
    """
    return Scheme(variant.bits, variant.group_size)


@dataclass(frozen=True)
class Layout:
    """The layout of one variant.

    Attributes:
        variant: The variant.
        means: With double quantization, the mean of the blocks' magnitudes by module, on which
            the length of a part depends; empty while only sizes are asked for.
    """

    variant: Variant
    means: Mapping[str, np.float32]

    @property
    def needs_codes(self) -> bool:
        """Whether a method must choose the codes."""
        return format_row(self.variant.format).kind == "codes"

    @cached_property
    def _codes(self) -> LayoutFormat:
        return load_format(self.variant.format)

    @property
    def _quant_type(self) -> Literal["nf4", "fp4"]:
        return cast("Literal['nf4', 'fp4']", self.variant.format.removeprefix("bnb-"))

    def _state(self, linear: Linear, dtype: str) -> bytes:
        mean = self.means.get(linear.module, _USUAL_MEAN) if self.variant.double_quant else None
        return bnb_4bit.quant_state(linear.shape_OI, dtype, quant_type=self._quant_type, mean=mean)

    def parts(self, linear: Linear, dtype: str) -> tuple[Part, ...]:
        """Return what is written for a layer.

        Args:
            linear: The layer.
            dtype: Element type of its weight in full precision.

        Raises:
            IncompatibleError: The format cannot hold it.
        """
        if self.needs_codes:
            return self._codes.parts(linear.shape_OI, scheme_of(self.variant))
        if self.variant.format == "bnb-int8":
            return bnb_int8.parts(linear.shape_OI)
        return bnb_4bit.parts(
            linear.shape_OI,
            quant_type=self._quant_type,
            double_quant=self.variant.double_quant,
            state=self._state(linear, dtype),
        )

    def pack(self, weight: QuantizedWeight) -> dict[str, npt.NDArray[np.generic]]:
        """Return the parts of a weight in codes, by suffix.

        Args:
            weight: What a method chose.
        """
        return self._codes.pack(weight)

    def quantize(self, linear: Linear, weight: RawWeight, emit: Emit) -> None:
        """Quantize a weight by the format's own rule.

        Args:
            linear: The layer.
            weight: Its weight.
            emit: Receives the bytes of all parts.

        Raises:
            NonFiniteError: The weight holds something that has no code.
        """
        if self.variant.format == "bnb-int8":
            bnb_int8.quantize(weight, emit)
            return
        bnb_4bit.quantize(
            weight,
            emit,
            quant_type=self._quant_type,
            double_quant=self.variant.double_quant,
            state=self._state(linear, weight.dtype),
        )

    def quantization_config(
        self, kept: tuple[str, ...], heads: tuple[str, ...]
    ) -> dict[str, object]:
        """Return what ``config.json`` says under that name.

        Args:
            kept: Linear layers that stay in full precision, the head apart; often none.
            heads: The head's module names, as checkpoints of the family may call it.
        """
        if self.needs_codes:
            names_head = format_row(self.variant.format).names_head
            unconverted = (*heads, *kept) if names_head else kept
            return self._codes.quantization_config(scheme_of(self.variant), unconverted)
        # A list replaces what transformers leaves by itself, so it must then name the head, too.
        skipped = (*heads, *kept) if kept else ()
        if self.variant.format == "bnb-int8":
            return bnb_int8.quantization_config(modules_to_not_convert=skipped)
        return bnb_4bit.quantization_config(
            quant_type=self._quant_type,
            double_quant=self.variant.double_quant,
            modules_to_not_convert=skipped,
        )

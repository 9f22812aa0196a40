"""A quantization recipe after reading: frozen values with every default filled in.

Nothing here reads files or judges input; ``forge/recipes/quantize_recipe.py`` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from forge.recipes.document import dump_yaml
from forge.recipes.merge_entries import parse_size
from forge.recipes.reference import ModelReference

DEFAULT_GROUP_SIZE: Final = 128
DEFAULT_MAX_SHARD_SIZE: Final = "5GB"
DEFAULT_SAMPLES: Final = 32
DEFAULT_TOKENS: Final = 256

KEYS_OF_SOURCE: Final[Mapping[str, tuple[str, ...]]] = {
    "self": ("path", "field", "samples", "tokens", "chat_template", "prompts"),
    "text": ("path", "samples", "tokens"),
    "jsonl": ("path", "field", "samples", "tokens", "chat_template"),
    "tokens": ("path",),
    "hub": ("path", "field", "split", "samples", "tokens", "chat_template"),
}
"""What each source of a calibration set takes."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One output of a quantization.

    Attributes:
        format: The layout's name in the catalog, such as ``awq-gemm`` or ``bnb-nf4``.
        bits: Bits of one code.
        group_size: Neighbouring input features that share a scale; for bitsandbytes' 4-bit types
            the elements of a block, and 0 where a whole row shares one.
        double_quant: Whether the scales are quantized, too (bitsandbytes' 4-bit types).
    """

    format: str
    bits: int = 4
    group_size: int = DEFAULT_GROUP_SIZE
    double_quant: bool = False


@dataclass(frozen=True, slots=True)
class CalibrationRecipe:
    """Where the tokens come from on which a method watches the model.

    Attributes:
        source: ``self`` (the model writes them), ``text``, ``jsonl``, ``tokens`` (stored by an
            earlier run) or ``hub``.
        path: The file, or the data set's id, ``@revision`` allowed; for ``self`` a file of
            prompts, or ``None``.
        field: Which field of a record holds the text (or the chat); ``None`` to find it.
        split: Which split of a data set; ``None`` for ``train``.
        samples: Number of sequences.
        tokens: Length of each sequence, in tokens.
        chat_template: Whether texts are rendered through the model's chat template.
        prompts: Openings for ``self`` that give the domain; empty for openings of its own.
        seed: Seed of everything that is drawn.
    """

    source: str = "self"
    path: str | None = None
    field: str | None = None
    split: str | None = None
    samples: int = DEFAULT_SAMPLES
    tokens: int = DEFAULT_TOKENS
    chat_template: bool = False
    prompts: tuple[str, ...] = ()
    seed: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences together."""
        return self.samples * self.tokens

    def resolved(self) -> dict[str, object]:
        """Return the recipe's ``calibration`` as plain JSON values; ``seed`` is the recipe's."""
        held = dataclasses.asdict(self) | {"prompts": list(self.prompts) or None}
        keys = {"source": self.source} | {key: held[key] for key in KEYS_OF_SOURCE[self.source]}
        return {key: value for key, value in keys.items() if value is not None}


@dataclass(frozen=True, slots=True)
class QuantizeRecipe:
    """What to quantize and how.

    Attributes:
        method: ``awq``, ``rtn`` or ``bnb``: how codes are chosen.
        variants: The outputs, each format once; all of one scheme for ``awq`` and ``rtn``.
        model: What to quantize; ``None`` while it is left to the command line.
        search: How ``awq`` judges a scale: ``sketch``, ``gram`` or ``module``.
        clip: Whether ``awq`` also searches for the largest value of each group.
        duo_scaling: Whether ``awq`` weighs the weights beside the activations.
        error_feedback: Whether ``awq`` lets later columns make up for the rounding of earlier ones.
        calibration: Where tokens come from; ``None`` for a method that needs none.
        keep: Modules to leave in full precision, beside the head: names or parts of names.
        device: Where to calculate, such as ``cpu`` or ``cuda``.
        seed: Seed of the sketch and of the calibration set.
        max_shard_size: Largest file to write, such as ``5GB``.
        notices: What the user should know about what is asked for.
        file: The recipe as the user typed it; ``None`` when it was built in memory.
    """

    method: str
    variants: tuple[Variant, ...]
    model: ModelReference | None = None
    search: str = "sketch"
    clip: bool = True
    duo_scaling: bool = True
    error_feedback: bool = False
    calibration: CalibrationRecipe | None = None
    keep: tuple[str, ...] = ()
    device: str = "cpu"
    seed: int = 0
    max_shard_size: str = DEFAULT_MAX_SHARD_SIZE
    notices: tuple[str, ...] = field(default=(), compare=False)
    file: str | None = field(default=None, compare=False)

    @property
    def max_shard_bytes(self) -> int:
        """Largest weight file to write, in bytes."""
        return parse_size(self.max_shard_size)

    def resolved(self) -> dict[str, object]:
        """Return the recipe as plain JSON values with every default written out.

        Reading it back gives an equal recipe.
        """
        first = self.variants[0]
        keys: dict[str, object] = {
            "model": None if self.model is None else str(self.model),
            "method": self.method,
            "format": [variant.format for variant in self.variants],
        }
        if self.method == "bnb":
            if any(variant.bits == 4 for variant in self.variants):
                keys["double_quant"] = first.double_quant
        else:
            keys |= {"bits": first.bits, "group_size": first.group_size}
        if self.method == "awq":
            keys |= {
                "search": self.search,
                "clip": self.clip,
                "duo_scaling": self.duo_scaling,
                "error_feedback": self.error_feedback,
            }
        if self.calibration is not None:
            keys["calibration"] = self.calibration.resolved()
        keys |= {
            "keep": list(self.keep) or None,
            "device": self.device,
            "seed": self.seed,
            "max_shard_size": self.max_shard_size,
        }
        return {key: value for key, value in keys.items() if value is not None}

    def to_yaml(self) -> str:
        """Return :meth:`resolved` as YAML."""
        return dump_yaml(self.resolved())

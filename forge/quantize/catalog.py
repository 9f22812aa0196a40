"""All quantization methods as plain data: what they are, and what they can be written as.

A method chooses codes, a format (``forge.formats.catalog``) lays them out; every method of codes
feeds every format of codes. Looking things up here imports neither numpy nor torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from forge.core.catalog import Catalog
from forge.core.errors import IncompatibleError
from forge.formats.catalog import CODE_FORMATS


@dataclass(frozen=True, slots=True)
class OptionRow:
    """A method's option.

    Attributes:
        name: Key in recipes.
        meaning: What it does.
        default: Its default.
        choices: Its values, where they are words.
    """

    name: str
    meaning: str
    default: bool | str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QuantMethodRow:
    """A way to choose codes.

    Attributes:
        name: Word in recipes.
        title: Name for people.
        summary: What it does, in one line.
        formats: What it can be written as, the default first.
        needs_calibration: Whether it watches the model on calibration text.
        paper: Where it is described.
        options: Its own options.
    """

    name: str
    title: str
    summary: str
    formats: tuple[str, ...]
    needs_calibration: bool = False
    paper: str | None = None
    options: tuple[OptionRow, ...] = field(default=())


QUANT_METHODS: Final = Catalog(
    (
        QuantMethodRow(
            "awq",
            "AWQ",
            "scales what the activations make important before it rounds, and clips outliers",
            formats=CODE_FORMATS,
            needs_calibration=True,
            paper="Lin et al., arXiv 2306.00978",
            options=(
                OptionRow(
                    "search",
                    "how a scale is judged: by a count-sketch of the activations, by their exact "
                    "Gram matrix, or by the module's output as AutoAWQ does",
                    "sketch",
                    choices=("sketch", "gram", "module"),
                ),
                OptionRow("clip", "search for the largest value of each group", True),
                OptionRow("duo_scaling", "weigh the weights beside the activations", True),
                OptionRow(
                    "error_feedback",
                    "let later columns make up for the rounding of earlier ones, as GPTQ does",
                    False,
                ),
            ),
        ),
        QuantMethodRow(
            "rtn",
            "Round to nearest",
            "rounds each weight to the nearest code of its group; needs nothing but the weights",
            formats=CODE_FORMATS,
        ),
        QuantMethodRow(
            "bnb",
            "bitsandbytes",
            "rounds to NF4, FP4 or int8 as bitsandbytes does, bit for bit; needs no calibration",
            formats=("bnb-nf4", "bnb-fp4", "bnb-int8"),
            paper="Dettmers et al., arXiv 2305.14314 (NF4) and arXiv 2208.07339 (LLM.int8)",
            options=(OptionRow("double_quant", "quantize the scales of NF4 and FP4, too", False),),
        ),
    )
)


def method_row(name: str) -> QuantMethodRow:
    """Return a method's row.

    Args:
        name: Word in recipes.

    Raises:
        IncompatibleError: There is no such method.
    """
    if name in QUANT_METHODS:
        return QUANT_METHODS[name]
    guess = QUANT_METHODS.suggest(name) or f" Choose from: {', '.join(QUANT_METHODS.names())}."
    raise IncompatibleError(f"There is no quantization method '{name}'.{guess}")

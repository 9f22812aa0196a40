"""All layouts of quantized weights as plain data: what they hold, who reads them.

Looking things up here imports neither numpy nor torch; ``load_format`` imports the one module
that is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, cast

from forge.core.catalog import Catalog
from forge.core.errors import IncompatibleError
from forge.formats.contract import LayoutFormat

if TYPE_CHECKING:
    from forge.formats import (
        awq_gemm,
        awq_gemv,
        awq_gemv_fast,
        compressed_tensors,
        gptq,
    )

FormatKind = Literal["codes", "tensorwise"]


@dataclass(frozen=True, slots=True)
class Reader:
    """A program that reads a format.

    Attributes:
        name: The program, and the library that it needs for it.
        hardware: ``cpu`` or ``cuda``, or both.
    """

    name: str
    hardware: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FormatRow:
    """A layout on disk.

    Attributes:
        name: Word in recipes.
        title: Name for people.
        kind: ``codes`` for layouts of ``QuantizedWeight``; ``tensorwise`` for those that fix how
            codes are chosen as well, and go through a tensor in one pass.
        bits: Bits of a code that it holds.
        group_sizes: Usual sizes of groups or blocks; 0 is one scale for a whole row.
        readers: Who reads it, ``forge`` apart.
        module: Where it is implemented.
        weight_part: Suffix of the part that holds the codes.
        version: ``version`` of an AWQ layout.
        notice: What a user should know before choosing it.
        names_head: Whether its readers take the head for a quantized layer, too, unless
            ``quantization_config`` names it among those that are not.
    """

    name: str
    title: str
    kind: FormatKind
    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    readers: tuple[Reader, ...]
    module: str
    weight_part: str = "qweight"
    version: str | None = None
    notice: str | None = None
    names_head: bool = False

    @property
    def runs_on_cpu(self) -> bool:
        """Whether anybody but forge reads it on a CPU."""
        return any("cpu" in reader.hardware for reader in self.readers)


_BOTH: Final = ("cpu", "cuda")
_GEMV_NOTICE: Final = (
    "Only CUDA kernels read AWQ GEMV (gptqmodel in transformers, CTranslate2): no other program "
    "runs it on a CPU, and no current server loads it. 'forge convert --to gemm' makes the layout "
    "of vLLM and SGLang of it, without loss."
)
_FAST_NOTICE: Final = (
    "Only CUDA kernels read AWQ GEMV fast (gptqmodel in transformers): no other program runs it "
    "on a CPU, and no current server loads it. 'forge convert --to gemm' makes the layout of vLLM "
    "and SGLang of it, without loss."
)
_BNB: Final = (Reader("transformers with bitsandbytes", _BOTH), Reader("vLLM", ("cuda",)))

FORMATS: Final = Catalog(
    (
        FormatRow(
            "awq-gemm",
            "AWQ GEMM",
            "codes",
            bits=(4,),
            group_sizes=(32, 64, 128),
            readers=(
                Reader("transformers with gptqmodel", _BOTH),
                Reader("vLLM", ("cuda",)),
                Reader("SGLang", ("cuda",)),
                Reader("TGI", ("cuda",)),
            ),
            module="forge.formats.awq_gemm",
            version="gemm",
        ),
        FormatRow(
            "awq-gemv",
            "AWQ GEMV",
            "codes",
            bits=(4,),
            group_sizes=(32, 64, 128),
            readers=(
                Reader("transformers with gptqmodel", ("cuda",)),
                Reader("CTranslate2", ("cuda",)),
            ),
            module="forge.formats.awq_gemv",
            version="gemv",
            notice=_GEMV_NOTICE,
        ),
        FormatRow(
            "awq-gemv_fast",
            "AWQ GEMV fast",
            "codes",
            bits=(4,),
            group_sizes=(32, 64, 128),
            readers=(Reader("transformers with gptqmodel", ("cuda",)),),
            module="forge.formats.awq_gemv_fast",
            version="gemv_fast",
            notice=_FAST_NOTICE,
        ),
        FormatRow(
            "compressed-tensors",
            "compressed-tensors W4A16",
            "codes",
            bits=(4, 8),
            group_sizes=(32, 64, 128),
            readers=(
                Reader("transformers with compressed-tensors", _BOTH),
                Reader("vLLM", ("cuda",)),
                Reader("SGLang", ("cuda",)),
            ),
            module="forge.formats.compressed_tensors",
            weight_part="weight_packed",
            names_head=True,
        ),
        FormatRow(
            "gptq",
            "GPTQ",
            "codes",
            bits=(4, 8),
            group_sizes=(32, 64, 128),
            readers=(
                Reader("transformers with gptqmodel", _BOTH),
                Reader("vLLM", ("cuda",)),
                Reader("SGLang", ("cuda",)),
            ),
            module="forge.formats.gptq",
        ),
        FormatRow(
            "bnb-nf4",
            "bitsandbytes NF4",
            "tensorwise",
            bits=(4,),
            group_sizes=(64,),
            readers=_BNB,
            module="forge.formats.bnb_4bit",
            weight_part="weight",
        ),
        FormatRow(
            "bnb-fp4",
            "bitsandbytes FP4",
            "tensorwise",
            bits=(4,),
            group_sizes=(64,),
            readers=_BNB,
            module="forge.formats.bnb_4bit",
            weight_part="weight",
        ),
        FormatRow(
            "bnb-int8",
            "bitsandbytes LLM.int8",
            "tensorwise",
            bits=(8,),
            group_sizes=(0,),
            readers=_BNB,
            module="forge.formats.bnb_int8",
            weight_part="weight",
        ),
    )
)

CODE_FORMATS: Final = tuple(row.name for row in FORMATS if row.kind == "codes")
"""Names of the layouts that any method of codes feeds."""


def format_row(name: str) -> FormatRow:
    """Return a format's row.

    Args:
        name: Word in recipes; of AWQ's versions the version alone is enough.

    Raises:
        IncompatibleError: There is no such format.
    """
    for row in FORMATS:
        if name in (row.name, row.version):
            return row
    guess = FORMATS.suggest(name) or f" Choose from: {', '.join(FORMATS.names())}."
    raise IncompatibleError(f"There is no format '{name}'.{guess}")


def load_format(name: str) -> LayoutFormat:
    """Import a layout of codes.

    Args:
        name: As for ``format_row``.

    Returns:
        Its module.

    Raises:
        IncompatibleError: There is no such format, or it is not one of codes.
    """
    row = format_row(name)
    if row.kind != "codes":
        raise IncompatibleError(
            f"{row.title} fixes its own codes. Layouts of codes are: {', '.join(CODE_FORMATS)}."
        )
    return cast("LayoutFormat", importlib.import_module(row.module))


def identify(config: Mapping[str, object]) -> FormatRow | None:
    """Find a checkpoint's format by what its ``config.json`` says.

    Args:
        config: Its ``quantization_config``.

    Returns:
        The row, or ``None`` for a format that forge does not know.
    """
    method = config.get("quant_method")
    if method == "awq":
        version = config.get("version", "gemm")
        word = version.lower() if isinstance(version, str) else version
        return next(
            (row for row in FORMATS if row.version is not None and row.version == word), None
        )
    if method == "compressed-tensors":
        return FORMATS["compressed-tensors"] if config.get("format") == "pack-quantized" else None
    if method == "gptq":
        return FORMATS["gptq"]
    if method == "bitsandbytes":
        return _identify_bitsandbytes(config)
    return None


def _identify_bitsandbytes(config: Mapping[str, object]) -> FormatRow | None:
    if config.get("load_in_8bit") is True:
        return FORMATS["bnb-int8"]
    if config.get("load_in_4bit") is not True:
        return None
    kind = config.get("bnb_4bit_quant_type", "fp4")
    return FORMATS[f"bnb-{kind}"] if kind in ("nf4", "fp4") else None


if TYPE_CHECKING:
    # A module that no longer fits the protocol fails here, when types are checked.
    _PROOF: tuple[LayoutFormat, ...] = (
        awq_gemm,
        awq_gemv,
        awq_gemv_fast,
        compressed_tensors,
        gptq,
    )

"""Say of which part of which GGUF tensor each Hugging Face tensor is made, and how.

Nothing is read: the plan follows from headers and metadata alone, and what it says can be trusted
by the readers of bytes. A tensor that the family does not have is refused, never dropped; the
few that are left out hold what ``config.json`` says (the factors of rotary embeddings).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from forge.checkpoints.gguf.families import FAMILIES, Family
from forge.checkpoints.gguf.header import GgufTensor
from forge.checkpoints.gguf.metadata import Metadata
from forge.checkpoints.gguf.rows import RowOrder
from forge.checkpoints.gguf.types import GGML_TYPES
from forge.core.errors import CheckpointError

_LAYER: Final = re.compile(r"blk\.(?P<layer>\d{1,5})\.(?P<stem>.+)\.(?P<suffix>weight|bias)")
_OUTSIDE: Final = re.compile(r"(?P<stem>.+)\.(?P<suffix>weight|bias)")
_ONE_EXPERT: Final = re.compile(r"(?P<stem>ffn_(?:gate|up|down))\.(?P<expert>\d{1,4})")
"""How files of early 2024 hold an expert: each by itself."""
_MAX_LAYERS: Final = 10_000
_MAX_EXPERTS: Final = 4096
_MAX_PLACED: Final = 1 << 20
"""Beyond these, numbers are a stranger's invention, and must not size anything."""
ROPE_FACTORS: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True, slots=True)
class Placed:
    """How a Hugging Face tensor is made.

    Attributes:
        tensor: The tensor of the file.
        shape: The shape of the result.
        dtype: safetensors dtype of the result.
        part: For one expert of a stack, its number.
        num_parts: Experts of the stack.
        order: How the file orders the rows, when otherwise than Hugging Face.
        transposed: Whether the file holds the matrix transposed.
        minus_one: Whether 1 is subtracted: a norm stored as 1 + w.
    """

    tensor: GgufTensor
    shape: tuple[int, ...]
    dtype: str
    part: int = 0
    num_parts: int = 1
    order: RowOrder | None = None
    transposed: bool = False
    minus_one: bool = False

    @property
    def offset(self) -> int:
        """Absolute offset of the first byte that is read."""
        return self.tensor.offset + self.part * self.packed_bytes

    @property
    def packed_bytes(self) -> int:
        """Bytes that are read."""
        return self.tensor.nbytes // self.num_parts

    @property
    def is_stored(self) -> bool:
        """Whether the file's bytes are the result's."""
        changed = self.transposed or self.minus_one or self.order is not None
        return self.tensor.type.is_stored and not changed


def family_of(metadata: Metadata) -> Family:
    """Return the row of a file's family.

    Raises:
        CheckpointError: There is none.
    """
    name = metadata.text("general.architecture")
    if name not in FAMILIES:
        raise metadata.wrong(
            f"is a GGUF of the architecture {name[:60]!r}, which forge cannot turn back into "
            f"Hugging Face's names. It knows {', '.join(FAMILIES.names())}. Use the original model"
        )
    return FAMILIES[name]


def lay_out(
    family: Family, metadata: Metadata, tensors: Mapping[str, GgufTensor]
) -> dict[str, Placed]:
    """Plan every tensor.

    Args:
        family: The model's family.
        metadata: The model's metadata.
        tensors: All tensors of all its files, by name.

    Returns:
        Plans by Hugging Face's names, in the order of the file.

    Raises:
        CheckpointError: A tensor is unknown, of a type that forge does not read, or of a shape that
            contradicts the metadata.
    """
    _check_types(metadata, tensors.values())
    placed: dict[str, Placed] = {}
    for name, part in _all_placed(family, metadata, tensors):
        if name in placed:
            raise metadata.wrong(
                f"holds '{name}' twice, as '{placed[name].tensor.name}' and '{part.tensor.name}'"
            )
        if len(placed) == _MAX_PLACED:
            raise metadata.wrong(
                f"holds more than {_MAX_PLACED} tensors, experts counted one by one"
            )
        placed[name] = part
    return placed


def _check_types(metadata: Metadata, tensors: Iterable[GgufTensor]) -> None:
    bad = [tensor for tensor in tensors if tensor.type.dtype is None]
    if not bad:
        return
    kinds = sorted({tensor.type.name for tensor in bad})
    known = ", ".join(kind.name for kind in GGML_TYPES.values() if kind.dtype is not None)
    raise metadata.wrong(
        f"stores {len(bad)} tensors, such as '{bad[0].name}', as {', '.join(kinds)}, which forge "
        f"does not decode; it reads {known}. Take another quantization of the model, or rewrite "
        "this one: llama-quantize --allow-requantize FILE NEW_FILE Q8_0"
    )


def _all_placed(
    family: Family, metadata: Metadata, tensors: Mapping[str, GgufTensor]
) -> Iterator[tuple[str, Placed]]:
    layers = dict(family.layers)
    for marker, names in family.variants.items():
        if any(name.startswith("blk.") and f".{marker}." in name for name in tensors):
            layers |= names
    num_layers = metadata.positive(".block_count")
    if num_layers > _MAX_LAYERS:
        raise metadata.wrong(f"states {num_layers} layers; forge reads up to {_MAX_LAYERS}")
    for name, tensor in tensors.items():
        if name in ROPE_FACTORS:
            continue
        if match := _LAYER.fullmatch(name):
            if int(match["layer"]) >= num_layers:
                raise metadata.wrong(
                    f"holds '{name}', but states {num_layers} layers, counted from 0"
                )
            prefix = f"{family.layer_prefix}{int(match['layer'])}."
            yield from _of_layer(family, metadata, tensor, layers, prefix, match)
        else:
            match = _OUTSIDE.fullmatch(name)
            if match is None or match["stem"] not in family.outside:
                raise _unknown(metadata, tensor)
            theirs = f"{family.outside[match['stem']]}.{match['suffix']}"
            yield theirs, _one(family, metadata, tensor, match["stem"])


def _of_layer(
    family: Family,
    metadata: Metadata,
    tensor: GgufTensor,
    layers: Mapping[str, str],
    prefix: str,
    match: re.Match[str],
) -> Iterator[tuple[str, Placed]]:
    stem, suffix = match["stem"], match["suffix"]
    if stem in layers:
        yield f"{prefix}{layers[stem]}.{suffix}", _one(family, metadata, tensor, stem)
        return
    alone = _ONE_EXPERT.fullmatch(stem)
    stacked = stem if alone is None else f"{alone['stem']}_exps"
    if stacked not in family.experts or suffix != "weight":
        raise _unknown(metadata, tensor)
    theirs = f"{prefix}{family.experts[stacked]}.weight"
    if alone is not None:
        yield theirs.format(int(alone["expert"])), _one(family, metadata, tensor, stem)
        return
    count = metadata.positive(".expert_count")
    if len(tensor.shape) != 3 or tensor.shape[0] != count or count > _MAX_EXPERTS:
        raise metadata.wrong(
            f"holds '{tensor.name}' of shape {list(tensor.shape)}, but states {count} experts"
        )
    for expert in range(count):
        yield (
            theirs.format(expert),
            Placed(tensor, tensor.shape[1:], _dtype(tensor), part=expert, num_parts=count),
        )


def _one(family: Family, metadata: Metadata, tensor: GgufTensor, stem: str) -> Placed:
    shape = tensor.shape
    order = _order(family, metadata, tensor, stem)
    # Converters drop dimensions of 1.
    if stem in family.vectors and len(shape) == 1:
        shape = (1, *shape)
    transposed = stem in family.transposed and len(shape) == 2
    if transposed:
        shape = (shape[1], shape[0])
    minus_one = family.norms_plus_one and stem.endswith("norm")
    dtype = "F32" if minus_one else _dtype(tensor)
    return Placed(tensor, shape, dtype, order=order, transposed=transposed, minus_one=minus_one)


def _order(family: Family, metadata: Metadata, tensor: GgufTensor, stem: str) -> RowOrder | None:
    kind = family.orders.get(stem)
    if kind is None:
        return None
    heads, groups = heads_of(metadata)
    order = RowOrder(kind, groups if stem == "attn_k" else heads, groups)
    num_rows = tensor.shape[0]
    # A vector is a column of rows of one element, which no block of codes is.
    is_whole = len(tensor.shape) == 2 or tensor.type.elements == 1
    if not order.divides(num_rows) or not is_whole:
        raise metadata.wrong(
            f"holds '{tensor.name}' of shape {list(tensor.shape)} in {tensor.type.name}, which "
            f"does not fit {heads} heads with {groups} key-value heads"
        )
    return order


def heads_of(metadata: Metadata) -> tuple[int, int]:
    """Return the number of attention heads, and of key-value heads.

    Raises:
        CheckpointError: They are missing, or differ between layers.
    """
    for key in (".attention.head_count", ".attention.head_count_kv"):
        if key in metadata and metadata.is_list(key):
            raise metadata.wrong(
                f"has another number of heads in each layer ('{metadata.architecture}{key}'), "
                "which no family that forge reads has"
            )
    heads = metadata.positive(".attention.head_count")
    return heads, metadata.positive(".attention.head_count_kv", heads)


def _dtype(tensor: GgufTensor) -> str:
    assert tensor.type.dtype is not None
    return tensor.type.dtype


def _unknown(metadata: Metadata, tensor: GgufTensor) -> CheckpointError:
    return metadata.wrong(
        f"holds the tensor '{tensor.name}', which forge does not know in a model of the "
        f"architecture '{metadata.architecture}'. Leaving it out would make another model; use the "
        "original model"
    )

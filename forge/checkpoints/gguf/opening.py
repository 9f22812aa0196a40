"""Open a GGUF model as if it were a folder of Hugging Face's: its tensors, config and tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge.checkpoints.folder import read_json_object
from forge.checkpoints.gguf.comparison import compare_config
from forge.checkpoints.gguf.configs import derived_config, is_mistral
from forge.checkpoints.gguf.header import GgufHeader, GgufTensor, read_gguf_header
from forge.checkpoints.gguf.layout import Placed, family_of, lay_out
from forge.checkpoints.gguf.metadata import Metadata
from forge.checkpoints.gguf.sidecars import folder_of, sidecars_of
from forge.checkpoints.gguf.source import GgufSource
from forge.core.dtypes import DTYPES
from forge.core.errors import CheckpointError

_CONFIG_FILE: Final = "config.json"
_MAX_CONFIG_BYTES: Final = 4 << 20
_QUANTIZATION_KEYS: Final = ("quantization_config", "compression_config")


@dataclass(frozen=True, slots=True)
class OpenedGguf:
    """A GGUF model.

    Attributes:
        root: A folder with its configuration and tokenizer files, until the process ends.
        config: Its ``config.json``.
        source: Its tensors.
        notices: What the user should know about how it was read.
    """

    root: Path
    config: Mapping[str, object]
    source: GgufSource
    notices: tuple[str, ...]


def open_gguf(files: Sequence[Path], *, label: str) -> OpenedGguf:
    """Open a model; only headers are read.

    Args:
        files: Its files, in order.
        label: What the user typed, for messages.

    Returns:
        The model.

    Raises:
        CheckpointError: A file is damaged or hostile, or the model is one that forge cannot
            express in Hugging Face's terms.
    """
    headers = [read_gguf_header(file) for file in files]
    metadata = Metadata(headers[0])
    tensors = _tensors(headers, metadata)
    family = family_of(metadata)
    placed = lay_out(family, metadata, tensors)
    beside = files[0].parent
    notices = [_precision(label, tensors)]
    config = read_json_object(beside, _CONFIG_FILE, limit=_MAX_CONFIG_BYTES)
    if config is None:
        dtype = DTYPES[_usual_dtype(placed)].torch_name
        config = derived_config(metadata, tensors, dtype=dtype)
        notices.append(_derived(label, metadata, config))
    else:
        # Published beside a GGUF, it may be that of the same model in another quantization.
        config = {key: value for key, value in config.items() if key not in _QUANTIZATION_KEYS}
        found = compare_config(config, family, metadata, tensors)
        notices += [f"{label}: {difference}" for difference in found]
    sidecars, more = sidecars_of(metadata, config, beside=beside)
    notices += [f"{label}: {text}" for text in more]
    stated = [file.stat() for file in files]
    key = (
        *(file.resolve() for file in files),
        *((status.st_size, status.st_mtime_ns) for status in stated),
        *((name, hashlib.sha256(content).digest()) for name, content in sidecars.items()),
    )
    source = GgufSource(label, headers, placed)
    return OpenedGguf(folder_of(key, sidecars), config, source, tuple(notices))


def _tensors(headers: Sequence[GgufHeader], metadata: Metadata) -> dict[str, GgufTensor]:
    """Join the tensors of all pieces, and check that they are pieces of one model."""
    tensors: dict[str, GgufTensor] = {}
    for number, header in enumerate(headers):
        piece = Metadata(header)
        count, own = piece.whole("split.count", 1), piece.whole("split.no", 0)
        if (count, own) != (len(headers), number):
            raise CheckpointError(
                f"'{header.path}' says that it is piece {own} of {count}, counted from "
                f"0, but by its name it is piece {number} of {len(headers)}. Restore the names "
                "that the pieces were published under."
            )
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise CheckpointError(
                    f"The tensor '{name}' is in both '{tensors[name].file.name}' and "
                    f"'{header.path.name}'."
                )
            tensors[name] = tensor
    total = metadata.whole("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise metadata.wrong(
            f"states {total} tensors in all pieces, which hold {len(tensors)}. A piece is that of "
            "another model"
        )
    if not tensors:
        raise metadata.wrong("holds no tensors, only a vocabulary")
    return tensors


def _precision(label: str, tensors: Mapping[str, GgufTensor]) -> str:
    counts: dict[str, int] = {}
    for tensor in tensors.values():
        counts[tensor.type.name] = counts.get(tensor.type.name, 0) + 1
    listing = ", ".join(
        f"{count} {name}" for name, count in sorted(counts.items(), key=lambda row: -row[1])
    )
    if all(tensor.type.is_stored for tensor in tensors.values()):
        return f"{label} is read from GGUF, its weights as they are stored: {listing} tensors."
    bits = sum(tensor.nbytes for tensor in tensors.values()) * 8
    elements = sum(tensor.numel for tensor in tensors.values())
    return (
        f"{label} is a GGUF, not the model in full precision: its weights were quantized to "
        f"{bits / elements:.2f} bits each ({listing} tensors) and are decoded to float32. What is "
        "made of them carries that error."
    )


def _derived(label: str, metadata: Metadata, config: Mapping[str, object]) -> str:
    text = f"{label}: config.json was derived from the GGUF's metadata"
    kind = config["model_type"]
    if metadata.architecture != "llama" or kind == "mixtral":
        return f"{text}."
    because = "its name says so" if is_mistral(metadata) else "it does not call itself a Mistral"
    return (
        f"{text}, as that of a {kind} model, because {because}; GGUF calls both 'llama'. "
        "A config.json beside the file would be used instead."
    )


def _usual_dtype(placed: Mapping[str, Placed]) -> str:
    """Return the type of most elements."""
    counts: dict[str, int] = {}
    for part in placed.values():
        elements = part.tensor.numel // part.num_parts
        counts[part.dtype] = counts.get(part.dtype, 0) + elements
    return max(counts, key=lambda dtype: counts[dtype])

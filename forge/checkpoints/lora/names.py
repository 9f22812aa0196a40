"""What a tensor of an adapter is, from its name, and which tensor of the model it means.

PEFT writes ``base_model.model.`` and the module's name in the model that was trained, then what
the tensor is to that module:

    .lora_A.weight  .lora_B.weight            factors of a linear layer; a bias may follow B
    .lora_embedding_A  .lora_embedding_B      factors of an embedding, transposed
    .lora_magnitude_vector                    DoRA's magnitudes
    .ia3_l                                    IA³'s vector
    .token_adapter.trainable_tokens_delta     rows of an embedding
    .weight  .bias  .base_layer.weight ...    a whole tensor, to be taken instead of the model's
    .original_module.weight                   the untrained copy of a whole tensor

Tools that write a model's state as it is leave the adapter's name, ``default``, behind the part.
The module's name need not be that of the file: transformers loads a file of ``layers.0.`` as
``model.layers.0.``, and a Mixtral of ``block_sparse_moe`` as ``mlp``.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Final, Literal

Role = Literal[
    "A", "B", "bias_of_B", "embedding_A", "embedding_B", "magnitude", "ia3", "tokens",
    "whole", "untrained",
]  # fmt: skip

_PREFIXES: Final = ("base_model.model.", "base_model.")
_SUFFIXES: Final[tuple[tuple[Role, re.Pattern[str]], ...]] = (
    ("A", re.compile(r"\.lora_A(\.default)?\.weight$")),
    ("B", re.compile(r"\.lora_B(\.default)?\.weight$")),
    ("bias_of_B", re.compile(r"\.lora_B(\.default)?\.bias$")),
    ("embedding_A", re.compile(r"\.lora_embedding_A(\.default)?$")),
    ("embedding_B", re.compile(r"\.lora_embedding_B(\.default)?$")),
    ("magnitude", re.compile(r"\.lora_magnitude_vector(\.default)?(\.weight)?$")),
    ("ia3", re.compile(r"\.ia3_l(\.default)?$")),
    ("tokens", re.compile(r"(\.token_adapter)?\.trainable_tokens_delta(\.default)?$")),
)
_UNTRAINED: Final = re.compile(r"\.original_module\.[^.]+$")
_WRAPPERS: Final = re.compile(
    r"(\.token_adapter)?(\.base_layer|\.modules_to_save(\.default)?)?(?=\.[^.]+$)"
)
_OUTER: Final = ("model.", "transformer.", "gpt_neox.", "language_model.", "model.language_model.")
_SWAPPED: Final = (
    ("model.language_model.", "language_model.model."),
    ("language_model.model.", "model.language_model."),
    (".mlp.", ".block_sparse_moe."),
    (".block_sparse_moe.", ".mlp."),
)


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of an adapter.

    Attributes:
        name: In the adapter's file.
        role: What it is.
        place: For ``whole`` and ``untrained``, the tensor that it stands for, else the module
            that it belongs to; as PEFT has them.
    """

    name: str
    role: Role
    place: str


def part_of(name: str) -> Part | None:
    """Return what a tensor of an adapter is.

    Args:
        name: In the adapter's file.

    Returns:
        The part, or ``None`` when the name is none that PEFT gives to a part forge knows.
    """
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    plain = name.removeprefix(prefix)
    for role, suffix in _SUFFIXES:
        found = suffix.search(plain)
        if found and found.start():
            return Part(name, role, plain[: found.start()])
    if _UNTRAINED.search(plain):
        return Part(name, "untrained", plain.replace(".original_module.", ".", 1))
    if ".lora_" in plain or ".ia3_" in plain or "." not in plain:
        return None
    return Part(name, "whole", _WRAPPERS.sub("", plain, count=1))


def find_in(known: Container[str], name: str) -> str | None:
    """Return the tensor of a model's files that a name in the loaded model means.

    Args:
        known: Names in the files.
        name: A tensor as PEFT has it.

    Returns:
        The name in the files, or ``None`` when there is none.
    """
    return next((candidate for candidate in _candidates(name) if candidate in known), None)


def _candidates(name: str) -> Iterator[str]:
    yield name
    for outer in _OUTER:
        yield outer + name
        if name.startswith(outer):
            yield name[len(outer) :]
    for mine, theirs in _SWAPPED:
        if mine in name:
            yield name.replace(mine, theirs, 1)

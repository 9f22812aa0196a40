"""Read the keys that say what the result looks like: element types, shard size, chat template."""

from __future__ import annotations

from typing import Final

from forge.core.catalog import did_you_mean
from forge.core.dtypes import BY_TORCH_NAME
from forge.recipes.findings import Findings, shown
from forge.recipes.merge_entries import parse_size
from forge.recipes.place import KeyPath

CHAT_TEMPLATES: Final = ("alpaca", "chatml", "exaone", "llama3", "mistral")
"""Chat templates that a recipe may name; ``auto`` and Jinja text are the other choices."""

_WRITABLE: Final = tuple(name for name, row in BY_TORCH_NAME.items() if row.mergeable)
_HABITS: Final = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "double": "float64",
    "fp64": "float64",
}


def read_dtype(text: str | None, path: KeyPath, findings: Findings) -> str | None:
    """Read an element type.

    Args:
        text: Its torch name, ``torch.`` before it or not; ``None`` when absent.
        path: Where it stands.
        findings: Receives a problem when forge does not write that type.

    Returns:
        The torch name without ``torch.``, or ``None``.
    """
    if text is None:
        return None
    name = text.removeprefix("torch.")
    if name in _WRITABLE:
        return name
    known = ", ".join(_WRITABLE)
    if name in BY_TORCH_NAME:
        findings.add(path, f"A merge cannot be written as {name}. Choose one of {known}.")
        return None
    habit = _HABITS.get(name.lower())
    guess = f" Did you mean '{habit}'?" if habit else did_you_mean(name, _WRITABLE)
    findings.add(path, f"{shown(text)} is no element type.{guess} Known: {known}.")
    return None


def read_shard_size(text: str, findings: Findings) -> str:
    """Read ``max_shard_size``.

    Args:
        text: A size such as ``5GB``.
        findings: Receives a problem when it is none.

    Returns:
        The text.
    """
    try:
        parse_size(text)
    except ValueError:
        findings.add(
            ("max_shard_size",), f"{shown(text)} is no size. Write, say, '5GB' or '500MB'."
        )
    return text


def read_chat_template(text: str | None, findings: Findings) -> str | None:
    """Read ``chat_template``.

    Args:
        text: ``auto``, a name of :data:`CHAT_TEMPLATES`, Jinja text, or ``None``.
        findings: Receives a problem when it is none of them.

    Returns:
        The text, or ``None``.
    """
    if text is None or text == "auto" or text in CHAT_TEMPLATES:
        return text
    path: KeyPath = ("chat_template",)
    for opening, closing in (("{{", "}}"), ("{%", "%}")):
        if opening in text:
            if closing not in text:
                findings.add(path, f"This Jinja template opens '{opening}' and never closes it.")
            return text
    names = ("auto", *CHAT_TEMPLATES)
    findings.add(
        path,
        f"{shown(text)} is neither a Jinja template nor one of {', '.join(names)}."
        f"{did_you_mean(text, names)}",
    )
    return text

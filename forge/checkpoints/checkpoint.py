"""A model that a recipe refers to, resolved: its folder, its configuration, its headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge.checkpoints.folder import read_json_object
from forge.checkpoints.hub import remote_source, resolve
from forge.checkpoints.source import TensorSource, open_safetensors
from forge.core.errors import CheckpointError
from forge.recipes.reference import ModelReference

CONFIG_FILE: Final = "config.json"
MAX_CONFIG_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A resolved model. No weights are in memory.

    Attributes:
        reference: What the recipe says.
        root: Local folder with its configuration and tokenizer files.
        revision: Resolved commit of a model from the Hub, else ``None``.
        config: Its ``config.json``.
        source: Its tensors; for a model whose weights were not downloaded, headers only.
        notices: What the user should know about how it was read.
        lora_revision: Resolved commit of an adapter from the Hub, else ``None``.
    """

    reference: ModelReference
    root: Path
    revision: str | None
    config: Mapping[str, object]
    source: TensorSource
    notices: tuple[str, ...] = ()
    lora_revision: str | None = None

    @property
    def local_paths(self) -> tuple[str, ...]:
        """Paths in the reference, the adapter's included, that are folders of this machine."""
        paths = [] if self.revision is not None else [self.reference.path]
        if self.reference.lora is not None and self.lora_revision is None:
            paths.append(self.reference.lora.path)
        return tuple(paths)


def open_checkpoint(reference: ModelReference, *, weights: bool = True) -> Checkpoint:
    """Resolve a model and read its configuration and headers.

    Args:
        reference: A local folder or a Hub repository, with or without a LoRA adapter.
        weights: Whether the tensors will be read. When false, a model on the Hub is not
            downloaded: its headers are fetched by range requests.

    Returns:
        The resolved model.

    Raises:
        CheckpointError: The model cannot be found, downloaded or trusted.
    """
    located = resolve(reference, weights=weights)
    config = read_config(located.root, label=str(reference))
    notices: tuple[str, ...] = ()
    source: TensorSource
    if located.headers_only:
        source = remote_source(located, label=str(reference))
    else:
        local = open_safetensors(located.root, label=str(reference))
        source, notices = local, local.notices
    lora_revision: str | None = None
    if reference.lora is not None:
        # Only a LoRA computes what it reads; without one, a check needs no numpy.
        from forge.checkpoints.lora import open_lora

        adapter = resolve(reference.lora, weights=True, adapter=True)
        source = open_lora(source, adapter.root, label=str(reference))
        lora_revision = adapter.revision
    return Checkpoint(
        reference, located.root, located.revision, config, source, notices, lora_revision
    )


def read_config(root: Path, *, label: str) -> Mapping[str, object]:
    """Read a model's ``config.json``.

    Args:
        root: The model's folder.
        label: What the user typed, for messages.

    Returns:
        The configuration.

    Raises:
        CheckpointError: It is missing, too large, or not a JSON object.
    """
    config = read_json_object(root, CONFIG_FILE, limit=MAX_CONFIG_BYTES)
    if config is None:
        raise CheckpointError(
            f"'{label}' has no {CONFIG_FILE} in '{root}'. Is it the folder of a model?"
        )
    return config

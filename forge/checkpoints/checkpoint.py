"""A model that a recipe refers to, resolved: its folder, its configuration, its headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forge.checkpoints.companions import ADAPTER_CONFIG_FILE
from forge.checkpoints.folder import read_json_object
from forge.checkpoints.gguf.files import gguf_files
from forge.checkpoints.hub import remote_source, resolve
from forge.checkpoints.quantized import quantization_of
from forge.checkpoints.source import TensorSource, open_safetensors
from forge.core.errors import CheckpointError
from forge.recipes.reference import ModelReference

if TYPE_CHECKING:
    from forge.checkpoints.statistics_file import Statistics

CONFIG_FILE: Final = "config.json"
MAX_CONFIG_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A resolved model. No weights are in memory.

    Attributes:
        reference: What the recipe says.
        root: Local folder with its configuration and tokenizer files; for a GGUF, a temporary one.
        revision: Resolved commit of a model from the Hub, else ``None``.
        config: Its ``config.json``; of a quantized one that is read as plain weights, without
            what it says about quantization.
        source: Its tensors; for a model whose weights were not downloaded, headers only.
        notices: What the user should know about how it was read.
        lora_revision: Resolved commit of an adapter from the Hub, else ``None``.
        adapter_tokenizer: Folder of an adapter that brings a tokenizer along, else ``None``.
        warnings: Those of the notices that are probably not what was meant.
        parts: Of a stage of a recipe, whose tensors are computed, the models that it is made of;
            empty for a model that lies somewhere.
        statistics: What was collected about it for the method that merges it, or ``None``.
    """

    reference: ModelReference
    root: Path
    revision: str | None
    config: Mapping[str, object]
    source: TensorSource
    notices: tuple[str, ...] = ()
    lora_revision: str | None = None
    adapter_tokenizer: Path | None = None
    warnings: tuple[str, ...] = ()
    parts: Mapping[ModelReference, Checkpoint] = field(default_factory=dict)
    statistics: Statistics | None = None

    @property
    def tokenizer_root(self) -> Path:
        """Folder with its tokenizer files."""
        return self.adapter_tokenizer or self.root

    @property
    def local_paths(self) -> tuple[str, ...]:
        """Paths in the reference, the adapter's included, that are folders of this machine."""
        if self.parts:
            return tuple(path for part in self.parts.values() for path in part.local_paths)
        paths = [] if self.revision is not None else [self.reference.path]
        if self.reference.lora is not None and self.lora_revision is None:
            paths.append(self.reference.lora.path)
        return tuple(paths)


def open_checkpoint(
    reference: ModelReference, *, weights: bool = True, stored: bool = False
) -> Checkpoint:
    """Resolve a model and read its configuration and headers.

    Args:
        reference: A local folder, a GGUF file or a Hub repository, with or without a LoRA adapter.
        weights: Whether the tensors will be read. When false, a model on the Hub is not
            downloaded: its headers are fetched by range requests.
        stored: Whether a quantized model's tensors are wanted as they lie in its files, to run or
            convert them. By default they are plain weights, decoded when they are read.

    Returns:
        The resolved model.

    Raises:
        CheckpointError: The model cannot be found, downloaded or trusted.
        IncompatibleError: It is quantized in a way that cannot be decoded; the message names it.
    """
    located = resolve(reference, weights=weights)
    root = located.root
    notices: tuple[str, ...] = ()
    source: TensorSource
    files = () if located.repository else gguf_files(root, label=str(reference))
    if files:
        if stored:
            raise CheckpointError(
                f"'{reference}' is a GGUF, which forge merges and quantizes, but neither runs nor "
                "converts as it is. Run it with llama.cpp, or write it as safetensors first, by "
                "a merge of this one model (docs/gguf.md)."
            )
        from forge.checkpoints.gguf.opening import open_gguf

        opened = open_gguf(files, label=str(reference))
        root, config, source, notices = opened.root, opened.config, opened.source, opened.notices
    elif located.headers_only:
        config = read_config(root, label=str(reference))
        source = remote_source(located, label=str(reference))
    else:
        config = read_config(root, label=str(reference))
        local = open_safetensors(root, label=str(reference))
        source, notices = local, local.notices
    found = None if stored else quantization_of(config, map(source.info, source.names()))
    if found is not None:
        # Only what must be decoded needs numpy.
        from forge.checkpoints.dequantizing.families import dequantize

        plain = dequantize(source, config, found=found)
        source, config, notices = plain.source, plain.config, (*notices, *plain.notices)
    lora_revision: str | None = None
    tokenizer: Path | None = None
    warnings: tuple[str, ...] = ()
    if reference.lora is not None:
        # Only a LoRA computes what it reads; without one, a check needs no numpy.
        from forge.checkpoints.lora.adapted import open_adapter

        adapter = resolve(reference.lora, weights=True, adapter=True)
        adapted = open_adapter(source, config, adapter.root, home=root, label=str(reference))
        source, config, warnings = adapted.source, adapted.config, adapted.warnings
        tokenizer, notices = adapted.tokenizer_root, (*notices, *adapted.notices)
        lora_revision = adapter.revision
    return Checkpoint(
        reference, root, located.revision, config, source, notices, lora_revision,
        tokenizer, warnings,
    )  # fmt: skip


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
    if config is None and (root / ADAPTER_CONFIG_FILE).is_file():
        name = root if "+" in label else label
        raise CheckpointError(
            f"'{name}' is an adapter, not a model. Write it behind its base model: 'base+{name}'."
        )
    if config is None:
        raise CheckpointError(
            f"'{label}' has no {CONFIG_FILE} in '{root}'. Is it the folder of a model?"
        )
    return config

"""Put an adapter in PEFT's layout on a model: its tensors, its config, its tokenizer.

Forms that PEFT merges are merged alike, tensor by tensor; see the files of this room for each. An
adapter's folder that holds a tokenizer brings it along, because a tokenizer belongs to the
embedding rows that were trained with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge.checkpoints.companions import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    read_tokenizer_files,
)
from forge.checkpoints.folder import contained_file
from forge.checkpoints.header import read_header
from forge.checkpoints.lora.config import read_adapter_config
from forge.checkpoints.lora.fitting import Fitting
from forge.checkpoints.lora.names import Part, part_of
from forge.checkpoints.lora.placing import place
from forge.checkpoints.lora.source import AdapterSource
from forge.checkpoints.lora.vocabulary import vocabulary_of, with_rows
from forge.checkpoints.source import SafetensorsSource, TensorSource
from forge.core.errors import CheckpointError

_PICKLED: Final = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
_VOCABULARIES: Final = (
    "tokenizer.json", "tokenizer.model", "tekken.json", "spiece.model",
    "sentencepiece.bpe.model", "vocab.json", "vocab.txt",
)  # fmt: skip
"""Files that make a tokenizer; the others of one only describe it."""
_PACKED: Final = re.compile(r"[-_.](unsloth|bnb|[48]-?bit)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Adapted:
    """A model with an adapter on it.

    Attributes:
        source: Its tensors.
        config: Its ``config.json``, with the number of tokens and the tie that it now has.
        tokenizer_root: The adapter's folder, when that holds a tokenizer, else ``None``.
        notices: What the user should know.
        warnings: Those of the notices that are probably not what was meant.
    """

    source: AdapterSource
    config: Mapping[str, object]
    tokenizer_root: Path | None
    notices: tuple[str, ...]
    warnings: tuple[str, ...]


def open_adapter(
    base: TensorSource, config: Mapping[str, object], root: Path, *, home: Path, label: str
) -> Adapted:
    """Put an adapter on a model.

    Args:
        base: The model's tensors.
        config: The model's ``config.json``.
        root: The adapter's folder, with ``adapter_config.json`` and ``adapter_model.safetensors``.
        home: The model's folder.
        label: What the user typed for both, for messages.

    Returns:
        The model as the adapter changes it.

    Raises:
        CheckpointError: The adapter is incomplete, uses something that forge does not do, or does
            not fit the model.
    """
    weights = contained_file(root, ADAPTER_WEIGHTS_FILE)
    settings_file = contained_file(root, ADAPTER_CONFIG_FILE)
    if settings_file is None:
        raise CheckpointError(f"The adapter of '{label}' has no {ADAPTER_CONFIG_FILE} in '{root}'.")
    if weights is None:
        raise CheckpointError(_explain_no_weights(root, label))
    settings = read_adapter_config(root)
    adapter = SafetensorsSource(str(root), {weights: read_header(weights)})
    vocabulary = vocabulary_of(base, config)
    fit = Fitting(base, adapter, settings, vocabulary, model_type=config.get("model_type"))
    place(fit, _parts(adapter))
    tokenizer_root = _tokenizer_root(root)
    notices = list(fit.notices)
    if tokenizer_root is not None and read_tokenizer_files(root) != read_tokenizer_files(home):
        notices.append(
            f"The tokenizer is that of the adapter '{root}', which differs from the model's."
        )
    elif tokenizer_root is None and fit.rows is not None:
        notices.append(
            f"The adapter '{root}' changes the vocabulary but brings no tokenizer; the model's is "
            "kept, and does not know the new tokens."
        )
    warnings = _doubts_of_base(settings.base, config, label=label, home=home)
    source = AdapterSource(base, adapter, fit.plans, others=(settings_file,), label=label)
    return Adapted(
        source,
        with_rows(config, vocabulary, rows=fit.rows, untied=fit.untied),
        tokenizer_root,
        (*notices, *warnings),
        warnings,
    )


def _parts(adapter: SafetensorsSource) -> list[Part]:
    parts: list[Part] = []
    for name in adapter.names():
        part = part_of(name)
        if part is None:
            raise CheckpointError(
                f"The adapter '{adapter.label}' holds '{name[:200]}', which is not a part of an "
                "adapter that forge knows. Merge it with PEFT (merge_and_unload) and use the "
                "result as the model."
            )
        parts.append(part)
    if not parts:
        raise CheckpointError(f"The adapter '{adapter.label}' holds no tensors.")
    return parts


def _explain_no_weights(root: Path, label: str) -> str:
    start = f"The adapter of '{label}' has no {ADAPTER_WEIGHTS_FILE} in '{root}'"
    if any((root / name).exists() for name in _PICKLED):
        return (
            f"{start}, only pickled weights, which can run any code when they are loaded. Load it "
            "with PEFT where you trust it, and save it again with save_pretrained, which writes "
            "safetensors."
        )
    return f"{start}. Download or save it again."


def _tokenizer_root(root: Path) -> Path | None:
    has_vocabulary = any(contained_file(root, name) is not None for name in _VOCABULARIES)
    return root if has_vocabulary else None


def _doubts_of_base(
    stated: str | None, config: Mapping[str, object], *, label: str, home: Path
) -> tuple[str, ...]:
    """Say so when an adapter names another model than it is put on; only names are compared."""
    if stated is None:
        return ()
    own = config.get("_name_or_path")
    names = [label.partition("+")[0].partition("@")[0], str(home.resolve())]
    names += [own] if isinstance(own, str) and own else []
    if _plain(stated) in map(_plain, names):
        return ()
    return (
        f"The adapter of '{label}' says that it was trained on '{stated[:200]}'. If that is not "
        "the model that it is put on here, the result is neither.",
    )


def _plain(name: str) -> str:
    """Return the last part of a path, without what names its packing; that is another file."""
    last = name.rstrip("/").rpartition("/")[2]
    while (shorter := _PACKED.sub("", last)) != last:
        last = shorter
    return last.casefold()

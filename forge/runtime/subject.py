"""Say what a model is before it is measured: its fingerprint, and what tables show of it.

The fingerprint is a digest of the bytes that decide what a model predicts: weights,
configuration, tokenizer, chat template, adapter. It is taken from the files at each run, at the
speed at which they are read, and never from a time stamp or a manifest's word: one changed byte is
another model. Cards, licences and where the folder lies do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from forge.architectures.names import architecture_of
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.folder import contained_file, read_bytes
from forge.checkpoints.hashing import record_files
from forge.checkpoints.manifest_reader import Manifest, read_manifest
from forge.core.errors import CheckpointError, IncompatibleError, RecipeError
from forge.formats.catalog import FORMATS, identify
from forge.merge.diagnose import layer_rows, place_of, read_record
from forge.recipes.yaml_reader import parse_yaml
from forge.results.records import ModelRecord, digest_of

_DECIDING: Final = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "chat_template.jinja", "chat_template.json", "adapter_config.json",
)  # fmt: skip
"""Files that decide what is predicted, beside the weights."""
_MAX_CARD_BYTES: Final = 1 << 20
_UNSHOWN: Final = frozenset({"tensors", "files"})
"""Of a manifest, what no report shows: a line for each tensor and file."""


def describe(checkpoint: Checkpoint, *, label: str | None = None) -> ModelRecord:
    """Describe a model, and take its fingerprint.

    Args:
        checkpoint: The model; all of its files that decide predictions are read once.
        label: Its name in tables; by default the last part of what the user typed.

    Returns:
        Its record. ``manifest`` has what the merge measured by place under ``statistics``, and
        what a quantization measured by module under ``modules``.

    Raises:
        CheckpointError: A file cannot be read, or a manifest is malformed.
    """
    config, source = checkpoint.config, checkpoint.source
    manifest = read_manifest(checkpoint.root)
    declared = config.get("quantization_config")
    row = identify(declared) if isinstance(declared, Mapping) else None
    variant: Mapping[str, object] = {} if manifest is None else manifest.table("variant")
    infos = [source.info(name) for name in source.names()]
    stated = None if manifest is None else manifest.content.get("num_parameters")
    unpacked = sum(info.numel for info in infos) if declared is None else None
    dtype = config.get("dtype", config.get("torch_dtype"))
    bits = variant.get("bits", _number(declared, "bits", "w_bit"))
    group_size = variant.get("group_size", _number(declared, "group_size", "q_group_size"))
    return ModelRecord(
        fingerprint=_fingerprint(checkpoint),
        label=label or _label(checkpoint),
        kind="local",
        location=str(checkpoint.reference),
        architecture=_architecture(checkpoint),
        num_parameters=stated if isinstance(stated, int) else unpacked,
        weight_bytes=sum(path.stat().st_size for path in source.files()),
        dtype=dtype if isinstance(dtype, str) else None,
        format=None if row is None else row.name,
        method=_method(manifest),
        bits=bits if isinstance(bits, int) else _bits_of(row.name if row else None),
        group_size=group_size if isinstance(group_size, int) else None,
        licence=_licence(checkpoint.root),
        manifest=None if manifest is None else _shown(checkpoint, manifest),
    )


def _fingerprint(checkpoint: Checkpoint) -> str:
    weights = checkpoint.source.files()
    folders = dict.fromkeys((checkpoint.root, *(path.parent for path in weights)))
    paths = [
        path
        for folder in folders
        for name in _DECIDING
        if (path := contained_file(folder, name)) is not None
    ]
    records = record_files((*weights, *paths))
    return digest_of("model", [[record.name, record.digest] for record in records])


def _label(checkpoint: Checkpoint) -> str:
    reference = checkpoint.reference
    if checkpoint.revision is not None:
        name = reference.path
    else:
        folder = Path(reference.path).resolve()
        # Several formats of one quantization lie in folders that are called after the formats.
        name = f"{folder.parent.name}/{folder.name}" if folder.name in FORMATS else folder.name
    if reference.lora is not None:
        name += f"+{Path(reference.lora.path).name}"
    return name


def _architecture(checkpoint: Checkpoint) -> str | None:
    try:
        return architecture_of(checkpoint.config, tensor_names=checkpoint.source.names()).name
    except IncompatibleError:
        return None


def _method(manifest: Manifest | None) -> str | None:
    if manifest is None:
        return None
    recipe = manifest.table("recipe")
    named = recipe.get("merge_method", recipe.get("method"))
    return named if isinstance(named, str) else None


def _number(declared: object, *keys: str) -> object:
    found = declared if isinstance(declared, Mapping) else {}
    return next((found[key] for key in keys if key in found), None)


def _bits_of(format_name: str | None) -> int | None:
    return {"bnb-nf4": 4, "bnb-fp4": 4, "bnb-int8": 8}.get(format_name or "")


def _shown(checkpoint: Checkpoint, manifest: Manifest) -> dict[str, object]:
    try:
        architecture = architecture_of(checkpoint.config, tensor_names=checkpoint.source.names())
    except IncompatibleError:
        architecture = None
    rows = layer_rows(
        (
            read_record(name, claim.num_elements, claim.statistics)
            for name, claim in manifest.tensors.items()
        ),
        lambda name: place_of(architecture, name),
    )
    kept = {key: value for key, value in manifest.content.items() if key not in _UNSHOWN}
    return {**kept, "statistics": [row.as_json() for row in rows]}


def _licence(root: Path) -> str | None:
    """Return the licence that the front matter of the model's card names."""
    try:
        card = read_bytes(root, "README.md", limit=_MAX_CARD_BYTES)
        text = "" if card is None else card.decode("utf-8-sig", "replace")
        if not text.startswith("---"):
            return None
        front = parse_yaml(text.split("---", 2)[1], "README.md").value
    except (CheckpointError, RecipeError):
        # A card is for readers; that it is no YAML says nothing about the model.
        return None
    licence = front.get("license") if isinstance(front, Mapping) else None
    return licence if isinstance(licence, str) else None

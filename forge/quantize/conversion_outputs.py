"""What stands beside converted weights: configuration, tokenizer, card, manifest.

All that was known of the quantized model stays: its tokenizer, its recipe and calibration tokens,
its licence, and of its manifest everything that a change of layout does not touch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from forge import __version__
from forge.architectures.names import architecture_of
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.companions import (
    GENERATION_FILE,
    PROCESSOR_FILES,
    read_companions,
    read_tokenizer_files,
)
from forge.checkpoints.folder import read_bytes, read_json_object
from forge.checkpoints.hashing import FileRecord
from forge.checkpoints.manifest import SCHEMA, library_versions, tensor_entries
from forge.checkpoints.replace import MANIFEST_FILE
from forge.checkpoints.sidecars import config_file, merged_config
from forge.checkpoints.sink import TensorSink
from forge.quantize.conversion import Conversion
from forge.quantize.outputs import RECIPE_FILE, TOKENS_FILE, public_name

KIND: Final = "convert"
_LICENCES: Final = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md")
_CARD: Final = "README.md"
_MAX_MANIFEST_BYTES: Final = 256 << 20
_UNTOUCHED: Final = (
    "recipe",
    "recipe_file",
    "calibration",
    "num_parameters",
    "num_quantized",
    "kept_linears",
    "modules",
    "origin",
)
"""What a manifest says of a quantized model that is true in every layout."""


def sidecars_of(checkpoint: Checkpoint, plan: Conversion) -> dict[str, bytes]:
    """Return every file of the output but weights, index and manifest.

    Args:
        checkpoint: The quantized model.
        plan: What becomes of it.
    """
    architecture = architecture_of(checkpoint.config, tensor_names=checkpoint.source.names())
    config = merged_config(checkpoint.config, architecture, label=str(checkpoint.reference))
    config["quantization_config"] = dict(plan.quantization_config)
    files = dict(config_file(config))
    names = (GENERATION_FILE, *PROCESSOR_FILES, RECIPE_FILE, TOKENS_FILE, *_LICENCES)
    files |= read_companions(checkpoint.root, names)
    files |= read_tokenizer_files(checkpoint.root)
    files[_CARD] = _card(checkpoint, plan)
    return files


def convert_manifest(
    checkpoint: Checkpoint,
    plan: Conversion,
    notices: Sequence[str],
    inputs: Mapping[Path, FileRecord],
    sink: TensorSink,
    files: Mapping[str, FileRecord],
) -> dict[str, object]:
    """Return what ``forge_manifest.json`` says about a conversion.

    Args:
        checkpoint: The quantized model.
        plan: What became of it.
        notices: What was said about the conversion.
        inputs: Records of the model's files.
        sink: Holds digest and method of every tensor.
        files: Records of the output's files.
    """
    former = read_json_object(checkpoint.root, MANIFEST_FILE, limit=_MAX_MANIFEST_BYTES) or {}
    known = {key: former[key] for key in _UNTOUCHED if key in former}
    if former.get("kind") == "quantize":
        # Where the codes come from: the model in full precision, and what computed them.
        known["origin"] = {
            key: former[key] for key in ("forge", "engine", "inputs", "versions") if key in former
        }
    tensors, content_digest = tensor_entries(plan.tensors, sink.done)
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "forge": __version__,
        "conversion": {"from": plan.source_row.name, "to": plan.target_row.name},
        "variant": {
            "format": plan.target_row.name,
            "bits": plan.scheme.bits,
            "group_size": plan.scheme.group_size,
            "double_quant": False,
        },
        "inputs": [
            {
                "model": public_name(checkpoint),
                "role": "source",
                "revision": checkpoint.revision,
                "lora_revision": None,
                "files": [
                    {"name": file.name, **inputs[file].as_json()}
                    for file in checkpoint.source.files()
                ],
            }
        ],
        "models": [],
        "notices": list(notices),
        "versions": library_versions(("numpy", "xxhash")),
        **known,
        "content_digest": content_digest,
        "tensors": tensors,
        "files": {name: record.as_json() for name, record in sorted(files.items())},
    }


def _card(checkpoint: Checkpoint, plan: Conversion) -> bytes:
    """Return a card: the front matter of the source's (licence, base model), and what was done."""
    name = public_name(checkpoint)
    source, target = plan.source_row, plan.target_row
    former = (read_bytes(checkpoint.root, _CARD) or b"").decode("utf-8", "replace")
    head, _, rest = former.partition("\n")
    front, end, _ = rest.partition("\n---\n")
    if head.strip() != "---" or not end:
        front = "library_name: transformers\ntags:\n- forge\n- quantized"
    body = [
        f"# {name.rpartition('/')[2]}, {target.title}", "",
        f"Converted with forge from `{name}`, in {source.title}, without loss: codes, scales and "
        "zero points are the same in another layout.", "",
        "Read by " + ", ".join(["forge", *(reader.name for reader in target.readers)]) + ".", "",
        *([target.notice, ""] if target.notice else []),
        "`forge_manifest.json` records the hashes of all inputs and outputs; "
        "`forge verify` checks them.", "",
    ]  # fmt: skip
    return "\n".join(["---", front, "---", "", *body]).encode()

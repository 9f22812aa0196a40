"""The files of an extracted adapter: what PEFT loads, a card, and the manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from forge import __version__
from forge.adapters.plan import PREFIX, Changed, Pairing
from forge.checkpoints.chat_templates import dump_json
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.companions import ADAPTER_CONFIG_FILE, read_tokenizer_files
from forge.checkpoints.hashing import FileRecord
from forge.checkpoints.layout import PlannedTensor
from forge.checkpoints.manifest import (
    SCHEMA,
    input_entry,
    library_versions,
    manifest_bytes,
    output_entries,
    tensor_entries,
)
from forge.checkpoints.partial import TensorRecord
from forge.checkpoints.replace import MANIFEST_FILE
from forge.core.errors import OutputError
from forge.recipes.reference import ModelReference

KIND = "lora-extract"


def factor_names(change: Changed) -> tuple[str, str]:
    """Return the names of A and B in the adapter.

    Args:
        change: A tensor that is held by factors.
    """
    start = f"{PREFIX}{change.module}"
    if change.is_embedding:
        return f"{start}.lora_embedding_A", f"{start}.lora_embedding_B"
    return f"{start}.lora_A.weight", f"{start}.lora_B.weight"


def planned_tensors(
    changes: Sequence[Changed],
    ranks: Mapping[str, int],
    whole: Mapping[str, str],
    *,
    pairing: Pairing,
    dtype: str,
) -> tuple[PlannedTensor, ...]:
    """Return what the adapter will hold.

    Args:
        changes: What differs.
        ranks: Ranks of the tensors that are held by factors.
        whole: The base's names of the tensors that are held whole, by their names in the adapter.
        pairing: The models.
        dtype: Type of the factors.
    """
    tensors = []
    for change in changes:
        if change.fate != "factors":
            continue
        rows, columns = change.shape
        rank = ranks[change.name]
        # What is added is B·A, or its transpose where the tensor is stored [in, out].
        out, inner = (columns, rows) if is_flipped(change) else (rows, columns)
        a, b = factor_names(change)
        tensors += [PlannedTensor(a, (rank, inner), dtype), PlannedTensor(b, (out, rank), dtype)]
    for stored, name in whole.items():
        tuned = pairing.pairs[name][0]
        info = tuned.source.info(tuned.name)
        tensors.append(PlannedTensor(stored, info.shape, info.dtype))
    return tuple(tensors)


def is_flipped(change: Changed) -> bool:
    """Tell whether the stored tensor is the transpose of B·A."""
    return change.transposed or change.is_embedding


def whole_tensors(changes: Sequence[Changed], pairing: Pairing) -> dict[str, str]:
    """Return the base's names of what is held whole, by the names in the adapter.

    A module is held with all its tensors, because PEFT loads all of them or fails.

    Args:
        changes: What differs.
        pairing: The models.
    """
    factored = {change.module for change in changes if change.fate == "factors"}
    found: dict[str, str] = {}
    for change in changes:
        if change.fate == "bias":
            layer = ".base_layer" if change.module in factored else ""
            found[f"{PREFIX}{change.module}{layer}.bias"] = change.name
        elif change.fate == "whole":
            stem = change.name[: -len(change.leaf)]
            for leaf in ("weight", "bias"):
                if f"{stem}{leaf}" in pairing.pairs:
                    found[f"{PREFIX}{change.module}.{leaf}"] = f"{stem}{leaf}"
            if change.is_embedding and pairing.shares_embedding and pairing.vocabulary.head:
                # PEFT ties what it knows by the name of the head, and loads both.
                found[f"{PREFIX}{pairing.vocabulary.head}"] = change.name
    return found


def adapter_config(
    changes: Sequence[Changed], ranks: Mapping[str, int], pairing: Pairing, base: Checkpoint
) -> dict[str, object]:
    """Return ``adapter_config.json``: alpha is the rank everywhere, so that nothing is scaled.

    Args:
        changes: What differs.
        ranks: Ranks of the tensors that are held by factors.
        pairing: The models.
        base: The base.
    """
    factored = [change for change in changes if change.fate == "factors"]
    rank = max((ranks[change.name] for change in factored), default=1)
    others = {
        f"^{re.escape(change.target)}": ranks[change.name]
        for change in factored
        if ranks[change.name] != rank
    }
    biased = {change.module for change in changes if change.fate == "bias"}
    bias = "none"
    if biased:
        bias = "lora_only" if biased <= {change.module for change in factored} else "all"
    whole = [change for change in changes if change.fate == "whole"]
    saved = list(dict.fromkeys(change.module for change in whole))
    keeps_tie = pairing.shares_embedding and any(change.is_embedding for change in whole)
    if keeps_tie and pairing.vocabulary.head is not None:
        saved.append(pairing.vocabulary.head.removesuffix(".weight"))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": public_name(base),
        "revision": base.revision,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": _targets([one for one in factored if not one.by_parameter], pairing),
        "target_parameters": [one.target for one in factored if one.by_parameter] or None,
        "modules_to_save": saved or None,
        "bias": bias,
        "fan_in_fan_out": any(change.transposed for change in factored),
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        **({"ensure_weight_tying": True} if keeps_tie else {}),
    }


def _targets(factored: Sequence[Changed], pairing: Pairing) -> list[str]:
    """Return the last parts of the modules' names where all such modules have factors, else all."""
    leaves: dict[str, list[str]] = {}
    for change in factored:
        leaves.setdefault(change.module.rpartition(".")[2], []).append(change.module)
    targets: list[str] = []
    for leaf, modules in leaves.items():
        every = [name for name in pairing.pairs if name.endswith((f".{leaf}.weight",))]
        targets += [leaf] if len(every) == len(modules) else modules
    return targets


def sidecars(
    config: Mapping[str, object], tuned: Checkpoint, base: Checkpoint, *, overall: float
) -> dict[str, bytes]:
    """Return every file of the adapter but weights and manifest.

    Args:
        config: ``adapter_config.json``.
        tuned: The fine-tune; its tokenizer goes along where it is not the base's.
        base: The base.
        overall: Share of the energy that is kept.
    """
    files = {ADAPTER_CONFIG_FILE: dump_json(config)}
    tokenizer = read_tokenizer_files(tuned.tokenizer_root)
    if tokenizer != read_tokenizer_files(base.tokenizer_root):
        files |= tokenizer
    return files | {"README.md": _card(tuned, base, overall)}


def _card(tuned: Checkpoint, base: Checkpoint, overall: float) -> bytes:
    front = ["---"]
    if base.revision is not None:
        front.append(f"base_model: {json.dumps(base.reference.path)}")
    front += ["library_name: peft", "tags:", "- forge", "- lora", "---"]
    body = [
        f"# {public_name(tuned).rpartition('/')[2]} as an adapter", "",
        f"What `{public_name(tuned)}` added to `{public_name(base)}`, extracted with forge by "
        f"truncated singular value decomposition. It keeps {overall:.2%} of the energy (the sum "
        "of squares) of the difference.", "",
        "`forge_manifest.json` records the energy of each tensor and the hashes of all inputs and "
        "outputs.", "",
    ]  # fmt: skip
    return "\n".join([*front, "", *body]).encode()


def public_name(checkpoint: Checkpoint) -> str:
    """Return a model's name without the path of a local folder.

    Args:
        checkpoint: The model.
    """

    def name(model: ModelReference, revision: str | None) -> str:
        path = model.path if revision is not None else Path(model.path).resolve().name
        return path if model.revision is None else f"{path}@{model.revision}"

    text = name(checkpoint.reference, checkpoint.revision)
    adapter = checkpoint.reference.lora
    return text if adapter is None else f"{text}+{name(adapter, checkpoint.lora_revision)}"


def add_to_manifest(root: Path, content: dict[str, object], key: str, value: object) -> None:
    """Write what was found after an output appeared into its manifest.

    Args:
        root: The output.
        content: Its manifest; changed as the file is.
        key: What is said.
        value: Plain JSON values.

    Raises:
        OutputError: The manifest cannot be written.
    """
    lists = {name: content.pop(name) for name in ("tensors", "files")}
    content |= {key: value} | lists
    fresh = root / f".{MANIFEST_FILE}.partial"
    try:
        fresh.write_bytes(manifest_bytes(content))
        fresh.replace(root / MANIFEST_FILE)
    except OSError as error:
        raise OutputError(
            f"'{root / MANIFEST_FILE}' cannot be written: {error.strerror}."
        ) from error


def extraction_manifest(
    settings: Mapping[str, object],
    models: Mapping[str, Checkpoint],
    tensors: Sequence[PlannedTensor],
    done: Mapping[str, TensorRecord],
    *,
    energy: Mapping[str, object],
    notices: Sequence[str],
    inputs: Mapping[Path, FileRecord],
    files: Mapping[str, FileRecord],
) -> dict[str, object]:
    """Return what ``forge_manifest.json`` says about an extraction.

    Args:
        settings: What was asked for.
        models: The fine-tune and the base, by role.
        tensors: What was written.
        done: Their records.
        energy: How much there was, how much is kept, and by tensor.
        notices: What was said about the work.
        inputs: Records of the models' files.
        files: Records of the output's files.
    """
    entries, digest = tensor_entries(tensors, done)
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "forge": __version__,
        "recipe": dict(settings),
        "inputs": [
            {
                "model": public_name(checkpoint),
                "role": role,
                "revision": checkpoint.revision,
                "lora_revision": checkpoint.lora_revision,
                "files": [input_entry(inputs[file]) for file in checkpoint.source.files()],
            }
            for role, checkpoint in models.items()
        ],
        "models": [],
        "notices": list(notices),
        "versions": library_versions(("numpy", "xxhash")),
        "energy": dict(energy),
        "content_digest": digest,
        "tensors": entries,
        "files": output_entries(files),
    }

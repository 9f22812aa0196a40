"""Statistics of a model, as ``forge calibrate`` collects them and a merge reads them.

A folder with one or several safetensors files and ``forge_manifest.json``. Each tensor has the name
of a weight of the model:

- ``regmean``: float32 [I, I], the mean of x xᵀ over the inputs x that the weight was multiplied
  with. Weights that read one input share one tensor; the manifest's ``statistics.shared`` says
  which one, by weight.
- ``fisher``: float32 of the weight's own shape, the mean square of the gradient of a token's log
  likelihood.

Statistics belong to weights, not to a name: the manifest holds the hashes of the files that they
were collected from, and a *probe*, a hash of headers and of a few pieces of each file, which tells
two fine-tunes apart before anything large is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge.checkpoints.header import read_header
from forge.checkpoints.manifest_reader import Manifest, read_manifest
from forge.checkpoints.source import SafetensorsSource, TensorSource, open_safetensors
from forge.core.errors import CheckpointError, IncompatibleError

KINDS: Final = ("regmean", "fisher")
_PIECES: Final = 16
_PIECE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of one model.

    Attributes:
        label: What the user typed.
        kind: ``regmean`` or ``fisher``.
        source: The tensors.
        shared: For each weight that has statistics, the tensor that holds them.
        num_tokens: Tokens that they were collected on.
        transposed: Whether the model's linear layers are stored [in, out].
        files: Digest of each weight file of the model, by its name.
    """

    label: str
    kind: str
    source: SafetensorsSource
    shared: Mapping[str, str]
    num_tokens: int
    transposed: bool
    files: Mapping[str, Mapping[str, object]]


def probe(files: Sequence[Path]) -> str:
    """Return a digest that tells two models of one architecture apart at the price of a glance.

    Args:
        files: Weight files, in order.

    Returns:
        Hexadecimal SHA-256 of every file's name, size, header and a few pieces of its values.
    """
    digest = hashlib.sha256()
    for path in files:
        header = read_header(path) if path.suffix == ".safetensors" else None
        start = 0 if header is None else header.data_start
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(min(start, 1 << 26)))
            span = max(size - start - _PIECE_BYTES, 0)
            for number in range(_PIECES):
                file.seek(start + span * number // (_PIECES - 1))
                digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()


def open_statistics(text: str, model: TensorSource, *, weights: bool, kind: str) -> Statistics:
    """Open the statistics of a model; only headers are read.

    Args:
        text: Their folder, as the user typed it.
        model: The model's tensors.
        weights: Whether the model's files must be here, to be compared.
        kind: What is asked for.

    Returns:
        The statistics.

    Raises:
        CheckpointError: There are none, or they are damaged.
        IncompatibleError: They are of another kind, or of another model.
    """
    root = Path(text)
    try:
        manifest = read_manifest(root) if root.is_dir() else None
    except OSError as error:
        raise CheckpointError(f"'{text[:200]}' cannot be read: {error.strerror}.") from error
    if manifest is None or manifest.kind != "statistics":
        raise CheckpointError(
            f"'{text}' holds no statistics. Collect them: forge calibrate MODEL --statistics "
            f"{kind} --out {text}"
        )
    table = manifest.table("statistics")
    found = table.get("kind")
    if found != kind:
        raise IncompatibleError(
            f"'{text}' holds statistics for {found}, but {kind} is asked for. Collect them: forge "
            f"calibrate MODEL --statistics {kind} --out OTHER"
        )
    source = open_safetensors(root, label=text)
    shared = _shared(text, table.get("shared"), source)
    num_tokens = table.get("num_tokens")
    statistics = Statistics(
        text,
        kind,
        source,
        shared,
        num_tokens if type(num_tokens) is int else 0,
        table.get("transposed") is True,
        _files(text, manifest),
    )
    files = model.files()
    # A check does not download, but looks at what is here.
    is_here = weights or (bool(files) and all(file.is_file() for file in files))
    if is_here and table.get("probe") != probe(files):
        raise _of_other_weights(statistics, model.label)
    _check_shapes(statistics, model)
    return statistics


def check_files(
    statistics: Statistics, label: str, files: Mapping[str, Mapping[str, object]]
) -> None:
    """Refuse statistics that were collected from other weights than those that were read.

    Args:
        statistics: The statistics.
        label: The model, for messages.
        files: Digest of each of its files, by name.

    Raises:
        IncompatibleError: A digest differs.
    """
    if {name: dict(record) for name, record in statistics.files.items()} != dict(files):
        raise _of_other_weights(statistics, label)


def _of_other_weights(statistics: Statistics, label: str) -> IncompatibleError:
    return IncompatibleError(
        f"'{statistics.label}' was collected from other weights than those of '{label}'. Collect "
        f"it anew: forge calibrate {label} --statistics {statistics.kind} --out OTHER"
    )


def _shared(text: str, value: object, source: SafetensorsSource) -> dict[str, str]:
    names = frozenset(source.names())
    if not isinstance(value, Mapping) or not all(
        isinstance(weight, str) and held in names for weight, held in value.items()
    ):
        raise CheckpointError(f"'{text}' is damaged: 'statistics.shared' names no tensors of it.")
    return {str(weight): str(held) for weight, held in value.items()}


def _files(text: str, manifest: Manifest) -> dict[str, Mapping[str, object]]:
    inputs = manifest.items("inputs")
    listed = inputs[0].get("files") if inputs and isinstance(inputs[0], Mapping) else None
    found: dict[str, Mapping[str, object]] = {}
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
            found[entry["name"]] = {key: item for key, item in entry.items() if key != "name"}
    if not found:
        raise CheckpointError(f"'{text}' is damaged: its manifest names no files of the model.")
    return found


def _check_shapes(statistics: Statistics, model: TensorSource) -> None:
    names = frozenset(model.names())
    for weight, held in statistics.shared.items():
        info = statistics.source.info(held)
        shape = model.info(weight).shape if weight in names else None
        fits = shape is not None and info.dtype == "F32"
        if fits and shape is not None and statistics.kind == "fisher":
            fits = info.shape == shape
        elif fits and shape is not None:
            reads = shape[0 if statistics.transposed else 1] if len(shape) == 2 else -1
            fits = info.shape == (reads, reads)
        if not fits:
            raise IncompatibleError(
                f"'{statistics.label}' holds statistics of '{weight}' that are {info.dtype} "
                f"{list(info.shape)}, which does not fit '{model.label}'. Collect them anew."
            )

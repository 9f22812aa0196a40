"""Say what a checkpoint is, from its headers, and how it was made, from its manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from forge.architectures.names import architecture_of
from forge.architectures.table import Architecture
from forge.checkpoints.checkpoint import read_config
from forge.checkpoints.header import TensorInfo
from forge.checkpoints.manifest_reader import Manifest, read_manifest
from forge.checkpoints.source import open_safetensors
from forge.core.errors import CheckpointError, IncompatibleError
from forge.merge.diagnose import LayerRow, Place, layer_rows, place_of, read_record


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The tensors of one place.

    Attributes:
        place: Where they stand.
        tensors: Their metadata, in file order.
    """

    place: Place
    tensors: tuple[TensorInfo, ...]

    @property
    def num_parameters(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.numel for tensor in self.tensors)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Element types, the commonest first."""
        return tuple(_dtypes(self.tensors))


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a checkpoint is.

    Attributes:
        root: Its folder.
        config: Its ``config.json``.
        architecture: Name of its family, or ``None`` when that is unknown.
        num_files: Weight files.
        dtypes: Number of parameters by element type.
        layers: Its tensors by place, in the order of computation.
        manifest: What forge recorded when it made the checkpoint, or ``None``.
        statistics: What the merge measured, by place.
        notices: What the user should know.
    """

    root: Path
    config: Mapping[str, object]
    architecture: str | None
    num_files: int
    dtypes: Mapping[str, int]
    layers: tuple[LayerShape, ...]
    manifest: Manifest | None
    statistics: tuple[LayerRow, ...]
    notices: tuple[str, ...]

    @property
    def num_tensors(self) -> int:
        """Tensors of all files."""
        return sum(len(layer.tensors) for layer in self.layers)

    @property
    def num_elements(self) -> int:
        """Elements of all tensors; of packed weights, words."""
        return sum(layer.num_parameters for layer in self.layers)

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, which packed tensors have fewer elements than."""
        stated = None if self.manifest is None else self.manifest.content.get("num_parameters")
        return stated if isinstance(stated, int) else self.num_elements

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(layer.num_bytes for layer in self.layers)

    @property
    def num_layers(self) -> int:
        """Layers that the files hold."""
        return sum(layer.place.layer >= 0 for layer in self.layers)

    def as_json(self) -> dict[str, object]:
        """Return everything as plain JSON values, tensors by layer included."""
        record: dict[str, object] = {
            "root": str(self.root),
            "architecture": self.architecture,
            "num_layers": self.num_layers,
            "num_tensors": self.num_tensors,
            "num_parameters": self.num_parameters,
            "num_bytes": self.num_bytes,
            "num_files": self.num_files,
            "dtypes": dict(self.dtypes),
            "layers": [_layer_json(layer) for layer in self.layers],
            "notices": list(self.notices),
        }
        if self.manifest is not None:
            hidden = ("tensors", "files", "schema", "notices", "kind")
            record[self.manifest.kind] = {
                **{key: self.manifest.content[key] for key in self.manifest.content
                   if key not in hidden},
                "statistics": [row.as_json() for row in self.statistics],
            }  # fmt: skip
        return record


def inspect_folder(root: Path) -> Inspection:
    """Inspect a checkpoint; no weights are read.

    Args:
        root: Its folder.

    Returns:
        What it is.

    Raises:
        CheckpointError: It is no checkpoint, or its files or manifest are malformed.
    """
    if not root.is_dir():
        raise CheckpointError(f"'{root}' is not a folder.")
    source = open_safetensors(root, label=str(root))
    infos = [source.info(name) for name in source.names()]
    files = source.files()
    source.close()
    config = read_config(root, label=str(root))
    notices = list(source.notices)
    architecture: Architecture | None = None
    try:
        architecture = architecture_of(config, tensor_names=(info.name for info in infos))
        notices += [architecture.notice] if architecture.notice else []
    except IncompatibleError as error:
        notices.append(str(error))
    manifest = read_manifest(root)
    rows: tuple[LayerRow, ...] = ()
    if manifest is not None:
        notices += [str(notice) for notice in manifest.items("notices")]
        rows = layer_rows(
            (
                read_record(name, claim.num_elements, claim.statistics)
                for name, claim in manifest.tensors.items()
            ),
            lambda name: place_of(architecture, name),
        )
    return Inspection(
        root=root,
        config=config,
        architecture=None if architecture is None else architecture.name,
        num_files=len(files),
        dtypes=_dtypes(infos),
        layers=_shapes(architecture, infos),
        manifest=manifest,
        statistics=rows,
        notices=tuple(notices),
    )


def _shapes(
    architecture: Architecture | None, infos: Iterable[TensorInfo]
) -> tuple[LayerShape, ...]:
    groups: dict[Place, list[TensorInfo]] = {}
    for info in infos:
        groups.setdefault(place_of(architecture, info.name), []).append(info)
    return tuple(LayerShape(place, tuple(groups[place])) for place in sorted(groups))


def _dtypes(infos: Iterable[TensorInfo]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for info in infos:
        counts[info.dtype] += info.numel
    return dict(counts.most_common())


def _layer_json(layer: LayerShape) -> dict[str, object]:
    return {
        "place": layer.place.label,
        "layer": layer.place.layer if layer.place.layer >= 0 else None,
        "num_parameters": layer.num_parameters,
        "num_bytes": layer.num_bytes,
        "tensors": [
            {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
            for tensor in layer.tensors
        ],
    }

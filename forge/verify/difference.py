"""Say how two checkpoints differ: tensors, layers, configuration, tokenizer files.

Both are mapped, never loaded: memory is bounded by a few pieces per thread, whatever the
size of the checkpoints.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

from forge.architectures.names import architecture_of
from forge.architectures.table import Architecture
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.companions import GENERATION_FILE, read_companions, read_tokenizer_files
from forge.checkpoints.source import TensorSource
from forge.core.dtypes import DTYPES
from forge.core.errors import IncompatibleError
from forge.merge.diagnose import Place, place_of
from forge.verify.arithmetic import Sums, compare_floats, count_equal
from forge.verify.sidecars import (
    ConfigDifference,
    FileDifference,
    config_differences,
    file_differences,
)

if TYPE_CHECKING:
    from forge.checkpoints.progress import Progress


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One tensor of both checkpoints.

    Attributes:
        name: The tensor.
        place: Where it stands.
        dtypes: Its type in each.
        shapes: Its shape in each.
        sums: The comparison; ``None`` when shapes differ, or types that have no arithmetic.
        is_float: Whether ``sums`` holds norms, or equal elements alone.
    """

    name: str
    place: Place
    dtypes: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    sums: Sums | None
    is_float: bool

    @property
    def is_equal(self) -> bool:
        """Whether type, shape and every value are the same."""
        return (
            self.dtypes[0] == self.dtypes[1]
            and self.shapes[0] == self.shapes[1]
            and self.sums is not None
            and self.sums.num_equal == self.sums.num_elements
        )

    def as_json(self) -> dict[str, object]:
        """Return the comparison as plain JSON values."""
        record: dict[str, object] = {
            "name": self.name,
            "place": self.place.label,
            "dtypes": list(self.dtypes),
            "shapes": [list(shape) for shape in self.shapes],
        }
        if self.sums is None:
            return record
        figures = self.sums.as_json()
        if not self.is_float:
            figures = {key: figures[key] for key in ("num_elements", "equal_share")}
        return {**record, **figures}


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """The tensors of one place together, as one vector.

    Attributes:
        place: Where they stand.
        num_tensors: Tensors that both have.
        num_changed: Those that are not equal.
        sums: The comparison of those that could be compared as floats.
    """

    place: Place
    num_tensors: int
    num_changed: int
    sums: Sums

    def as_json(self) -> dict[str, object]:
        """Return the comparison as plain JSON values."""
        return {
            "place": self.place.label,
            "layer": self.place.layer if self.place.layer >= 0 else None,
            "num_tensors": self.num_tensors,
            "num_changed": self.num_changed,
            **self.sums.as_json(),
        }


@dataclass(frozen=True, slots=True)
class CheckpointDifference:
    """How two checkpoints differ.

    Attributes:
        labels: What the user called them.
        only_a: Tensors that only the first has, in file order.
        only_b: Tensors that only the second has.
        tensors: Tensors that both have, in the first one's file order.
        layers: Those by place, in the order of computation.
        config: Keys of ``config.json`` that differ.
        files: Tokenizer and generation files that differ.
    """

    labels: tuple[str, str]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    tensors: tuple[TensorDifference, ...]
    layers: tuple[LayerDifference, ...]
    config: tuple[ConfigDifference, ...]
    files: tuple[FileDifference, ...]

    @property
    def has_equal_tensors(self) -> bool:
        """Whether both have the same tensors with the same values."""
        return not (self.only_a or self.only_b) and all(row.is_equal for row in self.tensors)

    @property
    def is_identical(self) -> bool:
        """Whether nothing that was compared differs."""
        return self.has_equal_tensors and not (self.config or self.files)

    def most_changed(self, count: int) -> tuple[TensorDifference, ...]:
        """Return the tensors that differ most.

        Args:
            count: How many.

        Returns:
            Those that cannot be compared first, then by relative difference, descending.
        """
        changed = [row for row in self.tensors if not row.is_equal]
        return tuple(sorted(changed, key=_rank)[:count])

    def as_json(self) -> dict[str, object]:
        """Return everything as plain JSON values."""
        return {
            "a": self.labels[0],
            "b": self.labels[1],
            "identical": self.is_identical,
            "equal_tensors": self.has_equal_tensors,
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "layers": [row.as_json() for row in self.layers],
            "tensors": [row.as_json() for row in self.tensors],
            "config": [{"key": row.key, "a": row.a, "b": row.b} for row in self.config],
            "files": [{"name": row.name, "state": row.state} for row in self.files],
        }


def _rank(row: TensorDifference) -> tuple[int, float]:
    if row.sums is None:
        return 0, 0.0
    relative = row.sums.relative if row.is_float else 1.0 - row.sums.equal_share
    return (0, 0.0) if relative is None else (1, -relative)


def compare(
    a: Checkpoint, b: Checkpoint, *, progress: Progress | None = None
) -> CheckpointDifference:
    """Compare two checkpoints.

    Args:
        a: The first one; relative differences are relative to it.
        b: The second one.
        progress: Hears how it goes.

    Returns:
        The differences.

    Raises:
        CheckpointError: A weight file or a tokenizer file cannot be read.
    """
    names_a, names_b = a.source.names(), b.source.names()
    shared = set(names_a) & set(names_b)
    both = [name for name in names_a if name in shared]
    architecture = _architecture(a, names_a) or _architecture(b, names_b)
    if progress is not None:
        progress.stage("comparing")
        progress.start(sum(a.source.info(name).nbytes for name in both), 0)
    tensors = _compare_tensors(both, a.source, b.source, architecture, progress)
    return CheckpointDifference(
        labels=(str(a.reference), str(b.reference)),
        only_a=tuple(name for name in names_a if name not in shared),
        only_b=tuple(name for name in names_b if name not in shared),
        tensors=tensors,
        layers=_layers(tensors),
        config=config_differences(a.config, b.config),
        files=file_differences(_files(a), _files(b)),
    )


def _architecture(checkpoint: Checkpoint, names: Sequence[str]) -> Architecture | None:
    try:
        return architecture_of(checkpoint.config, tensor_names=names)
    except IncompatibleError:
        # Only the grouping by layer depends on it; tensors are compared by name.
        return None


def _compare_tensors(
    names: Sequence[str],
    a: TensorSource,
    b: TensorSource,
    architecture: Architecture | None,
    progress: Progress | None,
) -> tuple[TensorDifference, ...]:
    stop = threading.Event()

    def one(name: str) -> TensorDifference | None:
        if stop.is_set():
            return None
        row = _compare_tensor(name, a, b, place_of(architecture, name))
        if progress is not None:
            progress.advance(a.info(name).nbytes)
        return row

    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="forge-diff")
    try:
        return tuple(row for row in pool.map(one, names) if row is not None)
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _compare_tensor(name: str, a: TensorSource, b: TensorSource, place: Place) -> TensorDifference:
    info_a, info_b = a.info(name), b.info(name)
    sums, is_float = None, False
    if info_a.shape == info_b.shape:
        rows = (DTYPES[info_a.dtype], DTYPES[info_b.dtype])
        is_float = all(row.mergeable for row in rows)
        if is_float:
            sums = compare_floats(a.read(name), info_a.dtype, b.read(name), info_b.dtype)
        elif info_a.dtype == info_b.dtype:
            equal = count_equal(a.read(name), b.read(name), info_a.dtype)
            sums = Sums(num_elements=info_a.numel, num_equal=equal)
    dtypes, shapes = (info_a.dtype, info_b.dtype), (info_a.shape, info_b.shape)
    return TensorDifference(name, place, dtypes, shapes, sums, is_float)


def _layers(tensors: Sequence[TensorDifference]) -> tuple[LayerDifference, ...]:
    groups: dict[Place, list[TensorDifference]] = {}
    for row in tensors:
        groups.setdefault(row.place, []).append(row)
    return tuple(
        LayerDifference(
            place=place,
            num_tensors=len(groups[place]),
            num_changed=sum(not row.is_equal for row in groups[place]),
            sums=reduce(
                Sums.__add__,
                (row.sums for row in groups[place] if row.sums is not None and row.is_float),
                Sums(),
            ),
        )
        for place in sorted(groups)
    )


def _files(checkpoint: Checkpoint) -> dict[str, bytes]:
    files = read_tokenizer_files(checkpoint.tokenizer_root)
    return {**files, **read_companions(checkpoint.root, (GENERATION_FILE,))}

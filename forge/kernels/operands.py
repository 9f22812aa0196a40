"""One tensor of a merge as a method sees it: its inputs, its shape, and a place for the result.

A method never touches files, names or threads. It gets ``Operands``, runs kernels over them
(once to reduce, once to write) and returns statistics. Inputs are addresses of mapped files, so
nothing is copied; results leave in chunks, while they are in the cache, through ``emit``.

May import numpy and the kernels' loader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from forge.core.errors import IncompatibleError
from forge.kernels.cpu import native
from forge.kernels.cpu.layout import BLOCK, Compute

if TYPE_CHECKING:
    import numpy.typing as npt

CHUNK: Final = 1 << 19
"""Elements that are computed, hashed and written in one go; a multiple of ``BLOCK``."""

FORMATS: Final = frozenset({"BF16", "F16", "F32", "F64"})
"""safetensors dtypes that kernels read and write."""

_NUMPY: Final = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}

Emit = Callable[[int, memoryview], None]
"""Takes the byte offset in the tensor and the bytes of a finished piece."""

Int64s = np.ndarray[Any, np.dtype[np.int64]]
Float64s = np.ndarray[Any, np.dtype[np.float64]]


def address_of(array: npt.NDArray[Any]) -> int:
    """Return the address of an array's first element."""
    return int(array.__array_interface__["data"][0])


def _widened(stored: npt.NDArray[Any], dtype: str, compute: Compute) -> npt.NDArray[Any]:
    if dtype == "BF16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.dtype(compute))


class Workspace:
    """Scratch memory of one worker thread; it grows to the widest need and is then reused."""

    def __init__(self) -> None:
        self._rows: dict[Compute, npt.NDArray[Any]] = {}
        self._bytes: dict[str, npt.NDArray[np.uint8]] = {}

    def rows(self, count: int, compute: Compute) -> npt.NDArray[Any]:
        """Return at least ``count`` work rows of ``BLOCK`` elements."""
        rows = self._rows.get(compute)
        if rows is None or len(rows) < count:
            rows = np.zeros((count, BLOCK), np.dtype(compute))
            self._rows[compute] = rows
        return rows

    def bytes(self, use: str, num_bytes: int) -> npt.NDArray[np.uint8]:
        """Return a buffer of exactly ``num_bytes``, whose content is what the last use left.

        Args:
            use: What it is for; the next one for the same overwrites it.
            num_bytes: Its length.
        """
        known = self._bytes.get(use)
        if known is None or len(known) < num_bytes:
            known = self._bytes[use] = np.empty(num_bytes, np.uint8)
        return known[:num_bytes]


@dataclass(frozen=True, slots=True)
class Operands:
    """The inputs of one output tensor.

    Attributes:
        inputs: Bytes of each input, the base first when there is one; all of one shape.
        dtypes: safetensors dtype of each input.
        has_base: Whether the first input is the base.
        shape: Shape of every input and of the result.
        out_dtype: safetensors dtype of the result.
        emit: Receives the result.
        workspace: Scratch memory of this thread.
        companions: float32 bytes that belong to each model beside the base, such as statistics of
            its inputs; ``None`` for a model that has none for this tensor, empty where the method
            asks for none.
    """

    inputs: tuple[memoryview | npt.NDArray[Any], ...]
    dtypes: tuple[str, ...]
    has_base: bool
    shape: tuple[int, ...]
    out_dtype: str
    emit: Emit
    workspace: Workspace = field(default_factory=Workspace)
    companions: tuple[memoryview | npt.NDArray[Any] | None, ...] = ()

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Length of the last axis; 1 for a scalar."""
        return self.shape[-1] if self.shape else 1

    @property
    def num_rows(self) -> int:
        """Number of rows along the last axis."""
        return self.numel // self.width if self.width else 0

    @property
    def num_models(self) -> int:
        """Number of inputs beside the base."""
        return len(self.inputs) - self.has_base

    @property
    def compute(self) -> Compute:
        """float64 where an input is, else float32."""
        return "float64" if "F64" in self.dtypes else "float32"

    @property
    def are_stored(self) -> bool:
        """Whether all inputs are bfloat16, which kernels take as they are stored."""
        return set(self.dtypes) == {"BF16"}

    @property
    def is_stored_whole(self) -> bool:
        """Whether the result is bfloat16 as well."""
        return self.are_stored and self.out_dtype == "BF16"

    @property
    def out_itemsize(self) -> int:
        """Bytes of one element of the result."""
        return np.dtype(_NUMPY[self.out_dtype]).itemsize

    def select(self, indices: Sequence[int], *, has_base: bool) -> Operands:
        """Return the same tensor with some of its inputs, given by their positions."""
        return replace(
            self,
            inputs=tuple(self.inputs[i] for i in indices),
            dtypes=tuple(self.dtypes[i] for i in indices),
            has_base=has_base,
        )

    def values(self, index: int, start: int = 0, count: int = -1) -> npt.NDArray[Any]:
        """Return elements of one input in the type of the work rows, as numpy arrays."""
        dtype = self.dtypes[index]
        stored = np.frombuffer(self.inputs[index], _NUMPY[dtype])
        return _widened(stored[start : None if count < 0 else start + count], dtype, self.compute)

    def columns(self, index: int, start: int, stop: int) -> npt.NDArray[Any]:
        """Return a run along the last axis of one input, as a matrix of all its rows."""
        dtype = self.dtypes[index]
        stored = np.frombuffer(self.inputs[index], _NUMPY[dtype]).reshape(-1, self.width)
        return _widened(stored[:, start:stop], dtype, self.compute)

    def companion(self, index: int) -> npt.NDArray[Any] | None:
        """Return what belongs to one model, float32 in one row; ``None`` when there is nothing.

        Args:
            index: The model, the base not counted.

        Raises:
            IncompatibleError: It holds a NaN or an infinity.
        """
        held = self.companions[index] if self.companions else None
        if held is None:
            return None
        values = np.frombuffer(held, np.float32)
        if not np.isfinite(values).all():
            raise IncompatibleError(
                f"the statistics of model {index + 1} hold a NaN or an infinity. Collect them anew."
            )
        return values

    def sample(self, index: int, stride: int, run: int) -> npt.NDArray[Any]:
        """Return the first ``run`` of every whole ``stride`` elements of one input."""
        dtype = self.dtypes[index]
        stored = np.frombuffer(self.inputs[index], _NUMPY[dtype])
        whole = stored[: len(stored) // stride * stride].reshape(-1, stride)
        return _widened(whole[:, :run].reshape(-1), dtype, self.compute)

    def plan(
        self, kernel: str, *, rows: int, width: int | None = None, aside: bool = False
    ) -> KernelPass:
        """Prepare passes of one kernel over this tensor.

        Args:
            kernel: ``module.function`` of a merge kernel. One that ends with ``_stored`` takes
                bfloat16 where it is stored, and needs neither readers nor a writer.
            rows: Work rows that it needs.
            width: Length of what the kernel takes for a row; the last axis by default.
            aside: Whether a kernel that is not compiled yet may wait until it is called, because
                another one is planned before that.
        """
        compute = self.compute
        load = native.merge_kernel_aside if aside else native.merge_kernel
        views = [np.frombuffer(data, np.uint8) for data in self.inputs]
        inputs = np.array([address_of(view) for view in views], np.int64)
        in_place = kernel.endswith("_stored")
        readers = np.zeros(len(views), np.int64)
        if not in_place:
            readers[:] = [reader(dtype, compute) for dtype in self.dtypes]
        work = self.workspace.rows(rows, compute)
        return KernelPass(
            operands=self,
            function=load(kernel, compute),
            head=(
                address_of(inputs),
                len(inputs),
                address_of(readers),
                int(self.has_base),
                self.width if width is None else width,
            ),
            tail=(address_of(work), len(work)),
            writer=0 if in_place else writer(self.out_dtype),
            keep=(inputs, readers, work, *views),
        )


def reader(dtype: str, compute: Compute) -> int:
    """Return the address of the reader of a safetensors dtype."""
    return native.address(f"memory.read_{dtype.lower()}", compute)


def writer(dtype: str) -> int:
    """Return the address of the writer of a safetensors dtype; results are float64."""
    return native.address(f"memory.write_{dtype.lower()}", "float64")


@dataclass(slots=True)
class KernelPass:
    """A kernel bound to a tensor: ``reduce`` only reads, ``write`` also emits the result."""

    operands: Operands
    function: Callable[..., None]
    head: tuple[int, ...]
    tail: tuple[int, ...]
    writer: int
    keep: tuple[npt.NDArray[Any], ...]

    def reduce(
        self,
        *,
        params: Float64s | None = None,
        stats: Float64s | None = None,
        counts: Int64s | None = None,
        start: int = 0,
        count: int | None = None,
        chunk: int = CHUNK,
    ) -> None:
        """Run over ``count`` elements from ``start`` (all of them by default), writing nothing."""
        stop = self.operands.numel if count is None else start + count
        run = self._bound(0, params, stats, counts)
        for first in range(start, stop, chunk):
            run(first, min(chunk, stop - first))

    def write(
        self,
        *,
        params: Float64s | None = None,
        stats: Float64s | None = None,
        counts: Int64s | None = None,
        start: int = 0,
        count: int | None = None,
        chunk: int = CHUNK,
    ) -> None:
        """Run over ``count`` elements from ``start`` and emit the result chunk by chunk."""
        operands = self.operands
        itemsize = operands.out_itemsize
        stop = operands.numel if count is None else start + count
        buffer = operands.workspace.bytes("output", min(chunk, max(stop - start, 0)) * itemsize)
        run = self._bound(address_of(buffer), params, stats, counts)
        for first in range(start, stop, chunk):
            size = min(chunk, stop - first)
            run(first, size)
            operands.emit(first * itemsize, buffer.data[: size * itemsize])

    def _bound(
        self, output: int, params: Float64s | None, stats: Float64s | None, counts: Int64s | None
    ) -> Callable[[int, int], None]:
        """Return the kernel as a function of the first element and their number."""
        params = _EMPTY if params is None else params
        stats = _EMPTY if stats is None else stats
        counts = _NONE if counts is None else counts
        function = self.function
        head = self.head
        middle = address_of(params), len(params), output, self.writer
        tail = address_of(stats), len(stats), address_of(counts), len(counts), *self.tail
        return lambda start, count: function(*head, start, count, *middle, *tail)


_EMPTY: Final = np.zeros(1, np.float64)
_NONE: Final = np.zeros(1, np.int64)

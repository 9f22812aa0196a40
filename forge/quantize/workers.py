"""The threads of a quantization: each takes a tensor, reads it, and writes it to every output.

Kernels and system calls release the interpreter lock, so threads are enough. Large tensors go
first, so that none is left when the other threads are done; results depend on no order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    Future,
    ThreadPoolExecutor,
    wait,
)
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.architectures.blocks import Linear
from forge.checkpoints.floats import decode, encode
from forge.checkpoints.hashing import FileRecord, checksum_of, record_file
from forge.checkpoints.header import TensorInfo
from forge.checkpoints.source import SafetensorsSource, TensorSource
from forge.core.errors import NonFiniteError
from forge.formats.bnb_4bit import mean_of_blocks
from forge.formats.contract import QuantizedWeight
from forge.formats.raw_weight import KINDS, RawWeight
from forge.kernels.cpu import native
from forge.kernels.operands import address_of
from forge.quantize.contract import PlainTensor
from forge.quantize.layouts import scheme_of
from forge.quantize.methods.rtn import quantize_rtn
from forge.quantize.plan import QuantizePlan
from forge.quantize.writing import MODULE_KEY, OutputWriter

COPIED: Final = "copied"
"""What the manifest calls a tensor that was not changed."""
ROUNDED: Final = "rounded"
"""What it calls one that was written in another float type."""
FOLDED: Final = "folded"
"""What it calls one that took in the scales of a quantized layer."""

_SCAN_BLOCK: Final = 1024


class Workers:
    """The workers of one quantization.

    Args:
        plan: What is written.
        source: The model's tensors.
        writers: One for each output.
        stop: Set when the work is to end early.
    """

    def __init__(
        self,
        plan: QuantizePlan,
        source: TensorSource,
        writers: Sequence[OutputWriter],
        stop: threading.Event,
    ) -> None:
        self._plan = plan
        self._source = source
        self._writers = tuple(writers)
        self._stop = stop
        self._digests: dict[Path, dict[str, str]] = {file: {} for file in source.files()}

    # -- what is left to do ----------------------------------------------------------------

    def open_linears(self) -> list[Linear]:
        """Return the layers that some output still lacks."""
        return [linear for linear in self._plan.linears if self._waiting(linear)]

    def _waiting(self, linear: Linear) -> list[OutputWriter]:
        return [
            writer for writer in self._writers if not writer.has(writer.planned.names_of(linear))
        ]

    def block_is_finished(self, block: int) -> bool:
        """Return whether every tensor of a decoder block is in every output.

        Args:
            block: Its number.
        """
        linears = [linear for linear in self._plan.linears if linear.block == block]
        return not any(self._waiting(linear) for linear in linears) and all(
            writer.has(self.kept_of(block)) for writer in self._writers
        )

    def kept_of(self, block: int | None) -> list[str]:
        """Return the tensors of a decoder block that stay in full precision.

        Args:
            block: Its number, or ``None`` for all tensors outside of blocks.
        """
        layer_of = self._plan.architecture.layer_of
        return [name for name in self._plan.kept if layer_of(name) == block]

    # -- jobs ------------------------------------------------------------------------------

    def copy(self, name: str) -> None:
        """Write a tensor as it is, or rounded to the type that the plan says.

        Args:
            name: The tensor.

        Raises:
            NonFiniteError: It holds a NaN or an infinity.
        """
        info = self._source_info(name)
        view = self._source.read(name)
        if info.dtype in KINDS:
            _refuse_nonfinite(name, np.frombuffer(view, np.uint8), info.dtype, self._label)
        dtype = self._plan.dtypes[name]
        data, what = np.frombuffer(view, np.uint8), COPIED
        if dtype != info.dtype:
            data, what = _cast(name, view, info.dtype, dtype), ROUNDED
        for writer in self._writers:
            writer.write(name, data, {"method": what})
        self._note(name)

    def quantize(self, linear: Linear) -> None:
        """Quantize a layer by itself and write it to every output that lacks it.

        Args:
            linear: The layer.

        Raises:
            NonFiniteError: Its weight holds a NaN or an infinity.
        """
        raw = self.raw_weight(linear)
        waiting = self._waiting(linear)
        if any(writer.planned.layout.needs_codes for writer in waiting):
            _refuse_nonfinite(linear.tensor, raw.data, raw.dtype, self._label)
            scheme = scheme_of(waiting[0].planned.variant)
            self.write_codes(linear, quantize_rtn(raw, scheme), {})
        for writer in waiting:
            if writer.planned.layout.needs_codes:
                continue
            streams = writer.stream_parts(linear)
            try:
                writer.planned.layout.quantize(linear, raw, streams.emit)
            except NonFiniteError as error:
                raise self._nonfinite(linear, error) from error
            streams.finish({"method": writer.planned.variant.format})
        self._note(linear.tensor)

    def write_codes(
        self, linear: Linear, weight: QuantizedWeight, statistics: Mapping[str, object]
    ) -> None:
        """Lay out a layer's codes and write them to every output that lacks them.

        Args:
            linear: The layer.
            weight: What a method chose.
            statistics: What was measured of the layer, plain JSON values.
        """
        for writer in self._waiting(linear):
            packed = writer.planned.layout.pack(weight)
            for number, part in enumerate(writer.planned.parts[linear.module]):
                record: dict[str, object] = {"method": self._plan.method}
                if number == 0 and statistics:
                    record[MODULE_KEY] = dict(statistics)
                writer.write(f"{linear.module}.{part.suffix}", packed[part.suffix], record)

    def write_folded(self, name: str, tensor: PlainTensor) -> None:
        """Write a tensor that took in scales.

        Args:
            name: The tensor.
            tensor: Its new bytes.
        """
        for writer in self._writers:
            writer.write(name, tensor.data, {"method": FOLDED})

    def mean(self, linear: Linear) -> np.float32:
        """Return the mean of the blocks' magnitudes of a layer; see ``bnb_4bit``.

        Args:
            linear: The layer.
        """
        try:
            return mean_of_blocks(self.raw_weight(linear))
        except NonFiniteError as error:
            raise self._nonfinite(linear, error) from error

    def raw_weight(self, linear: Linear) -> RawWeight:
        """Return a layer's weight as it enters quantization.

        Args:
            linear: The layer.
        """
        info = self._source_info(linear.tensor)
        dtype = self._plan.dtypes[linear.tensor]
        view = self._source.read(linear.tensor)
        data = np.frombuffer(view, np.uint8)
        if dtype != info.dtype:
            data = _cast(linear.tensor, view, info.dtype, dtype)
        return RawWeight.of_file(data, dtype, info.shape, transposed=linear.transposed)

    def input_records(self, num_threads: int) -> dict[Path, FileRecord]:
        """Return the records of all files of the model, reading only what no job has read.

        Args:
            num_threads: How many files are hashed at once.
        """
        with ThreadPoolExecutor(num_threads, thread_name_prefix="forge-hash") as pool:
            records = pool.map(
                lambda item: record_file(item[0], known=item[1]), self._digests.items()
            )
            return dict(zip(self._digests, records, strict=True))

    @property
    def _label(self) -> str:
        return self._source.label

    def _nonfinite(self, linear: Linear, error: NonFiniteError) -> NonFiniteError:
        return NonFiniteError(
            f"'{linear.tensor}' of '{self._label}' {error}. Repair or replace the model; "
            "a quantized copy could only hide it."
        )

    def _source_info(self, name: str) -> TensorInfo:
        return self._plan.sources[name]

    def _note(self, name: str) -> None:
        """Keep the digest of a tensor that has just been read, while it is in the cache."""
        # What an adapter or codes are computed to is not what their files hold.
        if isinstance(self._source, SafetensorsSource):
            view = self._source.read(name)
            self._digests[self._source_info(name).file][name] = checksum_of(view)


def run_all(jobs: Iterable[Callable[[], None]], *, num_threads: int, stop: threading.Event) -> None:
    """Run jobs in threads; the first error ends all of them.

    Args:
        jobs: In the order in which they begin.
        num_threads: How many run at once.
        stop: Set on an error or an interruption, so that running jobs end at their next piece.
    """
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="forge-quantize")
    flying: set[Future[None]] = set()
    try:
        for job in jobs:
            flying.add(pool.submit(job))
            if len(flying) >= 2 * num_threads:
                flying = _without_finished(flying, FIRST_COMPLETED)
        _without_finished(flying, FIRST_EXCEPTION)
    except BaseException:
        stop.set()
        raise
    finally:
        # Reached by Ctrl-C too: only when all threads have ended may a sink be closed.
        pool.shutdown(wait=True, cancel_futures=True)


def _without_finished(flying: set[Future[None]], until: str) -> set[Future[None]]:
    finished, rest = wait(flying, return_when=until)
    for future in finished:
        future.result()
    return rest


def _refuse_nonfinite(name: str, data: npt.NDArray[np.uint8], dtype: str, label: str) -> None:
    """Refuse a tensor that holds a NaN or an infinity."""
    count = len(data) // (4 if dtype == "F32" else 2)
    largest = np.empty(-(-count // _SCAN_BLOCK), np.float32)
    scratch, flags = np.empty(_SCAN_BLOCK, np.float32), np.zeros(1, np.int64)
    native.word_kernel("quantized.blockwise.largest_of_blocks", 7)(
        address_of(data), KINDS[dtype], count, _SCAN_BLOCK,
        address_of(largest), address_of(scratch), address_of(flags),
    )  # fmt: skip
    if flags[0]:
        raise NonFiniteError(
            f"'{name}' of '{label}' holds a NaN or an infinity. Repair or replace the model; "
            "a quantized copy could only hide it."
        )


def _cast(name: str, view: memoryview, dtype: str, target: str) -> npt.NDArray[np.uint8]:
    """Return a tensor's bytes in another float type."""
    values = encode(decode(view, dtype), target)
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    if target == "F16" and not np.isfinite(data.view(np.float16)).all():
        raise NonFiniteError(
            f"'{name}' holds values beyond 65504, the end of float16, which config.json states "
            "as the model's type. State bfloat16 there instead."
        )
    return data

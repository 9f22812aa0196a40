"""Race the fused kernels against the same steps as whole-tensor torch operations.

    python -m benchmarks.merge_kernels [--methods ties,della] [--rounds 3] [--small] [--json FILE]

One process, 271 million parameters in memory, results thrown away: no files, no checksums, no
start-up. torch uses all cores within an operation, forge gives each core a tensor at a time, as a
merge does. Both do the same: they merge, look for numbers that are not finite, and find the
diagnostics of a merge; a second racer shows what torch takes to merge alone. Before the race both
results are compared on one tensor. The last racer only reads the same memory on the same cores:
what it takes for the bytes that a method must read is the least that any kernel could take, and the
table says how near forge comes.
"""

from __future__ import annotations

import argparse
import importlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.command import Record, chosen, rows_of, run_benchmark, say
from benchmarks.machine import Machine, describe_machine, usable_cores
from benchmarks.models import LARGE, SMALL, Bits, ModelShape, tensor_values, widen
from benchmarks.process import BenchmarkError
from benchmarks.tables import Spread, mark, ratios, render_table
from benchmarks.torch_steps import DENSITY, EPSILON, STEPS, WEIGHT, Found, T
from forge.kernels.operands import Emit, Operands, Workspace
from forge.merge.contract import MethodCall, Stream, TensorStatistics

FLOOR: Final = 50.0
WITNESS: Final = "model.layers.0.mlp.up_proj.weight"
_LEAST_EQUAL: Final = 0.999
_MOST_APART: Final = 0.01


class Merge(Protocol):
    """The ``merge`` function of a method's module."""

    def __call__(self, operands: Operands, call: MethodCall) -> TensorStatistics:
        """Merge one tensor."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How forge is asked for the steps that ``torch_steps`` spells out.

    ``num_readings`` is how often the method needs its inputs: twice where something must be known
    of a whole tensor before anything can be written.
    """

    num_inputs: int
    has_base: bool
    values: Mapping[str, float | bool | str]
    model_values: Mapping[str, float]
    is_random: bool = False
    num_readings: int = 1

    def call(self) -> MethodCall:
        """Return the parameters of one tensor."""
        count = self.num_inputs - self.has_base
        streams = tuple(Stream(key=7, stream=number) for number in range(count))
        return MethodCall(self.values, (self.model_values,) * count, streams)


_FAMILY: Final = {"lambda": 1.0, "int8_mask": False}
_SPARSE: Final = {"weight": WEIGHT, "density": DENSITY}
SETUPS: Final = {
    "linear": Setup(3, False, {"normalize": True}, {"weight": 1.0}),
    "slerp": Setup(2, True, {"t": T}, {}, num_readings=2),
    "dare_ties": Setup(
        3, True, {**_FAMILY, "normalize": False, "rescale": "density"}, _SPARSE, is_random=True
    ),
    "ties": Setup(
        3, True, {**_FAMILY, "normalize": True, "rescale": "none"}, _SPARSE, num_readings=2
    ),
    "della": Setup(
        3, True, {**_FAMILY, "normalize": True, "rescale": "density"},
        {**_SPARSE, "epsilon": EPSILON}, is_random=True,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensors:
    """One tensor of all models: their bfloat16 bits, flat, the base first."""

    shape: tuple[int, ...]
    models: tuple[Bits, ...]

    @property
    def numel(self) -> int:
        """Number of elements of one model."""
        return int(self.models[0].size)


@dataclass(frozen=True, slots=True)
class Timing:
    """What one pass over all tensors cost; ``subject`` is one of ``RACERS``."""

    subject: str
    method: str
    round: int
    wall_s: float
    cpu_s: float


def make_tensors(shape: ModelShape, *, num_models: int) -> dict[str, Tensors]:
    """Make a base and fine-tunes in memory; only matrices, by name."""
    return {
        name: Tensors(
            dimensions,
            tuple(
                tensor_values(name, dimensions, tune=number or None).reshape(-1)
                for number in range(num_models)
            ),
        )
        for name, dimensions in shape.tensors().items()
        if len(dimensions) > 1
    }


def run_torch(method: str, tensors: Tensors, found: Found | None = None) -> torch.Tensor:
    """Merge one tensor with the steps of ``torch_steps``."""
    setup = SETUPS[method]
    models = [
        torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).view(tensors.shape)
        for bits in tensors.models[: setup.num_inputs]
    ]
    return STEPS[method](models, found)


def run_forge(
    method: str, tensors: Tensors, merge: Merge, workspace: Workspace, emit: Emit
) -> None:
    """Merge one tensor with forge's kernels."""
    setup = SETUPS[method]
    operands = Operands(
        inputs=tensors.models[: setup.num_inputs],
        dtypes=("BF16",) * setup.num_inputs,
        has_base=setup.has_base,
        shape=tensors.shape,
        out_dtype="BF16",
        emit=emit,
        workspace=workspace,
    )
    merge(operands, setup.call())


def merge_of(method: str) -> Merge:
    """Return the merge function of a method."""
    module = importlib.import_module(f"forge.merge.methods.{method}")
    merge: Merge = module.merge
    return merge


def check_same_work(method: str, tensors: Tensors) -> None:
    """Compare both results on one tensor.

    Raises:
        BenchmarkError: Of a method without random drops, fewer than 99.9 % of the elements are
            equal; or of one with them, the shares of untouched elements are 1 % apart.
    """
    theirs = run_torch(method, tensors).view(torch.int16).numpy().view(np.uint16).reshape(-1)
    ours = np.zeros(tensors.numel, np.uint16)
    target = ours.view(np.uint8)

    def emit(offset: int, data: memoryview) -> None:
        target[offset : offset + len(data)] = np.frombuffer(data, np.uint8)

    run_forge(method, tensors, merge_of(method), Workspace(), emit)
    if not SETUPS[method].is_random:
        equal = float((ours == theirs)[_is_decided(method, tensors)].mean())
        if equal < _LEAST_EQUAL:
            raise BenchmarkError(f"{method}: only {equal:.2%} of the elements equal torch's")
        return
    base = tensors.models[0]
    untouched = [float((result == base).mean()) for result in (ours, theirs)]
    if abs(untouched[0] - untouched[1]) > _MOST_APART:
        raise BenchmarkError(
            f"{method}: {untouched[0]:.1%} of the elements stay as in the base, {untouched[1]:.1%} "
            "with torch"
        )


def _is_decided(method: str, tensors: Tensors) -> npt.NDArray[np.bool_]:
    """Leave out the magnitudes of which ``topk`` keeps some, as it likes, and drops others."""
    decided = np.ones(tensors.numel, np.bool_)
    if method == "ties":
        base = widen(tensors.models[0])
        for model in tensors.models[1:]:
            magnitudes = np.abs(widen(model) - base)
            rank = tensors.numel - max(1, int(DENSITY * tensors.numel))
            decided &= magnitudes != np.partition(magnitudes, rank)[rank]
    return decided


def time_torch(method: str, models: Sequence[Tensors]) -> None:
    """Merge all tensors one after the other, and find what forge finds."""
    for tensors in models:
        run_torch(method, tensors, {})


def time_torch_merge(method: str, models: Sequence[Tensors]) -> None:
    """Merge all tensors one after the other."""
    for tensors in models:
        run_torch(method, tensors)


def time_forge(method: str, models: Sequence[Tensors]) -> None:
    """Merge all tensors, a thread for each core, the greatest first."""
    merge = merge_of(method)
    own = threading.local()

    def work(tensors: Tensors) -> None:
        workspace: Workspace | None = getattr(own, "workspace", None)
        if workspace is None:
            workspace = own.workspace = Workspace()
        run_forge(method, tensors, merge, workspace, _discard)

    order = sorted(models, key=lambda tensors: -tensors.numel)
    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(work, order))


def time_memory(method: str, models: Sequence[Tensors]) -> None:
    """Read once what the method reads, a thread for each core, and do nothing with it."""
    count = SETUPS[method].num_inputs

    def work(tensors: Tensors) -> None:
        for bits in tensors.models[:count]:
            # numpy's fastest walk over memory: whole vectors, and the lock released.
            bits[: bits.size // 4 * 4].view(np.int64).max()

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(work, sorted(models, key=lambda tensors: -tensors.numel)))


RACERS: Final[dict[str, Callable[[str, Sequence[Tensors]], None]]] = {
    "torch": time_torch,
    "torch merge": time_torch_merge,
    "forge": time_forge,
    "memory": time_memory,
}


def _discard(offset: int, data: memoryview) -> None:
    """Throw a finished piece away."""


def measure(arguments: argparse.Namespace) -> Record:
    """Run the race and return every measurement as plain JSON values."""
    methods = chosen(arguments.methods, SETUPS)
    machine = describe_machine()
    say(machine.sentences())
    torch.set_num_threads(usable_cores())
    models = make_tensors(SMALL if arguments.small else LARGE, num_models=3)
    timings = []
    for method in methods:
        check_same_work(method, models[WITNESS])
        time_forge(method, list(models.values()))
        for number in range(1, arguments.rounds + 1):
            for subject, race in RACERS.items():
                cpu, started = time.process_time(), time.perf_counter()
                race(method, list(models.values()))
                wall, cpu = time.perf_counter() - started, time.process_time() - cpu
                timings.append(Timing(subject, method, number, wall, cpu))
                say(f"round {number}, {method}: {subject} {wall:.2f} s")
    return {
        "machine": machine.as_json(),
        "parameters": sum(tensors.numel for tensors in models.values()),
        "timings": [asdict(timing) for timing in timings],
    }


def report(record: Record) -> str:
    """Return the machine and the table as Markdown."""
    timings = [Timing(**row) for row in rows_of(record, "timings")]  # type: ignore[arg-type]
    parameters = int(str(record["parameters"]))
    lines = []
    for method in dict.fromkeys(timing.method for timing in timings):
        walls: dict[str, list[float]] = {}
        cpus: dict[str, list[float]] = {}
        for timing in timings:
            if timing.method == method:
                walls.setdefault(timing.subject, []).append(timing.wall_s)
                cpus.setdefault(timing.subject, []).append(timing.cpu_s)
        setup = SETUPS[method]
        wall = Spread.of(walls["forge"]).median
        reading = min(walls["memory"])
        least = setup.num_readings * reading
        ratio = ratios(walls["torch"], walls["forge"])
        bound = Spread.of(walls["torch"]).median / least
        lines.append([
            method,
            f"{Spread.of(walls['torch']).median:.2f}", f"{wall:.3f}",
            mark(f"{ratio}", ratio.median >= FLOOR), f"{ratios(cpus['torch'], cpus['forge'])}",
            f"{ratios(walls['torch merge'], walls['forge'])}",
            f"{2e-9 * parameters * setup.num_inputs / reading:.1f}", f"{least:.3f}",
            f"{least / wall:.0%}", f"{bound:.0f}",
        ])  # fmt: skip
    header = ["method", "torch wall s", "forge wall s", "ratio (≥ 50)", "CPU ratio"]
    header += ["to merging alone", "memory GB/s", "reading alone s", "of forge's time"]
    header.append("ratio that memory allows")
    text = (
        f"{parameters / 1e6:.2f} M parameters in bfloat16, in memory; medians, ratios pair by "
        "pair as median (least–greatest). Reading alone is the fastest walk of the same cores over "
        "the inputs, twice for methods that need them twice; only the second reading of a tensor "
        "that fits into a cache can take less."
    )
    machine = Machine.from_json(record["machine"]).sentences()
    return "\n\n".join([machine, text, render_table(header, lines)])


def main() -> int:
    """Race the fused kernels against whole-tensor torch operations, and print the ratios."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.merge_kernels", description=main.__doc__
    )
    parser.add_argument("--methods", default=",".join(SETUPS), help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[3]")
    return run_benchmark(parser, "merge_kernels", measure, report)


if __name__ == "__main__":
    raise SystemExit(main())

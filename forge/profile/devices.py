"""What differs between measuring on a CPU and on a GPU: waiting for it, and its memory.

A GPU works behind Python's back, so a clock is only looked at when the device has finished. Its
allocator keeps its own account (allocated: tensors; reserved: what it took from the driver and
keeps), and the driver sees more than both: the context and the libraries' code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch

from forge.core.errors import IncompatibleError
from forge.profile.energy import Counter, gpu_counter, read_packages
from forge.profile.nvml import open_gpu

if TYPE_CHECKING:
    from forge.profile.nvml import Gpu

_CPU_MESSAGE: Final = "DefaultCPUAllocator: can't allocate memory"


class Device(Protocol):
    """A device that models are measured on."""

    @property
    def energy(self) -> Counter:
        """Its energy counter."""

    def synchronize(self) -> None:
        """Wait until everything that was asked of it is done."""

    def memory(self) -> dict[str, int | None]:
        """Return ``peak_allocated``, ``peak_reserved`` and ``driver`` in bytes, where it says."""

    def clock_mhz(self) -> float | None:
        """Return its clock now, where only the process that uses it can tell."""


class CpuDevice:
    """The CPU: it has done what it was asked to do when a call returns."""

    @property
    def energy(self) -> Counter:
        """The processors' counters."""
        return read_packages

    def synchronize(self) -> None:
        """Do nothing."""

    def memory(self) -> dict[str, int | None]:
        """Return nothing: torch keeps no account of what it takes from the C library."""
        return {"peak_allocated": None, "peak_reserved": None, "driver": None}

    def clock_mhz(self) -> float | None:
        """Return nothing; the parent reads the cores' clocks."""
        return None


class CudaDevice:
    """A CUDA device.

    Args:
        name: ``cuda`` or ``cuda:N``.
        cuda: ``torch.cuda``, or what stands in for it.
        gpu: The driver's view of it, or ``None``.
    """

    def __init__(self, name: str, *, cuda: Any, gpu: Gpu | None) -> None:
        self._device = torch.device(name)
        self._cuda, self._gpu = cuda, gpu

    @property
    def energy(self) -> Counter:
        """The driver's counter."""
        return gpu_counter(self._gpu)

    def synchronize(self) -> None:
        """Wait for all streams of the device."""
        self._cuda.synchronize(self._device)

    def memory(self) -> dict[str, int | None]:
        """Return the allocator's peaks since the process began, and what the driver sees now."""
        return {
            "peak_allocated": int(self._cuda.max_memory_allocated(self._device)),
            "peak_reserved": int(self._cuda.max_memory_reserved(self._device)),
            "driver": None if self._gpu is None else self._gpu.process_bytes(),
        }

    def clock_mhz(self) -> float | None:
        """Return the clock that the driver reports."""
        return None if self._gpu is None else self._gpu.clock_mhz()


def check_device(name: str) -> int:
    """Refuse a GPU that is not there, without opening it.

    Args:
        name: ``cuda`` or ``cuda:N``.

    Returns:
        Its number.

    Raises:
        IncompatibleError: There is no such device.
    """
    kind, _, number = name.partition(":")
    if kind == "cuda" and (number or "0").isdecimal():
        found = int(number or "0")
        if found < torch.cuda.device_count():
            return found
    raise IncompatibleError(f"There is no device '{name}' here; use 'cpu'.")


@contextmanager
def open_device(name: str) -> Iterator[Device]:
    """Open a device for as long as the context lasts.

    Args:
        name: ``cpu``, ``cuda`` or ``cuda:N``.

    Yields:
        The device.

    Raises:
        IncompatibleError: There is no such device.
    """
    if name == "cpu":
        yield CpuDevice()
        return
    number = check_device(name)
    uuid = getattr(torch.cuda.get_device_properties(number), "uuid", None)
    with open_gpu(name, uuid=None if uuid is None else str(uuid)) as gpu:
        yield CudaDevice(name, cuda=torch.cuda, gpu=gpu)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on the device or off it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _CPU_MESSAGE in str(error)

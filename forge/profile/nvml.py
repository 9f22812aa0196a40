"""What NVIDIA's driver says, asked through its own library.

The library comes with the driver, so that there is no package to install: where it cannot be
loaded there is no such device. Every question may go unanswered (virtual devices report neither
energy nor processes), and the answer is then ``None``.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

_LIBRARY: Final = "libnvidia-ml.so.1"
_DONE: Final = 0
_SM_CLOCK: Final = 1
_MOST_PROCESSES: Final = 1024
_UNKNOWN: Final = (1 << 64) - 1
_TEXT_BYTES: Final = 96


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


@dataclass(frozen=True, slots=True)
class GpuDescription:
    """A GPU and its driver.

    Attributes:
        name: Its model.
        memory_bytes: Its memory.
        driver: Version of the driver.
    """

    name: str
    memory_bytes: int
    driver: str


class Gpu:
    """One GPU, through the driver.

    Args:
        library: The driver's library, initialised.
        handle: The device.
    """

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle

    def describe(self) -> GpuDescription:
        """Return its model, memory and driver."""
        name = ctypes.create_string_buffer(_TEXT_BYTES)
        driver = ctypes.create_string_buffer(_TEXT_BYTES)
        self._ask("nvmlDeviceGetName", self._handle, name, _TEXT_BYTES)
        self._ask("nvmlSystemGetDriverVersion", driver, _TEXT_BYTES)
        memory = self._memory()
        total = 0 if memory is None else int(memory.total)
        return GpuDescription(name.value.decode(), total, driver.value.decode())

    def free_bytes(self) -> int | None:
        """Return its memory that nobody uses."""
        memory = self._memory()
        return None if memory is None else int(memory.free)

    def energy_j(self) -> float | None:
        """Return the energy that it has used since the driver was loaded."""
        found = ctypes.c_ulonglong()
        asked = self._ask("nvmlDeviceGetTotalEnergyConsumption", self._handle, ctypes.byref(found))
        return found.value / 1000 if asked else None

    def clock_mhz(self) -> int | None:
        """Return the clock of its processors now."""
        found = ctypes.c_uint()
        asked = self._ask("nvmlDeviceGetClockInfo", self._handle, _SM_CLOCK, ctypes.byref(found))
        return int(found.value) if asked else None

    def process_bytes(self) -> int | None:
        """Return what this process takes of its memory, all libraries' own share included.

        Inside a container the driver knows a process by a number that the container does not; then
        it is this one if it is the only one.
        """
        count = ctypes.c_uint(_MOST_PROCESSES)
        rows = (_Process * _MOST_PROCESSES)()
        if not self._ask(
            "nvmlDeviceGetComputeRunningProcesses_v3", self._handle, ctypes.byref(count), rows
        ):
            return None
        found = [(row.pid, row.used) for row in rows[: count.value]]
        own = [used for pid, used in found if pid == os.getpid()]
        if not own and len(found) == 1:
            own = [found[0][1]]
        return int(own[0]) if own and own[0] != _UNKNOWN else None

    def _memory(self) -> _Memory | None:
        memory = _Memory()
        asked = self._ask("nvmlDeviceGetMemoryInfo", self._handle, ctypes.byref(memory))
        return memory if asked else None

    def _ask(self, function: str, *arguments: Any) -> bool:
        call = getattr(self._library, function, None)
        return call is not None and call(*arguments) == _DONE


@contextmanager
def open_gpu(device: str, *, uuid: str | None = None) -> Iterator[Gpu | None]:
    """Open the driver's view of a GPU for as long as the context lasts.

    Args:
        device: ``cuda`` or ``cuda:N``; N counts the visible devices, as torch does.
        uuid: The driver's name of the device, where it is known; it leaves no doubt.

    Yields:
        The GPU, or ``None`` where there is none or the driver does not answer.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        yield None
        return
    if library.nvmlInit_v2() != _DONE:
        yield None
        return
    try:
        handle = _find(library, device, uuid)
        yield None if handle is None else Gpu(library, handle)
    finally:
        library.nvmlShutdown()


def _find(library: Any, device: str, uuid: str | None) -> Any:
    handle = ctypes.c_void_p()
    name = uuid
    number = device.partition(":")[2] or "0"
    if name is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        if visible != [""] and int(number) < len(visible):
            number = visible[int(number)].strip()
        name = None if number.isdecimal() else number
    if name is not None:
        name = name if name.startswith(("GPU-", "MIG-")) else f"GPU-{name}"
        found = library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))
    else:
        found = library.nvmlDeviceGetHandleByIndex_v2(int(number), ctypes.byref(handle))
    return handle if found == _DONE else None

"""Describe where something is measured: hardware, system, versions, limits.

Only what stays as it is between two runs: the description's digest decides whether an earlier
measurement may be used again, so what changes by the minute (clock, load, swap in use) is kept with
the measurement's noise. No host name, user or path is in it.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Final

from forge import __version__
from forge.core.machine import core_quota, memory_line, usable_cores
from forge.profile.nvml import open_gpu

_CPU_INFO: Final = Path("/proc/cpuinfo")
_FREQUENCIES: Final = Path("/sys/devices/system/cpu")
_PACKAGES: Final = (
    "torch", "transformers", "numpy", "numba", "llvmlite", "safetensors", "triton", "bitsandbytes",
    "compressed-tensors",
)  # fmt: skip
_FLAGS: Final = (
    "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "amx_int8", "hypervisor", "asimd", "asimddp", "bf16", "i8mm", "sve",
)  # fmt: skip
"""Of a CPU's flags, those that decide which kernels run."""
_VARIABLES: Final = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS",
    "OMP_WAIT_POLICY", "OMP_PROC_BIND", "GOMP_SPINCOUNT", "KMP_BLOCKTIME",
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "ONEDNN_MAX_CPU_ISA",
)  # fmt: skip
"""Variables that change speed or memory; none of them holds a name or a path."""


def describe_environment(device: str) -> dict[str, object]:
    """Describe this machine and this installation.

    Args:
        device: Where models will run.

    Returns:
        Plain JSON values.
    """
    cores = usable_cores()
    return {
        "cpu": {
            "model": _cpu_model(),
            "architecture": platform.machine(),
            "flags": _flags(),
            "cores": len(cores),
            "machine_cores": os.cpu_count(),
            "quota_cores": core_quota(),
            "governor": _frequency(cores[0], "scaling_governor"),
            "max_mhz": _mhz(_frequency(cores[0], "cpuinfo_max_freq")),
        },
        "memory_bytes": memory_line("MemTotal"),
        "swap_bytes": memory_line("SwapTotal"),
        "gpu": _gpu(device),
        "system": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "versions": _versions(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def _cpu_model() -> str:
    for key, value in _cpu_lines():
        if key in ("model name", "Model", "Hardware"):
            return value
    return platform.processor() or platform.machine()


def _flags() -> list[str]:
    for key, value in _cpu_lines():
        if key in ("flags", "Features"):
            present = set(value.split())
            return [flag for flag in _FLAGS if flag in present]
    return []


def _cpu_lines() -> list[tuple[str, str]]:
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def _frequency(core: int, name: str) -> str | None:
    try:
        return (_FREQUENCIES / f"cpu{core}" / "cpufreq" / name).read_text().strip()
    except OSError:
        return None


def _mhz(kilohertz: str | None) -> int | None:
    return int(kilohertz) // 1000 if kilohertz is not None and kilohertz.isdecimal() else None


def _gpu(device: str) -> dict[str, object] | None:
    if device == "cpu":
        return None
    with open_gpu(device) as gpu:
        if gpu is None:
            return {"name": None, "memory_bytes": None, "driver": None}
        found = gpu.describe()
    return {"name": found.name, "memory_bytes": found.memory_bytes, "driver": found.driver}


def _versions() -> dict[str, str]:
    versions = {"forge": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions

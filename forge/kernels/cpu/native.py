"""Machine code of the kernels: compiled once by numba, kept on disk, loaded without numba.

Importing numba costs half a second of CPU, a quarter of what a whole merge of small models
takes. numba is therefore only the compiler here. The object code that it makes is stored under
the user's cache folder, and every later run hands it to LLVM's loader through llvmlite (50 ms)
and calls it through ctypes, which releases the interpreter lock.

All merge kernels share one C signature, so that one wrapper serves them all:

    inputs     int64[M]   addresses of the tensors, the base first when there is one
    readers    int64[M]   addresses of the readers of their formats (``memory.py``)
    has_base   int64      1 when ``inputs[0]`` is the base, to be subtracted from the others
    width      int64      length of the last axis
    start      int64      first element
    count      int64      number of elements
    params     float64[P] parameters, as the kernel's docstring lays them out
    output     int64      address of the first element written, 0 when nothing is written
    writer     int64      address of the writer of the output's format
    stats      float64[S] sums that the kernel adds to
    counts     int64[C]   whole numbers in and out: keys, thresholds, histograms
    work       float32 or float64 [R, BLOCK] scratch rows

A cached file is one line of JSON (symbol, SHA-256) and the object code. Its folder carries a
fingerprint of the kernels' sources, the compilers' versions and the CPU; it must belong to the
user and be writable by nobody else, because what is in it will be executed.

May import llvmlite at run time, and numba only in order to compile.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from forge.kernels.cpu.layout import UNREACHABLE, Compute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

_MERGE_WORDS: Final = 17
_SHARED: Final = ("compiler.py", "entries.py", "layout.py", "memory.py", "native.py")


@cache
def _binding() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    # numba's object code names these in branches that kernels never take: no kernel raises,
    # allocates or touches a Python object. A call would be a defect, so it aborts.
    abort = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
    for symbol in UNREACHABLE:
        llvm.add_symbol(symbol, abort)
    return llvm


@cache
def fingerprint(package: str = "") -> str:
    """Return a digest of all that the machine code depends on: sources, compilers, CPU.

    Args:
        package: Folder below ``forge/kernels/cpu`` whose kernels are meant; by default the
            merge kernels, which lie in it directly.
    """
    llvm = _binding()
    digest = hashlib.sha256()
    here = Path(__file__).parent
    shared = [here / name for name in _SHARED] if package else []
    for source in [*shared, *sorted((here / package).glob("*.py"))]:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    for package in ("numba", "llvmlite", "numpy"):
        digest.update(f"{package}=={importlib.metadata.version(package)}\n".encode())
    digest.update(f"{sys.version}\n{platform.machine()}\n{llvm.get_host_cpu_name()}\n".encode())
    digest.update(llvm.get_host_cpu_features().flatten().encode())
    return digest.hexdigest()[:32]


def cache_root() -> Path:
    """Return the folder of forge's caches: ``$FORGE_CACHE``, else ``$XDG_CACHE_HOME/forge``."""
    own = os.environ.get("FORGE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forge"


@cache
def _folder(package: str) -> Path | None:
    """Return the private folder for object code, or ``None`` when there can be none."""
    folder = cache_root() / "kernels" / fingerprint(package)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        log.debug("no kernel cache: %s", error)
        return None
    foreign = status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if foreign:
        log.warning("%s belongs to or is writable by others; compiled kernels are not kept", folder)
        return None
    return folder


@dataclass(slots=True)
class _Loaded:
    address: int
    keep: list[object] = field(default_factory=list)


_loaded: dict[tuple[str, Compute | int], _Loaded] = {}
_lock = threading.RLock()
_listeners: list[Callable[[str], None]] = []


@contextmanager
def announcing(listener: Callable[[str], None]) -> Iterator[None]:
    """Call ``listener`` with the name of each kernel that has to be compiled meanwhile."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def _from_cache(path: Path) -> tuple[str, bytes] | None:
    try:
        head, _, code = path.read_bytes().partition(b"\n")
        record = json.loads(head)
        if record["sha256"] == hashlib.sha256(code).hexdigest():
            return str(record["symbol"]), code
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.debug("%s: %s", path, error)
    return None


def _to_cache(path: Path, symbol: str, code: bytes) -> None:
    record = {"symbol": symbol, "sha256": hashlib.sha256(code).hexdigest()}
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(json.dumps(record).encode() + b"\n" + code)
        partial.replace(path)
    except OSError as error:
        log.debug("%s: %s", path, error)
        partial.unlink(missing_ok=True)


def _link(symbol: str, code: bytes) -> _Loaded:
    llvm = _binding()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = engine.get_function_address(symbol)
    if not address:
        raise RuntimeError(f"object code lacks {symbol}")
    return _Loaded(address, [engine, machine])


def _compile(module: str, name: str, compute: Compute | int) -> tuple[Any, str, bytes]:
    entries = importlib.import_module("forge.kernels.cpu.entries")
    function = getattr(importlib.import_module(f"forge.kernels.cpu.{module}"), name)
    if isinstance(compute, int):
        compiled = entries.compile_words(function, compute)
    else:
        compiled = entries.compile_entry(function, compute, block=module == "memory")
    return compiled.keep, compiled.symbol, compiled.code


def address(kernel: str, compute: Compute | int) -> int:
    """Return the address of a kernel's machine code, compiling it when it is not cached.

    Args:
        kernel: ``module.function`` or ``package.module.function`` below ``forge.kernels.cpu``.
        compute: Type of the work rows; of a word kernel, the number of its arguments.
    """
    with _lock:
        known = _loaded.get((kernel, compute))
        if known is not None:
            return known.address
        path = _object_file(kernel, compute)
        aside = _aside.pop((kernel, compute), None)
        if aside is not None:
            aside.wait()
        stored = _from_cache(path) if path else None
        if stored is None:
            for listener in _listeners:
                listener(kernel)
            started = time.perf_counter()
            module, _, name = kernel.rpartition(".")
            keep, symbol, code = _compile(module, name, compute)
            log.debug(
                "compiled %s for %s in %.2f s", kernel, compute, time.perf_counter() - started
            )
            if path:
                _to_cache(path, symbol, code)
            del keep
        else:
            symbol, code = stored
        loaded = _link(symbol, code)
        _loaded[kernel, compute] = loaded
        return loaded.address


_COMPILE: Final = "import sys; from forge.kernels.cpu import native; native.address(*sys.argv[1:])"

_aside: dict[tuple[str, Compute | int], subprocess.Popen[bytes]] = {}


def _object_file(kernel: str, compute: Compute | int) -> Path | None:
    folder = _folder(kernel.rpartition(".")[0].rpartition(".")[0])
    return folder / f"{kernel}-{compute}.o" if folder else None


def _compile_aside(kernel: str, compute: Compute) -> None:
    """Begin to compile a kernel in another process; ``address`` waits for it.

    numba and LLVM hold locks, so threads would not help. Whatever goes wrong there is met again,
    and reported, here.
    """
    with _lock:
        path = _object_file(kernel, compute)
        is_begun = (kernel, compute) in _loaded or (kernel, compute) in _aside
        if is_begun or path is None or path.exists() or not sys.executable:
            return
        for listener in _listeners:
            listener(kernel)
        try:
            _aside[kernel, compute] = subprocess.Popen(
                [sys.executable, "-c", _COMPILE, kernel, compute],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            log.debug("no process to compile %s: %s", kernel, error)


@cache
def _prototype(num_words: int) -> Any:
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * num_words)


@cache
def merge_kernel(kernel: str, compute: Compute) -> Callable[..., None]:
    """Return a merge kernel as a callable over the addresses of the module docstring."""
    function: Callable[..., None] = _prototype(_MERGE_WORDS)(address(kernel, compute))
    return function


def merge_kernel_aside(kernel: str, compute: Compute) -> Callable[..., None]:
    """As ``merge_kernel``, but what must be compiled is compiled beside what is planned next."""
    _compile_aside(kernel, compute)
    return lambda *words: merge_kernel(kernel, compute)(*words)


@cache
def word_kernel(kernel: str, num_words: int) -> Callable[..., None]:
    """Return a kernel that takes nothing but int64 arguments: addresses, counts and flags.

    Args:
        kernel: ``package.module.function`` below ``forge.kernels.cpu``.
        num_words: How many arguments it takes. It turns addresses into arrays itself, with
            ``carray(pointer(address), shape, dtype)``.
    """
    function: Callable[..., None] = _prototype(num_words)(address(kernel, num_words))
    return function

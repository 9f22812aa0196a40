"""A kernel that another process compiles is waited for, and compiled here where that fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from forge.kernels.cpu import native
from forge.kernels.operands import Operands, address_of

KERNEL = "della.drop"


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FORGE_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "_loaded", {})
    native._folder.cache_clear()
    native.merge_kernel.cache_clear()
    yield tmp_path
    native._folder.cache_clear()
    native.merge_kernel.cache_clear()


def drop_half() -> float:
    """Return what is left of a thousand ones, each kept and doubled with probability 1/2."""
    x = np.zeros(1000, np.float32)
    pair = Operands((x, x), ("F32", "F32"), True, (1000,), "F32", lambda offset, data: None)
    factors = np.full(1000, 0.5, np.float32)
    counts = np.array([address_of(factors), 7, 3], np.int64)
    run = pair.plan(KERNEL, rows=3, aside=True)
    run.reduce(params=np.ones(1), counts=counts, count=1000, chunk=1000)
    assert set(factors.tolist()) == {0, 2}
    return float(factors.mean())


def test_another_process_compiles(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    compiled: list[str] = []
    original = native._compile

    def compile_here(module: str, name: str, compute: native.Compute | int) -> object:
        compiled.append(f"{module}.{name}")
        return original(module, name, compute)

    monkeypatch.setattr(native, "_compile", compile_here)
    with native.announcing(heard.append):
        mean = drop_half()
    assert 0.8 < mean < 1.2
    assert KERNEL in heard
    assert KERNEL not in compiled
    assert list(empty_cache.rglob(f"{KERNEL}-float32.o"))
    assert drop_half() == mean


def test_a_process_that_fails_is_made_up_for(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert 0.8 < drop_half() < 1.2


def test_a_program_that_cannot_be_started_is_made_up_for(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(empty_cache / "absent"))
    assert 0.8 < drop_half() < 1.2

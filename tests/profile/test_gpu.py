"""On a real CUDA device: what only it can show. ``pytest -m gpu tests/profile``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from forge.profile import needs
from forge.profile.devices import check_device, is_out_of_memory, open_device
from forge.profile.nvml import open_gpu
from forge.profile.run import profile_models
from forge.profile.setting import Effort
from tests.factory import tiny_checkpoint

pytestmark = pytest.mark.gpu
MB = 1_000_000


def test_the_clock_waits_for_the_device() -> None:
    import time

    left = torch.randn(8192, 8192, device="cuda")
    with open_device("cuda") as device:
        device.synchronize()
        began = time.perf_counter()
        for _ in range(20):
            left @ left
        asked = time.perf_counter() - began
        device.synchronize()
        done = time.perf_counter() - began
    assert done > 3 * asked


def test_the_allocator_and_the_driver_agree_on_what_is_held() -> None:
    with open_device("cuda") as device:
        before = device.memory()
        held = torch.empty(500 * MB, dtype=torch.uint8, device="cuda")
        after = device.memory()
        del held
    allocated = (after["peak_allocated"] or 0) - (before["peak_allocated"] or 0)
    assert 0 <= allocated <= 510 * MB
    assert (after["peak_reserved"] or 0) >= (after["peak_allocated"] or 0) >= 500 * MB
    if after["driver"] is not None:
        assert after["driver"] >= (after["peak_allocated"] or 0)


def test_memory_that_runs_out_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    assert is_out_of_memory(caught.value)


def test_the_driver_knows_the_device_that_torch_uses() -> None:
    check_device("cuda")
    properties = torch.cuda.get_device_properties(0)
    with open_gpu("cuda") as gpu:
        assert gpu is not None
        found = gpu.describe()
        assert found.name == properties.name
        assert found.memory_bytes == pytest.approx(properties.total_memory, rel=0.05)
        assert found.driver
    assert (needs.available_bytes("cuda") or 0) > 0


def test_models_are_measured_on_the_device(tmp_path: Path) -> None:
    for name, layers in (("one", 4), ("two", 8)):
        tiny_checkpoint(tmp_path / name, layers=layers, hidden=1024, vocab=64)
    found = profile_models(
        [str(tmp_path / "one"), str(tmp_path / "two")], results=tmp_path / "r.db", device="cuda",
        batches=(1, 4), prompt_tokens=(64,), new_tokens=16, effort=Effort(rounds=4, samples=2),
    )  # fmt: skip
    for session in found.sessions:
        for profile in session.profiles:
            assert profile.status == "ok", profile.notices
            memory = profile.memory
            weights, allocated = memory["weights_in_memory"] or 0, memory["peak_allocated"] or 0
            assert 0 < weights < allocated <= (memory["peak_reserved"] or 0)
            if memory["driver"] is not None:
                assert memory["driver"] >= allocated
            assert memory["kv_per_token"] == memory["kv_per_token_by_formula"]
            assert ("energy_j" in profile.samples) or any("Energy" in n for n in profile.notices)
        # At batch 1 a GPU waits for Python, layer by layer, so that layers still add up.
        ratio = found.ratio(session, session.profiles[1], "decode")
        assert ratio is not None
        assert ratio.low / ratio.floor <= 0.55
        assert ratio.high < 0.8
    assert found.environment.body["gpu"]["name"] == torch.cuda.get_device_name(0)  # type: ignore[index]

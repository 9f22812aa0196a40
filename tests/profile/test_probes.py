"""What the probes run, in which order they wait and look at the clock, and what they count."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from forge.core.errors import IncompatibleError
from forge.profile.devices import CpuDevice, CudaDevice, is_out_of_memory, open_device
from forge.profile.nvml import Gpu
from forge.profile.probes import (
    WARM_STEPS,
    Probe,
    Samples,
    WarmUp,
    fixed_tokens,
    warm_up,
    weight_bytes,
)
from forge.profile.setting import Setting
from forge.runtime import load
from forge.runtime.linear import QuantizedLinear
from tests.architectures.tiny_models import tiny_model
from tests.runtime.folders import llama, quantized_pair

SETTING = Setting("cpu", None, 1, 3, 5, 4)


class Recorder:
    """A model, a device and a clock that write down when they are used."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.inputs: list[torch.Tensor] = []
        self.time = 0.0
        self.model: Any = tiny_model("llama")
        forward = self.model.forward

        def recorded(input_ids: torch.Tensor, **options: Any) -> Any:
            assert torch.is_inference_mode_enabled()
            self.events.append("forward")
            self.inputs.append(input_ids)
            output = forward(input_ids=input_ids, **options)
            assert output.logits.shape[1] == 1
            self.time += 1.0
            return output

        recorded.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
        self.model.forward = recorded

    energy = staticmethod(lambda: None)

    def synchronize(self) -> None:
        self.events.append("wait")
        self.time += 0.25

    def clock(self) -> float:
        self.events.append("clock")
        return self.time

    def probe(self, tokens_BL: torch.Tensor) -> Probe:
        return Probe(
            self.model, self, tokens_BL=tokens_BL, prompt_tokens=5, clock=self.clock  # type: ignore[arg-type]
        )  # fmt: skip


def test_the_device_is_waited_for_before_every_look_at_the_clock() -> None:
    recorder = Recorder()
    tokens_BL = fixed_tokens(SETTING, vocabulary=90, seed=1)
    found = recorder.probe(tokens_BL).measure(2)
    prompt = ["wait", "clock", "forward", "wait", "clock", "clock"]
    assert recorder.events == 2 * (prompt + 4 * ["clock", "forward", "clock"])
    assert found == Samples([1.25, 1.25], [1.25, 1.25], [1.0] * 8)


def test_every_model_gets_the_same_tokens_one_step_at_a_time() -> None:
    recorder = Recorder()
    tokens_BL = fixed_tokens(SETTING, vocabulary=90, seed=1)
    assert tokens_BL.shape == (3, 9)
    assert int(tokens_BL.max()) < 90
    assert torch.equal(tokens_BL, fixed_tokens(SETTING, vocabulary=90, seed=1))
    assert not torch.equal(tokens_BL, fixed_tokens(SETTING, vocabulary=90, seed=2))
    recorder.probe(tokens_BL).measure(1)
    assert torch.equal(torch.cat(recorder.inputs, 1), tokens_BL)
    assert [len(each[0]) for each in recorder.inputs] == [5, 1, 1, 1, 1]


def test_steps_continue_the_cache_that_the_prompt_made() -> None:
    """The last step's logits are those of one pass over all tokens."""
    model = tiny_model("llama grouped")
    seen: list[torch.Tensor] = []
    forward = model.forward

    def recorded(**options: Any) -> Any:
        output = forward(**options)
        seen.append(output.logits[:, -1])
        return output

    tokens_BL = fixed_tokens(SETTING, vocabulary=90, seed=3)
    probe = Probe(model, CpuDevice(), tokens_BL=tokens_BL, prompt_tokens=5)
    model.forward = recorded  # type: ignore[method-assign]
    probe.measure(1)
    with torch.no_grad():
        whole_BLV = forward(input_ids=tokens_BL).logits
    torch.testing.assert_close(torch.stack(seen, 1), whole_BLV[:, 4:])


def test_a_model_that_keeps_no_cache_is_refused() -> None:
    model = tiny_model("llama")
    probe = Probe(model, CpuDevice(), tokens_BL=torch.ones(1, 3).long(), prompt_tokens=2)
    probe._options["use_cache"] = False
    with pytest.raises(IncompatibleError, match="LlamaForCausalLM keeps no cache"):
        probe.measure(1)


class Scripted:
    """A probe whose runs take given times."""

    def __init__(self, times: list[tuple[float, float]]) -> None:
        self._times: Iterator[tuple[float, float]] = iter(times)
        self.steps: list[int | None] = []

    def measure(self, samples: int, *, steps: int | None = None) -> Samples:
        prompt, step = next(self._times)
        self.steps.append(steps)
        # One slow step of many is no reason to go on.
        return Samples([prompt], [prompt], [step, step, 10 * step])


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([(9, 3), (2, 1), (2, 1)], WarmUp(3, 0.0)),
        ([(2, 1), (2.08, 0.97)], WarmUp(2, pytest.approx(0.04))),
        # The prompt is flat, the step is not.
        ([(2, 1), (2, 2), (2, 2)], WarmUp(3, 0.0)),
        ([(1, 1), (2, 1), (1, 1), (2, 1), (3, 1)], WarmUp(4, 1.0)),
    ],
)
def test_it_is_warm_when_two_runs_take_the_same_time(
    times: list[tuple[float, float]], expected: WarmUp
) -> None:
    probe = Scripted(times)
    found = warm_up(probe, most_runs=4)  # type: ignore[arg-type]
    assert found == expected
    assert found.is_flat == (expected.change != 1.0)
    assert set(probe.steps) == {WARM_STEPS}


def test_shared_weights_count_once() -> None:
    model = tiny_model("llama")
    assert weight_bytes(model) == sum(
        tensor.numel() * 4 for tensor in (*model.parameters(), *model.buffers())
    )
    before = weight_bytes(model)
    embedding = model.get_input_embeddings().weight
    model.lm_head.weight = embedding  # type: ignore[union-attr]
    assert weight_bytes(model) == before - embedding.numel() * 4


def test_packed_weights_count_as_they_lie_in_memory(tmp_path: Path) -> None:
    model = load(quantized_pair(llama(), tmp_path, "awq-gemm").quantized)
    packed = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    assert packed
    own = sum(m.words.nbytes + m.scales.nbytes + m.zeros.nbytes for m in packed)
    plain = sum(parameter.nbytes for parameter in model.parameters())
    rest = sum(b.nbytes for name, b in model.named_buffers() if "inv_freq" in name)
    assert weight_bytes(model) == own + plain + rest


def test_memory_that_ran_out_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator: can't allocate memory"))


class Cuda:
    """Stands in for ``torch.cuda``."""

    def __init__(self) -> None:
        self.waited: list[torch.device] = []

    def synchronize(self, device: torch.device) -> None:
        self.waited.append(device)

    def max_memory_allocated(self, device: torch.device) -> int:
        return 1000

    def max_memory_reserved(self, device: torch.device) -> int:
        return 2000


def test_a_gpu_is_waited_for_and_its_memories_are_three_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda, gpu = Cuda(), Gpu(None, None)
    monkeypatch.setattr(Gpu, "process_bytes", lambda self: 3000)
    monkeypatch.setattr(Gpu, "energy_j", lambda self: 7.5)
    monkeypatch.setattr(Gpu, "clock_mhz", lambda self: 1980)
    device = CudaDevice("cuda:1", cuda=cuda, gpu=gpu)
    device.synchronize()
    assert cuda.waited == [torch.device("cuda:1")]
    assert device.memory() == {"peak_allocated": 1000, "peak_reserved": 2000, "driver": 3000}
    assert device.energy() == {"gpu": (7.5, 0.0)}
    assert device.clock_mhz() == 1980
    silent = CudaDevice("cuda", cuda=cuda, gpu=None)
    assert silent.memory()["driver"] is None
    assert silent.energy() is None


def test_a_cpu_says_what_it_does_not_know() -> None:
    with open_device("cpu") as device:
        device.synchronize()
        assert set(device.memory().values()) == {None}
        assert device.clock_mhz() is None


@pytest.mark.parametrize("name", ["cuda:99", "meta", "gpu"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(IncompatibleError, match=f"'{name}'"), open_device(name):
        pass

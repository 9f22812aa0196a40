"""The process that measures one model in one setting, and nothing else before or after.

    python -m forge.profile.worker '{"reference": ..., "setting": {...}, "seed": 0, ...}'

It says one line of JSON when its libraries are imported, then does one command a line, read from
stdin, and answers each with one line: ``{"ok": {...}}``, or ``{"failed": {...}}`` and ends. While
it waits for a command it uses no CPU, so several of them can take turns:

    load      load the model                         load_s, backend, memory, ...
    warm_up   run until the times are flat           runs, change
    measure   one turn                               samples, energy_j, cpu_s, waited_s
    finish    look at the memory, and end            memory

Whatever a library prints goes to stderr, so that it cannot be taken for an answer. When the parent
is gone, stdin ends and so does the process.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from forge.core.errors import ForgeError
from forge.profile import process_memory
from forge.profile.energy import used_between
from forge.profile.kv_cache import kv_bytes_per_token
from forge.profile.noise import waited_s
from forge.profile.setting import Setting

if TYPE_CHECKING:
    from forge.profile.devices import Device
    from forge.profile.probes import Probe
    from forge.runtime.any_model import LoadedModel

FAILED: Final = 3
"""Exit code of the process when it has said itself what went wrong."""
OUT_OF_MEMORY: Final = "out of memory"
BROKEN: Final = "failed"

Answer = dict[str, object]


@dataclass(frozen=True, slots=True)
class Request:
    """What a worker is for.

    Attributes:
        reference: The model, as recipes name it.
        setting: How it runs.
        seed: Of the token ids.
        vocabulary: Token ids are below it; every model of the session knows them.
    """

    reference: str
    setting: Setting
    seed: int
    vocabulary: int

    def dump(self) -> str:
        """Return the request as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Request:
        """Return the request that ``dump`` wrote."""
        content = json.loads(text)
        return cls(**{**content, "setting": Setting(**content["setting"])})


class Worker:
    """Does what it is told, one command after the other.

    Args:
        request: What it is for.
        device: Where the model runs.
    """

    def __init__(self, request: Request, device: Device) -> None:
        self._request, self._device = request, device
        self._probe: Probe | None = None
        self._memory: dict[str, int | None] = {}
        self._load_peak = 0
        self._expected: int | None = None
        self._is_reset = False
        self.commands: Mapping[str, Callable[[Mapping[str, Any]], Answer]] = {
            "load": self.load, "warm_up": self.warm_up, "measure": self.measure,
            "finish": self.finish,
        }  # fmt: skip

    def load(self, command: Mapping[str, Any]) -> Answer:
        """Load the model."""
        import torch

        from forge.kernels.cpu import native
        from forge.profile.probes import Probe, fixed_tokens, weight_bytes
        from forge.runtime.any_model import load_any

        request, setting = self._request, self._request.setting
        compiled: list[str] = []
        before = process_memory.resident()
        began = time.perf_counter()
        with native.announcing(compiled.append):
            loaded = load_any(
                request.reference, device=setting.device, dtype=setting.dtype,
                threads=setting.threads,
            )  # fmt: skip
        self._device.synchronize()
        seconds = time.perf_counter() - began
        self._memory = {
            "weights_in_memory": weight_bytes(loaded.model),
            "resident_before_load": before,
            "peak_resident_loading": process_memory.peak_resident(),
        }
        self._load_peak = process_memory.peak_resident()
        self._is_reset = process_memory.reset_peak()
        tokens_BL = fixed_tokens(setting, vocabulary=request.vocabulary, seed=request.seed)
        self._probe = Probe(
            loaded.model, self._device, tokens_BL=tokens_BL, prompt_tokens=setting.prompt_tokens
        )
        self._expected = kv_bytes_per_token(
            loaded.model.config.get_text_config().to_dict(),
            itemsize=getattr(torch, loaded.dtype).itemsize,
        )
        notices = [] if self._probe.skips_logits else [
            "This architecture computes logits for every position of a prompt, read or not; its "
            "prefill contains them."
        ]  # fmt: skip
        if compiled:
            notices.append(
                "Kernels were compiled while this model was loaded; that happens once on a "
                "machine, and its load time contains it."
            )
        return {
            "load_s": seconds, "backend": backend_name(loaded), "memory": self._memory,
            "notices": notices,
        }  # fmt: skip

    def warm_up(self, command: Mapping[str, Any]) -> Answer:
        """Run the model until its times are flat."""
        from forge.profile.probes import warm_up

        found = warm_up(self._ready())
        return {"runs": found.runs, "change": found.change, "is_flat": found.is_flat}

    def measure(self, command: Mapping[str, Any]) -> Answer:
        """Take samples: one turn."""
        probe, energy = self._ready(), self._device.energy
        waited, cpu = waited_s(), time.process_time()
        probe.wake()
        before = energy()
        samples = probe.measure(int(command["samples"]))
        used = used_between(before, energy())
        anonymous = process_memory.anonymous()
        self._memory["anonymous"] = max(anonymous or 0, self._memory.get("anonymous") or 0) or None
        return {
            "samples": asdict(samples), "energy_j": used, "clock_mhz": self._device.clock_mhz(),
            "cpu_s": time.process_time() - cpu, "waited_s": waited_s() - waited,
        }  # fmt: skip

    def finish(self, command: Mapping[str, Any]) -> Answer:
        """Look at the memory for the last time."""
        peak, setting = process_memory.peak_resident(), self._request.setting
        cached = self._ready().cache_bytes
        tokens = setting.batch * setting.prompt_tokens
        self._memory |= {
            "kv_per_token": None if cached is None else round(cached / tokens),
            "kv_per_token_by_formula": self._expected,
            "peak_resident": max(peak, self._load_peak),
            "peak_resident_running": peak if self._is_reset else None,
        }
        return {"memory": {**self._memory, **self._device.memory()}}

    def _ready(self) -> Probe:
        if self._probe is None:
            raise ForgeError("No model is loaded yet; the first command is 'load'.")
        return self._probe


def backend_name(loaded: LoadedModel) -> str:
    """Return what computes a model's layers: the kernels, the type, the attention.

    Args:
        loaded: The model.

    Returns:
        Such as ``forge packed u4, float32, sdpa attention``.
    """
    from forge.runtime.linear import QuantizedLinear

    kinds = sorted({
        module.kind.name for module in loaded.model.modules() if isinstance(module, QuantizedLinear)
    })  # fmt: skip
    kernels = f"{loaded.backend} packed {'+'.join(kinds)}" if kinds else f"{loaded.backend} plain"
    attention = getattr(loaded.model.config, "_attn_implementation", None)
    return f"{kernels}, {loaded.dtype}" + (f", {attention} attention" if attention else "")


def serve(request: Request, commands: TextIO, answer: Callable[[Answer], None]) -> int:
    """Do commands until there are no more.

    Args:
        request: What this process is for.
        commands: One JSON object a line.
        answer: Receives one answer to each.

    Returns:
        The exit code.
    """
    with ExitStack() as stack:
        try:
            _import_libraries()
            from forge.profile.devices import open_device

            worker = Worker(request, stack.enter_context(open_device(request.setting.device)))
            answer({"ok": {}})
            for line in commands:
                command = json.loads(line)
                answer({"ok": worker.commands[command["do"]](command)})
                if command["do"] == "finish":
                    break
        except Exception as error:
            # Whatever a model raises ends this cell, and only this cell.
            answer({"failed": _explain(error)})
            return FAILED
    return 0


def _import_libraries() -> None:
    """Import what loading needs, so that it is no part of the load time."""

    import forge.runtime.assemble
    import forge.runtime.linear  # noqa: F401

    logging.getLogger("transformers").setLevel(logging.ERROR)


def _explain(error: Exception) -> Answer:
    from forge.profile.devices import is_out_of_memory

    lines = str(error).strip().splitlines() or [type(error).__name__]
    if is_out_of_memory(error):
        return {"status": OUT_OF_MEMORY, "message": f"Memory ran out: {lines[0]}"}
    if isinstance(error, ForgeError):
        return {"status": BROKEN, "message": str(error)}
    return {"status": BROKEN, "message": f"{type(error).__name__}: {lines[0]}"}


def _claim_stdout() -> Callable[[Answer], None]:
    """Keep stdout for answers, and send what anything else prints to stderr."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: Answer) -> None:
        channel.write(json.dumps(answer) + "\n")
        channel.flush()

    return say


def _volunteer() -> None:
    """Let the kernel end this process when memory runs out, and not the one that keeps results."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return


def main() -> int:
    """Serve the request on the command line."""
    _volunteer()
    return serve(Request.load(sys.argv[1]), sys.stdin, _claim_stdout())


if __name__ == "__main__":
    sys.exit(main())

"""Run a model as a server would, and look at the clock.

A prompt of fixed token ids is read in one forward pass, which computes logits for its last position
only; then the model is driven step by step with the cache that it made, by token ids that were
fixed as well, so that every model does the same work and no end-of-text token ends it. At each step
the likeliest token is found and handed to Python, as decoding does.

    prefill_s   the forward pass over the prompt, until the device is done
    ttft_s      the same, until Python holds the first token
    decode_s    one step of all sequences, until Python holds their tokens

Shape suffixes: B sequences, T tokens of the prompt, N decoding steps.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from forge.core.errors import IncompatibleError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forge.profile.devices import Device
    from forge.profile.setting import Setting

WARM_STEPS: Final = 8
"""Decoding steps of one run of the warm-up, at most."""
FLAT: Final = 0.05
"""Two runs in a row that differ by less than this are flat."""
MOST_WARM_RUNS: Final = 8


@dataclass(slots=True)
class Samples:
    """Raw samples of one turn, in seconds.

    Attributes:
        prefill_s: One a prompt.
        ttft_s: One a prompt.
        decode_s: One a decoding step.
    """

    prefill_s: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How the warm-up went.

    Attributes:
        runs: How many runs it took.
        change: Relative change between the last two, of prompt or step, whichever is greater.
    """

    runs: int
    change: float

    @property
    def is_flat(self) -> bool:
        """Whether the last two runs agreed."""
        return self.change < FLAT


def fixed_tokens(setting: Setting, *, vocabulary: int, seed: int) -> torch.Tensor:
    """Return the token ids of prompt and steps.

    Args:
        setting: How many there are.
        vocabulary: Ids are below it.
        seed: Of the draw.

    Returns:
        int64 ``[B, T + N]``, from a counter-based generator: the same anywhere.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    return torch.from_numpy(
        generator.integers(vocabulary, size=(setting.batch, setting.length), dtype=np.int64)
    )


class Probe:
    """Measures one model in one setting.

    Args:
        model: The model, in evaluation mode.
        device: Where it runs.
        tokens_BL: Token ids of prompt and steps, ``[B, T + N]``.
        prompt_tokens: T.
        clock: Returns seconds.

    Attributes:
        skips_logits: Whether logits of a prompt's other positions are left out.
        cache_bytes: What the keys and values of the whole prompt take, once one was read; ``None``
            where the cache is of an unknown kind.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        device: Device,
        *,
        tokens_BL: torch.Tensor,
        prompt_tokens: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model, self._device, self._clock = model, device, clock
        on_device = tokens_BL.to(model.device)
        self._prompt_BT = on_device[:, :prompt_tokens].contiguous()
        self._steps_B1 = [
            on_device[:, place : place + 1].contiguous()
            for place in range(prompt_tokens, on_device.shape[1])
        ]
        self._options: dict[str, object] = {"use_cache": True}
        self.cache_bytes: int | None = None
        # Logits of a prompt's other positions are read by nobody, and may cost more than the rest.
        self.skips_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        if self.skips_logits:
            self._options["logits_to_keep"] = 1

    def wake(self) -> None:
        """Run one token, untimed: threads wake, clocks rise, weights come back into caches."""
        with torch.inference_mode():
            self._forward(self._prompt_BT[:, :1], None)
            self._device.synchronize()

    def measure(self, samples: int, *, steps: int | None = None) -> Samples:
        """Read prompts and decode behind them.

        Args:
            samples: How many prompts.
            steps: Decoding steps of each; ``None`` for all.

        Returns:
            The samples.

        Raises:
            IncompatibleError: The model keeps no cache.
        """
        found = Samples()
        with torch.inference_mode():
            for _ in range(samples):
                cache = self._prefill(found)
                self._decode(cache, self._steps_B1[:steps], found)
                del cache
        return found

    def _prefill(self, found: Samples) -> Any:
        self._device.synchronize()
        began = self._clock()
        output = self._forward(self._prompt_BT, None)
        self._device.synchronize()
        found.prefill_s.append(self._clock() - began)
        _tokens_of(output)
        found.ttft_s.append(self._clock() - began)
        if output.get("past_key_values") is None:
            raise IncompatibleError(
                f"{type(self._model).__name__} keeps no cache of keys and values, so that it has "
                "no decoding step to measure."
            )
        cache = output.past_key_values
        if self.cache_bytes is None:
            self.cache_bytes = sum(tensor.nbytes for tensor in _cached_tensors(cache)) or None
        return cache

    def _decode(self, cache: Any, steps_B1: Sequence[torch.Tensor], found: Samples) -> None:
        for token_B1 in steps_B1:
            began = self._clock()
            output = self._forward(token_B1, cache)
            # Reading the tokens waits for the device.
            _tokens_of(output)
            found.decode_s.append(self._clock() - began)
            cache = output.past_key_values

    def _forward(self, tokens_BT: torch.Tensor, cache: Any) -> Any:
        return self._model(input_ids=tokens_BT, past_key_values=cache, **self._options)


def warm_up(probe: Probe, *, most_runs: int = MOST_WARM_RUNS) -> WarmUp:
    """Run a model until two runs in a row take the same time.

    A run is one prompt and a few decoding steps. The prompt's time and the median step are compared
    with those of the run before; the first run, which compiles and allocates, therefore never
    counts for the measurement.

    Args:
        probe: What is run.
        most_runs: It ends there even if the times still change, as on a noisy machine.

    Returns:
        How it went.
    """
    previous: tuple[float, float] | None = None
    change = float("inf")
    for number in range(1, most_runs + 1):
        samples = probe.measure(1, steps=WARM_STEPS)
        times = samples.prefill_s[0], median(samples.decode_s)
        if previous is not None:
            pairs = zip(times, previous, strict=True)
            change = max(abs(now - before) / before for now, before in pairs)
            if change < FLAT:
                return WarmUp(number, change)
        previous = times
    return WarmUp(most_runs, change)


def weight_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of a model's parameters and buffers; shared ones count once.

    Args:
        model: The model. What bitsandbytes keeps beside a packed weight counts as well.
    """
    found: dict[tuple[int, int], int] = {}
    for tensor in _weights(model):
        size = tensor.numel() * tensor.element_size()
        found[tensor.data_ptr(), size] = size
    return sum(found.values())


def _weights(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    for tensor in (*model.parameters(), *model.buffers()):
        yield tensor
        state = getattr(tensor, "quant_state", None)
        while state is not None:
            yield from (part for part in vars(state).values() if isinstance(part, torch.Tensor))
            state = getattr(state, "state2", None)


def _cached_tensors(cache: Any) -> Iterator[torch.Tensor]:
    for layer in getattr(cache, "layers", ()):
        parts: Mapping[str, object] = vars(layer)
        for part in parts.values():
            # A layer also keeps counters, which are tensors of one element.
            if isinstance(part, torch.Tensor) and part.ndim > 1:
                yield part


def _tokens_of(output: Any) -> list[int]:
    tokens: list[int] = output.logits[:, -1].argmax(-1).tolist()
    return tokens

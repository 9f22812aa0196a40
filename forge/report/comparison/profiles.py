"""What a comparison holds of time and memory: table 1, and the sweep behind it."""

from __future__ import annotations

from dataclasses import dataclass

from forge.report.comparison.differences import Interval


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of one quantity over all raw samples.

    Attributes:
        median: Seconds.
        p90: Seconds.
        p99: Seconds.
        num_samples: How many.
    """

    median: float
    p90: float
    p99: float
    num_samples: int


@dataclass(frozen=True, slots=True)
class TimeRatio:
    """A model's time relative to its baseline's; below 1 is faster.

    Attributes:
        ratio: Of the medians.
        interval: Bootstrap interval over rounds.
        covered: Whether the machine's noise covers the difference, so that no winner is named.
        why: What covers it, or ``None``.
    """

    ratio: float
    interval: Interval
    covered: bool
    why: str | None


@dataclass(frozen=True, slots=True)
class Profile:
    """A model in one setting.

    Attributes:
        model: Its label.
        baseline: What the ratios are against, measured in turns with it; or ``None``.
        device: Such as ``cpu``.
        dtype: Type of the arithmetic; ``None`` for the one that each checkpoint gets.
        threads: Or ``None``.
        batch: Sequences at once.
        prompt_tokens: Of each sequence.
        new_tokens: Decoded for each.
        status: ``ok``, or why there are no figures.
        backend: The kernels that really ran.
        environment: Name of the environment.
        load: Loading, or ``None``.
        first_token: Prompt to first token, or ``None``.
        prefill: The prompt alone, or ``None``.
        decode: One step of all sequences, or ``None``.
        prefill_tokens_per_s: Of all sequences together, at the median.
        decode_tokens_per_s: Likewise.
        prefill_ratio: Against the baseline, or ``None``.
        decode_ratio: Likewise.
        energy_j_per_token: Energy of a round, prompt included, for each decoded token, or ``None``.
        memory: Bytes by name, ``None`` where the device does not say: ``weights_on_disk``,
            ``weights_in_memory``, ``peak_allocated``, ``peak_reserved``, ``driver``,
            ``peak_resident``, ``kv_per_token``.
        peak_bytes: The one that table 1 shows.
        peak_is: Its name in ``memory``, such as ``peak_allocated``; ``None`` if there is none.
        noise: What the machine did meanwhile, by name.
        notices: What the reader should know.
    """

    model: str
    baseline: str | None
    device: str
    dtype: str | None
    threads: int | None
    batch: int
    prompt_tokens: int
    new_tokens: int
    status: str
    backend: str
    environment: str
    load: Latency | None
    first_token: Latency | None
    prefill: Latency | None
    decode: Latency | None
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    prefill_ratio: TimeRatio | None
    decode_ratio: TimeRatio | None
    energy_j_per_token: float | None
    memory: tuple[tuple[str, int | None], ...]
    peak_bytes: int | None
    peak_is: str | None
    noise: tuple[tuple[str, float], ...]
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProfileTable:
    """Table 1.

    Attributes:
        setting: What all rows share, in words; empty where nothing was profiled.
        rows: For each local model its profile in that setting, or ``None``.
        sweep: All profiles of all settings, by model, then batch and lengths.
    """

    setting: str
    rows: tuple[tuple[str, Profile | None], ...]
    sweep: tuple[Profile, ...]

"""Ratios of one session's figures, and whether the machine was quiet enough to name a winner.

A ratio is baseline time over model time: 2 is twice as fast. Its interval comes from a bootstrap
over rounds and the samples within them. A winner is named only if three things hold:

1. the interval excludes 1: what was sampled does not vary that much;
2. the ratio is farther from 1 than the *control* reaches. The control is the baseline measured
   against itself, in a second process that took its turns like any other model, so it also shows
   what differs between two processes of one model (where their pages lie, for instance), which
   no resampling of one process can. Without one, the first half of the baseline's rounds is
   compared with the second;
3. the ratio is farther from 1 than what others took from the machine can explain. If others had
   the share s of it during the turns of one of the two models, that model may have been slowed by a
   factor of 1 / (1 - s), and nobody knows whether it was.

Anything else is ``≈``, with the reason. Standard library and numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

from forge.profile.noise import disturbance_of
from forge.results.records import ProfileRecord
from forge.statistics.bootstrap import RatioInterval, ratio_interval

Quantity = Literal["prefill", "decode", "ttft"]
Verdict = Literal["faster", "slower", "≈"]
QUANTITIES: Final[tuple[Quantity, ...]] = ("prefill", "decode", "ttft")
CONTROL: Final = "control_"
"""Prefix of the baseline's samples that its second process took."""
Rounds = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class SpeedRatio:
    """How much faster a model is than the baseline, and whether that can be said.

    Attributes:
        quantity: What was timed.
        ratio: Median time of the baseline over that of the model; above 1 the model is faster.
        low: Lower end of the 95 % interval.
        high: Upper end.
        floor: Ratios between its inverse and it are noise; at least 1.
        verdict: ``faster``, ``slower``, or ``≈``.
        reason: Why it is ``≈``; empty otherwise.
    """

    quantity: Quantity
    ratio: float
    low: float
    high: float
    floor: float
    verdict: Verdict
    reason: str

    def as_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Spread:
    """How samples are distributed.

    Attributes:
        count: How many there are.
        median: The middle one.
        p90: Nine of ten are below.
        p99: Ninety-nine of a hundred are below; of few samples, nearly the greatest.
    """

    count: int
    median: float
    p90: float
    p99: float

    def as_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return asdict(self)


def spread(rounds: Rounds) -> Spread | None:
    """Sum up the samples of all rounds, or return ``None`` where there are none.

    Args:
        rounds: Samples of each round.
    """
    samples = sorted(sample for samples in rounds for sample in samples)
    if not samples:
        return None
    return Spread(
        len(samples), _quantile(samples, 0.5), _quantile(samples, 0.9), _quantile(samples, 0.99)
    )


def tokens_per_s(record: ProfileRecord, quantity: Quantity) -> float | None:
    """Return the tokens a second of all sequences together, by the median time.

    Args:
        record: A profile.
        quantity: ``prefill`` or ``decode``; there is none for ``ttft``.
    """
    found = spread(record.samples.get(f"{quantity}_s", ()))
    if found is None or quantity == "ttft":
        return None
    batch, prompt = record.setting["batch"], record.setting["prompt_tokens"]
    assert isinstance(batch, int)
    assert isinstance(prompt, int)
    return batch * (prompt if quantity == "prefill" else 1) / found.median


def compare(
    baseline: ProfileRecord, other: ProfileRecord, quantity: Quantity, *, num_cores: int
) -> SpeedRatio | None:
    """Compare two profiles of one session.

    Args:
        baseline: What the ratio is against; its ``control_…`` samples are used if it has them.
        other: The model.
        quantity: What is compared.
        num_cores: Cores that could be used, from the environment: ``body["cpu"]["cores"]``.

    Returns:
        The ratio, or ``None`` if one of them has no figures.

    Raises:
        ValueError: They are of two sessions, so that their ratio means nothing.
    """
    if baseline.session != other.session:
        raise ValueError("profiles of two sessions were not measured in turns")
    times, own = (record.samples.get(f"{quantity}_s", ()) for record in (baseline, other))
    if not times or not own:
        return None
    found = ratio_interval(times, own)
    control = _control(baseline, quantity)
    reach = 1.0 if control is None else math.exp(_reach(control))
    share = max(disturbance_of(record.noise, num_cores=num_cores) for record in (baseline, other))
    floor = max(reach, 1 / (1 - share))
    reason = _reason(found, len(times), control is not None, reach=reach, share=share)
    verdict: Verdict = "≈" if reason else ("faster" if found.ratio > 1 else "slower")
    return SpeedRatio(quantity, found.ratio, found.low, found.high, floor, verdict, reason)


def _reason(
    found: RatioInterval, num_rounds: int, has_control: bool, *, reach: float, share: float
) -> str:
    """Return why no winner is named, or nothing."""
    difference = abs(math.log(found.ratio))
    if num_rounds < 2 or not has_control:
        return "too few rounds to know the noise; take more with --rounds"
    if found.low <= 1 <= found.high:
        return "the interval holds 1"
    if difference <= math.log(reach):
        return f"the baseline differs from itself by up to {reach - 1:.0%}"
    if difference <= -math.log1p(-share):
        return f"others took up to {share:.0%} of the machine meanwhile"
    return ""


def _control(baseline: ProfileRecord, quantity: Quantity) -> RatioInterval | None:
    times = baseline.samples[f"{quantity}_s"]
    again = baseline.samples.get(f"{CONTROL}{quantity}_s", ())
    if again and len(again) == len(times):
        return ratio_interval(times, again)
    half = len(times) // 2
    return ratio_interval(times[:half], times[-half:]) if half >= 2 else None


def _reach(interval: RatioInterval) -> float:
    """Return how far an interval of a ratio reaches from 1, as a logarithm."""
    return max(abs(math.log(interval.low)), abs(math.log(interval.high)))


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values, interpolated between the nearest two."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def cores_of(environment: Mapping[str, object]) -> int:
    """Return how many cores an environment had.

    Args:
        environment: Body of an environment's record.
    """
    cpu = environment.get("cpu")
    cores = cpu.get("cores") if isinstance(cpu, Mapping) else None
    return cores if isinstance(cores, int) and cores > 0 else 1

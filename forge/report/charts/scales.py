"""From values to places, and the round numbers that an axis shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from forge.report.words import signed


@dataclass(frozen=True, slots=True)
class Scale:
    """A straight or logarithmic axis.

    Attributes:
        low: Value at ``start``.
        high: Value at ``stop``; above ``low``.
        start: Coordinate of ``low``.
        stop: Coordinate of ``high``; below ``start`` for an axis that points up.
        ticks: Values to mark, rising, all in [``low``, ``high``].
        logarithmic: Whether equal ratios are equally long.
    """

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value; what is outside lies at the end."""
        value = min(self.high, max(self.low, value))
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def labels(self) -> tuple[str, ...]:
        """Return the text of each tick, all with as many digits as their distances need."""
        if self.logarithmic:
            return tuple(f"{tick:.12g}" for tick in self.ticks)
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        if round(step * 10**digits, 6) % 1:
            digits += 1
        return tuple(signed(f"{tick:.{digits}f}") for tick in self.ticks)


def linear(
    values: Sequence[float], start: float, stop: float, *, num_ticks: int = 5, tight: bool = False
) -> Scale:
    """Return a scale that holds all values.

    Args:
        values: Finite values; at least one.
        start: Coordinate of the low end.
        stop: Coordinate of the high end.
        num_ticks: About how many ticks.
        tight: End at the values rather than at the ticks around them.
    """
    low, high = min(values), max(values)
    if low == high:
        room = abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    step = _round_step((high - low) / max(1, num_ticks))
    if not tight:
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = tuple(min(high, max(low, number * step)) for number in range(first, last + 1))
    return Scale(low, high, start, stop, ticks)


def logarithmic(values: Sequence[float], start: float, stop: float) -> Scale:
    """Return a logarithmic scale that holds all values, which are above 0."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low / 1.5, high * 1.5
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        marks = [digit * 10.0**power for power in decades for digit in digits]
        below = [mark for mark in marks if mark <= low * (1 + 1e-9)]
        above = [mark for mark in marks if mark >= high * (1 - 1e-9)]
        floor = below[-1] if below else low
        ceiling = above[0] if above else high
        ticks = tuple(mark for mark in marks if floor <= mark <= ceiling)
        if len(ticks) >= 4:
            break
    return Scale(floor, ceiling, start, stop, ticks, logarithmic=True)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(digit for digit in (1.0, 2.0, 2.5, 5.0, 10.0) if digit * power >= rough)

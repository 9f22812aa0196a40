"""Parameter values as functions of the tensor and of its place among the layers.

A setting is a list of rules; the first rule whose filter occurs in the tensor's name wins.
A rule holds anchors spread evenly over [0, 1]: one anchor is a constant, several are a
gradient. Numbers are interpolated piecewise-linearly; booleans and words step, each holding
from its anchor to the next one.

Rules of an inner level stand before those of an outer one, so that "fall through when no
filter matches" is nothing but concatenation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from forge.recipes.parameters import ParameterValue
from forge.recipes.place import Place

_SNAP: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Rule:
    """Values for the tensors that a filter picks.

    Attributes:
        filter: Text that occurs in the tensor's name, or ``None`` for every tensor.
        anchors: Values at even distances over the layers, at least one.
        place: Where the recipe says so; does not take part in comparisons.
    """

    filter: str | None
    anchors: tuple[ParameterValue, ...]
    place: Place = field(default_factory=Place, compare=False, repr=False)

    def matches(self, tensor: str) -> bool:
        """Return whether this rule holds for a tensor."""
        return self.filter is None or self.filter in tensor

    def at(self, position: float) -> ParameterValue:
        """Return the value at a position among the layers.

        Args:
            position: 0 for the first layer to 1 for the last.

        Returns:
            The constant, the interpolated number, or the word of the nearest anchor at or
            below the position.
        """
        last = len(self.anchors) - 1
        if last == 0:
            return self.anchors[0]
        scaled = min(max(position, 0.0), 1.0) * last
        # idx / (layers - 1) * (anchors - 1) misses a whole number by a rounding error; without
        # snapping, a step would then come one layer late.
        nearest = round(scaled)
        if abs(scaled - nearest) < _SNAP:
            return self.anchors[nearest]
        index = math.floor(scaled)
        low, high = self.anchors[index], self.anchors[index + 1]
        if isinstance(low, (bool, str)) or isinstance(high, (bool, str)):
            return low
        value = low + (scaled - index) * (high - low)
        return min(max(value, min(low, high)), max(low, high))


@dataclass(frozen=True, slots=True)
class Setting:
    """All rules for one parameter at one level of a recipe, the first match winning."""

    rules: tuple[Rule, ...] = ()

    @classmethod
    def constant(cls, value: ParameterValue) -> Setting:
        """Return the setting that has one value for every tensor."""
        return cls((Rule(None, (value,)),))

    @classmethod
    def stacked(cls, parameter: str, levels: Iterable[Mapping[str, Setting]]) -> Setting:
        """Return the setting that asks the levels of a recipe one after the other.

        Args:
            parameter: Whose setting it is.
            levels: Settings by parameter, the innermost level first.

        Returns:
            The rules of all levels; none where no level names the parameter.
        """
        found = [level[parameter] for level in levels if parameter in level]
        return cls(tuple(rule for setting in found for rule in setting.rules))

    @property
    def is_total(self) -> bool:
        """Whether some rule holds for every tensor."""
        return any(rule.filter is None for rule in self.rules)

    def matching(self, tensor: str) -> Rule | None:
        """Return the first rule that holds for a tensor, or ``None``."""
        # Asked hundreds of thousands of times for a model of many experts: no generator here.
        for rule in self.rules:
            if rule.filter is None or rule.filter in tensor:
                return rule
        return None

    def value(self, tensor: str, position: float) -> ParameterValue | None:
        """Evaluate for one tensor.

        Args:
            tensor: Full name of the tensor.
            position: 0 for the first layer of the slice to 1 for its last; 0 outside layers.

        Returns:
            The value, or ``None`` when no rule matches.
        """
        rule = self.matching(tensor)
        return None if rule is None else rule.at(position)

    def then(self, outer: Setting | None) -> Setting:
        """Return the setting that asks ``outer`` where this one has no match."""
        if outer is None or self.is_total:
            return self
        return Setting(self.rules + outer.rules)

    def dump(self) -> object:
        """Return the shortest YAML value that reads back as this setting."""
        if len(self.rules) == 1 and self.rules[0].filter is None:
            return _dump_anchors(self.rules[0].anchors)
        return [
            {"value": _dump_anchors(rule.anchors)}
            if rule.filter is None
            else {"filter": rule.filter, "value": _dump_anchors(rule.anchors)}
            for rule in self.rules
        ]


def layer_position(index: int, num_layers: int) -> float:
    """Return where a layer stands in its slice.

    Args:
        index: Layer counted from 0 within the slice.
        num_layers: Layers of the slice.

    Returns:
        ``index / (num_layers - 1)``; 1 for a slice of one layer.
    """
    return 1.0 if num_layers <= 1 else index / (num_layers - 1)


def _dump_anchors(anchors: tuple[ParameterValue, ...]) -> object:
    return anchors[0] if len(anchors) == 1 else list(anchors)

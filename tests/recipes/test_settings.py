"""Gradients and filters evaluate as documented."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.recipes.settings import Rule, Setting, layer_position

numbers = st.floats(-10, 10)
gradients = st.lists(numbers, min_size=1, max_size=9).map(tuple)
positions = st.floats(0, 1)


@settings(deadline=None)
@given(gradients, positions)
def test_numbers_are_interpolated_piecewise_linearly(
    anchors: tuple[float, ...], position: float
) -> None:
    expected = np.interp(position * (len(anchors) - 1), range(len(anchors)), anchors)
    # Positions are snapped to an anchor within 1e-9, which moves a value by at most 20e-9.
    assert Rule(None, anchors).at(position) == pytest.approx(expected, abs=1e-7)


@settings(deadline=None)
@given(gradients, positions)
def test_values_stay_between_neighbouring_anchors(
    anchors: tuple[float, ...], position: float
) -> None:
    assert min(anchors) <= Rule(None, anchors).at(position) <= max(anchors)


@settings(deadline=None)
@given(st.integers(2, 40), st.data())
def test_a_layer_on_an_anchor_has_exactly_its_value(count: int, data: st.DataObject) -> None:
    anchors = tuple(data.draw(st.lists(numbers, min_size=count, max_size=count)))
    for factor in (1, 2, 3):
        layers = (count - 1) * factor + 1
        for index, anchor in enumerate(anchors):
            assert Rule(None, anchors).at(layer_position(index * factor, layers)) == anchor


@settings(deadline=None)
@given(numbers, positions)
def test_a_gradient_of_equal_values_is_constant(value: float, position: float) -> None:
    assert Rule(None, (value,) * 4).at(position) == value


@settings(deadline=None)
@given(st.lists(st.booleans() | st.sampled_from("abc"), min_size=1, max_size=8), st.integers(1, 90))
def test_words_and_booleans_step_at_their_anchors(anchors: list[bool | str], layers: int) -> None:
    rule = Rule(None, tuple(anchors))
    for index in range(layers):
        exact = Fraction(1) if layers == 1 else Fraction(index, layers - 1)
        expected = anchors[int(exact * (len(anchors) - 1))]
        assert rule.at(layer_position(index, layers)) is expected


def test_the_published_slerp_gradient() -> None:
    rule = Rule("self_attn", (0.0, 0.5, 0.3, 0.7, 1.0))
    assert [rule.at(p) for p in (0, 0.125, 0.25, 0.5, 0.75, 1)] == [0, 0.25, 0.5, 0.3, 0.7, 1]


@pytest.mark.parametrize(
    ("index", "layers", "expected"), [(0, 1, 1.0), (0, 32, 0.0), (31, 32, 1.0), (1, 3, 0.5)]
)
def test_position_of_a_layer(index: int, layers: int, expected: float) -> None:
    assert layer_position(index, layers) == expected


def test_the_first_match_wins() -> None:
    setting = Setting((Rule("mlp.up", (1.0,)), Rule("mlp", (2.0,)), Rule(None, (3.0,))))
    assert setting.value("model.layers.0.mlp.up_proj.weight", 0) == 1
    assert setting.value("model.layers.0.mlp.down_proj.weight", 0) == 2
    assert setting.value("model.norm.weight", 0) == 3


def test_filters_are_plain_text() -> None:
    setting = Setting((Rule("a.b", (1.0,)), Rule(".*", (2.0,))))
    assert setting.value("xa.bx", 0) == 1
    assert setting.value("axb", 0) is None


def test_without_a_match_the_outer_setting_is_asked() -> None:
    inner = Setting((Rule("mlp", (1.0,)),))
    outer = Setting((Rule("norm", (2.0,)), Rule(None, (3.0,))))
    joined = inner.then(outer)
    assert [joined.value(name, 0) for name in ("mlp", "norm", "x")] == [1, 2, 3]
    assert inner.value("norm", 0) is None
    assert Setting.constant(5.0).then(outer) == Setting.constant(5.0)
    assert inner.then(None) == inner


@settings(deadline=None)
@given(gradients)
def test_dump_is_the_shortest_form(anchors: tuple[float, ...]) -> None:
    dumped = Setting((Rule(None, anchors),)).dump()
    assert dumped == (anchors[0] if len(anchors) == 1 else list(anchors))
    both = Setting((Rule("mlp", anchors), Rule(None, (0.5,)))).dump()
    assert both == [{"filter": "mlp", "value": dumped}, {"value": 0.5}]

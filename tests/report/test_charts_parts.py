"""Letters, scales, colours and the placing of names: each held against something independent."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge.report.charts.axes import Area
from forge.report.charts.drawing import marker
from forge.report.charts.letters import FONT, shorten, width
from forge.report.charts.palette import (
    NUM_SERIES,
    NUM_STEPS,
    ROLES,
    contrast,
    series_role,
    step_role,
    style_sheet,
)
from forge.report.charts.placement import Anchor, Box, place
from forge.report.charts.scales import linear, logarithmic
from forge.report.markup import escape
from tests.report.pixels import read_png

_FINITE = st.floats(-1e9, 1e9).map(lambda value: round(value, 6))


@pytest.mark.parametrize(
    "text",
    [
        "SmolLM2-135M-Instruct",
        "demo-dare-awq-gemv",
        "WWWWWWWW",
        "iiiiiiiiiiii",
        "+5.5 [+4.1, +6.9]",
        "Größe: 12 µs",
    ],
)
@pytest.mark.parametrize("bold", [False, True])
def test_text_takes_the_room_that_was_reckoned(text: str, bold: bool) -> None:
    renderer = pytest.importorskip("vl_convert")
    weight = ' font-weight="700"' if bold else ""
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="600" height="60">'
        f'<text x="20" y="40" font-size="26" font-family="{FONT}"{weight}>{escape(text)}</text>'
        "</svg>"
    )
    places = read_png(renderer.svg_to_png(svg, scale=1)).ink()
    drawn = max(x for x, _ in places) - 20
    reckoned = width(text, 26, bold=bold)

    assert drawn <= reckoned
    assert drawn >= 0.8 * reckoned


def test_a_short_text_keeps_its_end() -> None:
    name = "an-organisation/a-very-long-name-of-a-model-awq-gemv"
    short = shorten(name, 160, 12)

    assert width(short, 12) <= 160
    assert short.startswith("an-")
    assert short.endswith("gemv")
    assert shorten("short", 160, 12) == "short"
    assert shorten(name, 1, 12) == "…"


@given(st.lists(_FINITE, min_size=1, max_size=8), st.booleans())
def test_a_scale_holds_its_values_between_round_ticks(values: list[float], tight: bool) -> None:
    scale = linear(values, 400, 20, tight=tight)
    labels = scale.labels()

    rounding = 1e-8 * (scale.high - scale.low)
    assert scale.low - rounding <= min(values) <= max(values) <= scale.high + rounding
    assert all(20 - 1e-6 <= scale(value) <= 400 + 1e-6 for value in values)
    assert list(scale.ticks) == sorted(scale.ticks)
    assert len(set(labels)) == len(labels)
    for tick, label in zip(scale.ticks, labels, strict=True):
        # What stands at a tick is the tick, to a thousandth of what the axis spans.
        assert float(label.replace("−", "-")) == pytest.approx(
            tick, abs=(scale.high - scale.low) / 1000
        )


@given(st.lists(st.floats(1e-8, 1e8), min_size=1, max_size=8))
def test_a_logarithmic_scale_makes_equal_ratios_equally_long(values: list[float]) -> None:
    scale = logarithmic(values, 0, 300)

    assert scale.low <= min(values) * (1 + 1e-9)
    assert scale.high >= max(values) * (1 - 1e-9)
    expected = 300 * math.log(values[0] / scale.low) / math.log(scale.high / scale.low)
    assert scale(values[0]) == pytest.approx(expected, abs=1e-6)
    assert len(scale.ticks) <= 30


def test_zero_has_no_sign() -> None:
    assert linear([-0.001, 5], 0, 100).labels()[0] in {"0", "−2"}
    assert "−0" not in linear([-1, 1], 0, 100).labels()


@pytest.mark.parametrize("dark", [False, True])
def test_colours_are_read_on_their_backgrounds(dark: bool) -> None:
    paper, raised = ROLES["paper"][dark], ROLES["raised"][dark]
    for role in ("ink", "mute", "link", "good", "warn", "bad"):
        assert contrast(ROLES[role][dark], paper) >= 4.5
        assert contrast(ROLES[role][dark], raised) >= 4.5
    for role in ("good", "warn", "bad"):
        assert contrast(ROLES[role][dark], ROLES[f"{role}-wash"][dark]) >= 4.5
    for number in range(NUM_SERIES):
        assert contrast(ROLES[series_role(number)][dark], paper) >= 4.5
    for number in range(NUM_STEPS):
        step = f"h{number}"
        assert contrast(ROLES[f"on-{step}"][dark], ROLES[step][dark]) >= 4.5
    assert contrast(ROLES["axis"][dark], paper) >= 3


def test_contrast_is_that_of_the_guideline() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)
    assert contrast("#0072b2", "#0072b2") == pytest.approx(1)


def test_steps_grow_darker_in_light_and_lighter_in_dark() -> None:
    assert [step_role(share) for share in (0, 0.49, 0.999, 1, 7, -1)] == [
        "h0", "h3", "h6", "h6", "h6", "h0",
    ]  # fmt: skip
    for dark, background in ((0, "#ffffff"), (1, "#000000")):
        depth = [contrast(ROLES[f"h{number}"][dark], background) for number in range(NUM_STEPS)]
        assert depth == sorted(depth)


def test_the_style_sheet_has_each_role_in_light_and_dark_and_prints_light() -> None:
    sheet = style_sheet()
    for role, (light, dark) in ROLES.items():
        assert f"--{role}:{light};" in sheet
        assert f"--{role}:{dark};" in sheet
        assert f".f-{role}{{fill:var(--{role})}}" in sheet
    assert sheet.index("prefers-color-scheme:dark") < sheet.index("@media print")
    assert ROLES["paper"][1] not in sheet[sheet.index("@media print") :]


def test_no_two_of_many_series_look_the_same() -> None:
    assert len({marker(index, 0, 0, 5) for index in range(56)}) == 56


@given(
    st.lists(
        st.builds(
            Anchor,
            x=st.integers(20, 480).map(float),
            y=st.integers(20, 280).map(float),
            radius=st.integers(2, 14).map(float),
            width=st.integers(20, 160).map(float),
            height=st.just(14.0),
        ),
        max_size=14,
    )
)
def test_names_cover_neither_names_nor_points_nor_the_edge(anchors: list[Anchor]) -> None:
    area = Area(0, 0, 500, 300)
    found = [box for box in place(anchors, area, []) if box is not None]

    for box in found:
        assert area.left <= box.left <= box.right <= area.right
        assert area.top <= box.top <= box.bottom <= area.bottom
        assert not any(box.covers(anchor.box) for anchor in anchors)
    assert not any(one.covers(other) for one, other in itertools.combinations(found, 2))


def test_a_lone_name_stands_at_the_right_and_off_what_is_in_its_way() -> None:
    anchor = Anchor(100, 100, 5, 60, 14)
    area = Area(0, 0, 500, 300)
    (free,) = place([anchor], area, [])
    (moved,) = place([anchor], area, [Box(105, 60, 300, 140)])

    assert free is not None
    assert moved is not None
    assert free.left > 105
    assert free.top < 100 < free.bottom
    assert moved.right < 100 or moved.bottom <= 100 or moved.top >= 100
    assert not moved.covers(Box(105, 60, 300, 140))


def test_every_name_of_a_usual_picture_finds_a_place() -> None:
    crowded = [Anchor(250 + number, 100 + 12 * number, 7, 120, 14) for number in range(9)]

    assert None not in place(crowded, Area(0, 0, 500, 300), [])

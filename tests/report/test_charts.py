"""Charts: what is drawn stands where its figure says, and each file is whole on its own."""

from __future__ import annotations

import dataclasses
import itertools
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from forge.core.errors import MissingExtraError, OutputError
from forge.report.charts import all_charts, groups, narrow_groups
from forge.report.charts.drawing import Drawing
from forge.report.charts.forest import ForestRow, forest
from forge.report.charts.heatmap import HeatBlock, heat_map
from forge.report.charts.kl_bytes import KlPoint, kl_bytes
from forge.report.charts.layers import LayerPanel, LayerSeries, layer_panels
from forge.report.charts.pareto import ParetoPoint, pareto
from forge.report.charts.reliability import ReliabilityPlot, reliability
from forge.report.images import write_png
from tests.report.comparison_factory import POISON, QUANTIZED, comparison, hostile
from tests.report.pixels import read_png

SVG = "{http://www.w3.org/2000/svg}"


def parsed(drawing: Drawing) -> ET.Element:
    return ET.fromstring(drawing.standalone().encode())


def tips(root: ET.Element) -> list[str]:
    """Return what viewers show when one points at a mark."""
    return [title.text or "" for title in root.iter(f"{SVG}title")][1:]


def texts(root: ET.Element) -> dict[str, ET.Element]:
    return {"".join(part for part in item.itertext()): item for item in root.iter(f"{SVG}text")}


def middle(shape: ET.Element) -> tuple[float, float]:
    """Return the middle of a mark."""
    if shape.tag == f"{SVG}circle":
        return float(shape.get("cx", "")), float(shape.get("cy", ""))
    corners = [tuple(map(float, pair.split(","))) for pair in shape.get("points", "").split()]
    return (
        sum(corner[0] for corner in corners) / len(corners),
        sum(corner[1] for corner in corners) / len(corners),
    )


def marks(root: ET.Element) -> dict[str, ET.Element]:
    """Return marks of series by what is shown when one points at them."""
    found = {}
    for group in root.iter(f"{SVG}g"):
        title = group.find(f"{SVG}title")
        shapes = [item for item in group if item.tag in {f"{SVG}circle", f"{SVG}polygon"}]
        if title is not None and shapes:
            found[title.text or ""] = shapes[0]
    return found


def axis_value(root: ET.Element, coordinate: float, *, upright: bool) -> float:
    """Return the value at a coordinate as a reader would, from two labelled ticks."""
    ticks = []
    for label, item in texts(root).items():
        at_axis = item.get("text-anchor") == ("end" if upright else "middle")
        if at_axis and item.get("font-size") == "12" and re.fullmatch(r"−?[\d.]+", label):
            place = float(item.get("y" if upright else "x", "")) - (4 if upright else 0)
            ticks.append((float(label.replace("−", "-")), place))
    (low, start), (high, stop) = min(ticks), max(ticks)
    return low + (coordinate - start) / (stop - start) * (high - low)


POINTS = [
    ParetoPoint("source", 0, 16e9, 60.0, 58.0, 62.0, 10.0, on_front=False),
    ParetoPoint("awq", 1, 5e9, 59.5, 57.4, 61.3, 40.0, on_front=True),
    ParetoPoint("merge", 2, 15.5e9, 64.0, None, None, None, on_front=True),
]


def test_a_pareto_mark_stands_at_its_accuracy_and_memory() -> None:
    root = parsed(pareto(POINTS, memory_name="Peak", accuracy_name="Accuracy"))
    found = marks(root)

    for point in POINTS:
        tip = next(tip for tip in found if tip.startswith(f"{point.label}: "))
        x, y = middle(found[tip])
        assert axis_value(root, x, upright=False) == pytest.approx(
            point.memory_bytes / 1e9, abs=0.05
        )
        # The middle of a triangle's corners is its middle only in x.
        tolerance = 0.4 if point.series == 2 else 0.05
        assert axis_value(root, y, upright=True) == pytest.approx(point.accuracy, abs=tolerance)
    assert "Peak (GB)" in texts(root)


def test_a_pareto_whisker_reaches_as_far_as_the_paired_interval() -> None:
    found = comparison()
    root = ET.fromstring(all_charts(found)["pareto"])
    pair = found.pairs[-1]
    point = next(point for point in found.pareto.points if point.model == pair.variant)  # type: ignore[union-attr]
    x, _ = middle(next(m for tip, m in marks(root).items() if tip.startswith(pair.variant)))
    whisker = next(
        line for line in root.iter(f"{SVG}line")
        if line.get("x1") == line.get("x2") == f"{x:g}" and line.get("stroke-width") == "1.5"
    )  # fmt: skip
    ends = [axis_value(root, float(whisker.get(key, "")), upright=True) for key in ("y1", "y2")]
    half = 100 * (pair.overall.interval.high - pair.overall.difference)

    assert ends == pytest.approx(
        [100 * point.accuracy - half, 100 * point.accuracy + half], abs=0.05
    )


def test_the_area_of_a_pareto_mark_is_the_speed() -> None:
    slow = dataclasses.replace(POINTS[1], label="slow", speed=10.0)
    fast = dataclasses.replace(POINTS[1], label="fast", speed=40.0, memory_bytes=9e9)
    found = marks(parsed(pareto([slow, fast], memory_name="Peak", accuracy_name="Accuracy")))

    def side(tip: str) -> float:
        corners = [pair.split(",") for pair in found[tip].get("points", "").split()]
        return max(float(x) for x, _ in corners) - min(float(x) for x, _ in corners)

    tip_slow, tip_fast = sorted(found, reverse=True)
    assert (side(tip_fast) / side(tip_slow)) ** 2 == pytest.approx(4, rel=0.01)


def test_the_front_goes_up_where_more_memory_buys_more_accuracy() -> None:
    # On the front for its speed alone: filled, and no step of the line.
    fast = dataclasses.replace(
        POINTS[0], label="fast", series=3, memory_bytes=8e9, accuracy=58.0, on_front=True
    )
    root = parsed(pareto([*POINTS, fast], memory_name="Peak", accuracy_name="Accuracy"))
    front = next(
        item for item in root.iter(f"{SVG}polyline") if len(item.get("points", "").split()) > 2
    )
    corners = [tuple(map(float, pair.split(","))) for pair in front.get("points", "").split()]
    steps = [
        axis_value(root, x, upright=False)
        for (x, y), (next_x, next_y) in itertools.pairwise(corners)
        if x == next_x and y != next_y
    ]

    assert steps == pytest.approx([5, 15.5], abs=0.05)

    filled = {tip.partition(":")[0]: mark.get("fill") for tip, mark in marks(root).items()}
    assert filled["source"] == "#ffffff"
    assert filled["fast"] == "#b0568a"


def test_names_without_room_stand_in_a_key_below() -> None:
    crowd = [
        dataclasses.replace(POINTS[1], label=f"model {number}", series=number)
        for number in range(40)
    ]
    narrow = pareto(crowd, memory_name="Peak", accuracy_name="Accuracy", width=360)

    assert {point.label for point in crowd} <= set(texts(parsed(narrow)))
    assert narrow.height > pareto(crowd[:1], memory_name="P", accuracy_name="A", width=360).height


def row(label: str, difference: float, half: float, status: str = "good") -> ForestRow:
    return ForestRow(
        label, "base", 0, difference, difference - half, difference + half, "fine", status
    )


def test_a_forest_interval_reaches_from_its_low_to_its_high_end() -> None:
    rows = [row("up", 5.0, 1.5), row("down", -4.0, 0.5, "bad")]
    root = parsed(forest(rows, margin=1.0))

    for found in rows:
        group = next(
            group for group in root.iter(f"{SVG}g")
            if (group.findtext(f"{SVG}title") or "").startswith(f"{found.label} ")
        )  # fmt: skip
        flat = next(line for line in group.iter(f"{SVG}line") if line.get("y1") == line.get("y2"))
        ends = [axis_value(root, float(flat.get(key, "")), upright=False) for key in ("x1", "x2")]
        assert ends == pytest.approx([found.low, found.high], abs=0.05)


def test_a_forest_is_shaded_up_to_the_margin_and_from_there_to_zero() -> None:
    root = parsed(forest([row("up", 3.0, 1.0)], margin=2.0))
    beyond, within = (
        next(item for item in root.iter(f"{SVG}rect") if item.get("class") == f"f-{role}-wash")
        for role in ("bad", "warn")
    )
    edge = float(beyond.get("x", "")) + float(beyond.get("width", ""))

    assert axis_value(root, edge, upright=False) == pytest.approx(-2, abs=0.05)
    assert float(within.get("x", "")) == pytest.approx(edge)
    assert axis_value(root, edge + float(within.get("width", "")), upright=False) == pytest.approx(
        0, abs=0.05
    )
    assert "margin −2" in texts(root)


def test_a_forest_without_room_says_no_less_when_pointed_at() -> None:
    wide, narrow = (parsed(forest([row("up", 3.0, 1.0)], margin=1.0, width=w)) for w in (840, 360))

    assert tips(wide) == tips(narrow) == ["up − base: +3.0 [+2.0, +4.0], fine"]


def test_the_heat_map_gives_each_value_its_step() -> None:
    block = HeatBlock("m", (0, 1, 2), ("q", "down"), ((0.1, 0.2, 0.8), (None, 0.45, 0.1)))
    root = parsed(heat_map([block], name="heat", measure="error"))
    roles = {}
    for group in root.iter(f"{SVG}g"):
        title, rect = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
        if title is not None and rect is not None:
            roles[title.text] = rect.get("class")

    assert roles == {
        "m, layer 0, q: 0.1": "f-h0", "m, layer 1, q: 0.2": "f-h1", "m, layer 2, q: 0.8": "f-h6",
        "m, layer 0, down: not measured": "f-paper s-grid",
        "m, layer 1, down: 0.45": "f-h3", "m, layer 2, down: 0.1": "f-h0",
    }  # fmt: skip
    assert "layer 2, q, 0.8" in (root.findtext(f"{SVG}desc") or "")


def test_errors_of_many_magnitudes_are_told_apart_by_ratio() -> None:
    block = HeatBlock("m", (0, 1, 2), ("q",), ((0.001, 0.0316, 1.0),))
    root = parsed(heat_map([block], name="heat", measure="error"))
    cells = [
        group.find(f"{SVG}rect")
        for group in root.iter(f"{SVG}g")
        if group.find(f"{SVG}title") is not None
    ]

    assert [cell.get("class") for cell in cells if cell is not None] == ["f-h0", "f-h3", "f-h6"]


def test_a_vanishing_error_does_not_take_the_scale_for_itself() -> None:
    block = HeatBlock("m", (0, 1, 2), ("q",), ((1e-13, 0.02, 1.0),))
    root = parsed(heat_map([block], name="heat", measure="error"))

    assert "≤ 0.0001" in texts(root)
    cells = [
        group.find(f"{SVG}rect")
        for group in root.iter(f"{SVG}g")
        if group.find(f"{SVG}title") is not None
    ]
    assert [cell.get("class") for cell in cells if cell is not None] == ["f-h0", "f-h4", "f-h6"]


def test_many_variants_are_spread_over_panels_of_one_scale() -> None:
    found = comparison()
    models = found.models + tuple(
        dataclasses.replace(found.models[0], label=f"v{number}") for number in range(11)
    )
    measured = tuple(
        dataclasses.replace(
            found.divergences[0], variant=f"v{number}", layers=((0, number / 10.0), (1, 0.1))
        )
        for number in range(11)
    )
    many = dataclasses.replace(found, models=models, divergences=measured)
    (drawing,) = groups(many)["layers"]
    root = parsed(drawing)  # type: ignore[arg-type]
    tops = [item for item in root.iter(f"{SVG}text") if item.text == "1.00"]

    assert len(tops) == 2
    assert {f"v{number}" for number in range(11)} <= set(texts(root))


@pytest.mark.parametrize("values", [(0.0, 0.0), (0.5, 0.5), (1e-9, 1e-9)])
def test_equal_errors_are_drawn_too(values: tuple[float, ...]) -> None:
    root = parsed(heat_map([HeatBlock("m", (0, 1), ("q",), (values,))], name="h", measure="error"))

    assert len(tips(root)) >= 2


def test_a_layer_without_a_value_breaks_the_line() -> None:
    panel = LayerPanel(
        "Error", "", (0, 1, 2, 3, 4), (LayerSeries("a", (1.0, 2.0, None, 3.0, 2.5)),)
    )
    root = parsed(layer_panels([panel], name="layers", title="Layers"))

    assert [len(item.get("points", "").split()) for item in root.iter(f"{SVG}polyline")] == [2, 2]
    assert "a, layer 3: 3 " in tips(root)
    assert "a at most 3 at layer 3" in (root.findtext(f"{SVG}desc") or "")


def test_one_layer_is_drawn() -> None:
    panel = LayerPanel("Error", "%", (7,), (LayerSeries("a", (1.0,)),))

    assert "7" in texts(parsed(layer_panels([panel], name="layers", title="Layers")))


def test_kl_uses_a_logarithmic_axis_only_where_nothing_is_zero() -> None:
    points = [
        KlPoint("a", 0, 4e9, 0.001, 0.0002, 0.02, 0.99),
        KlPoint("b", 1, 2e9, 0.1, 0.02, 2.0, 0.9),
    ]
    same = KlPoint("same", 2, 8e9, 0.0, 0.0, 0.0, 1.0)

    assert "0.001" in texts(parsed(kl_bytes(points)))
    root = parsed(kl_bytes([*points, same]))
    y = middle(next(mark for tip, mark in marks(root).items() if tip.startswith("same")))[1]
    # A triangle's corners lie a little above the point that it marks.
    assert axis_value(root, y, upright=True) == pytest.approx(0, abs=0.03)


def test_reliability_bars_are_as_high_as_their_counts() -> None:
    bins = ((0.5, 0.6, 100, 0.55, 0.4), (0.6, 0.7, 25, 0.65, 0.7))
    root = parsed(reliability([ReliabilityPlot("m", 0, 0.1, bins)]))
    bars = [
        float(group.find(f"{SVG}rect").get("height", ""))  # type: ignore[union-attr]
        for group in root.iter(f"{SVG}g")
        if group.find(f"{SVG}rect") is not None and group.find(f"{SVG}title") is not None
    ]

    assert bars[0] / bars[1] == pytest.approx(4, rel=0.01)
    assert any("100 answers, mean confidence 0.550, 0.400 right" in tip for tip in tips(root))


def test_every_chart_is_whole_on_its_own() -> None:
    charts = all_charts(comparison())

    assert set(charts) == {
        "pareto", "paired-differences", "flips", "kl-against-bytes", "quantization-error-1",
        "divergence-by-layer", "reliability", "merge-1", "merge-2", "merge-3",
    }  # fmt: skip
    for name, svg in charts.items():
        root = ET.fromstring(svg)
        assert root.tag == f"{SVG}svg"
        assert root.get("role") == "img"
        ids = [item.get("id") for item in root.iter() if item.get("id")]
        assert (
            root.get("aria-labelledby", "").split()
            == ids
            == [f"{name}-title", f"{name}-description"]
        )
        assert (root.findtext(f"{SVG}desc") or "").strip()
        assert {item.tag for item in root.iter()} <= {
            f"{SVG}{tag}" for tag in ("svg", "title", "desc", "g", "rect", "line", "polyline",
                                      "polygon", "circle", "text")
        }  # fmt: skip
        # Nothing refers to anything outside, and nothing needs a style sheet.
        assert not any(word in svg for word in ("href", "url(", "style="))
        for item in root.iter(f"{SVG}rect"):
            assert item.get("fill")


def test_names_are_in_the_charts_and_every_mark_is_inside_of_its_picture() -> None:
    for svg in all_charts(comparison()).values():
        root = ET.fromstring(svg)
        width = float(root.get("width", ""))
        for item in root.iter(f"{SVG}text"):
            assert 0 <= float(item.get("x", "")) <= width
        for item in root.iter(f"{SVG}rect"):
            assert float(item.get("x", "0")) + float(item.get("width", "")) <= width + 0.01
    shown = texts(ET.fromstring(all_charts(comparison())["pareto"]))
    assert {point.model for point in comparison().pareto.points} <= set(shown)  # type: ignore[union-attr]


def test_charts_are_the_same_each_time() -> None:
    assert all_charts(comparison()) == all_charts(comparison())


def test_narrow_charts_have_names_of_their_own() -> None:
    wide, narrow = groups(comparison()), narrow_groups(comparison())

    assert set(narrow) == {"pareto", "differences", "flips", "kl"}
    for name, group in narrow.items():
        assert [f"{drawing.name}-narrow" for drawing in wide[name]] == [d.name for d in group]  # type: ignore[union-attr]
        assert all(drawing.width == 360 for drawing in group)  # type: ignore[union-attr]


def test_what_is_missing_is_said_in_a_sentence() -> None:
    empty = dataclasses.replace(
        comparison(), pairs=(), pareto=None, divergences=(), reliability=(),
        quantization_errors=(), merges=(),
    )  # fmt: skip

    assert all_charts(empty) == {}
    sentences = groups(empty)
    assert all(
        isinstance(sentence, str) and sentence.endswith(".") for sentence in sentences.values()
    )
    assert "forge divergence" in str(sentences["kl"])


def test_hostile_text_stays_text() -> None:
    for svg in all_charts(hostile()).values():
        root = ET.fromstring(svg.encode())
        assert {item.tag.removeprefix(SVG) for item in root.iter()}.isdisjoint(
            {"script", "img", "image"}
        )
        assert not any(key.startswith("on") for item in root.iter() for key in item.attrib)
    root = ET.fromstring(all_charts(hostile())["pareto"].encode())
    shown = "".join(tips(root))
    assert "<script>window.hacked=1</script>" in shown
    # What no file may carry is replaced where one sees it, not left out.
    assert shown.count("\ufffd") >= 5
    assert POISON not in shown


@pytest.fixture
def renderer() -> None:
    pytest.importorskip("vl_convert")


def test_a_png_shows_the_marks_and_the_text(tmp_path: Path, renderer: None) -> None:
    svg = all_charts(comparison())["paired-differences"]
    write_png(svg, tmp_path / "forest.png")
    picture = read_png((tmp_path / "forest.png").read_bytes())
    root = ET.fromstring(svg)

    assert (picture.width, picture.height) == (
        round(2 * float(root.get("width", ""))), round(2 * float(root.get("height", ""))),
    )  # fmt: skip
    assert picture.pixel(0, 0) == (255, 255, 255)
    # The title is drawn where it should be: a renderer without a font leaves that place empty.
    title = [(x, y) for x, y in picture.ink(darker_than=90) if y < 70]
    assert len(title) > 1500
    assert min(x for x, _ in title) == pytest.approx(40, abs=8)


def test_without_the_renderer_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'forge\[report\]'"):
        write_png("<svg/>", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_a_picture_that_cannot_be_made_or_written_is_an_error(
    tmp_path: Path, renderer: None
) -> None:
    with pytest.raises(OutputError, match="cannot be rendered"):
        write_png("<svg", tmp_path / "a.png")
    svg = all_charts(comparison())["pareto"]
    with pytest.raises(OutputError, match="cannot be written: No such file"):
        write_png(svg, tmp_path / "nowhere" / "a.png")


def test_a_variant_keeps_its_mark_in_all_charts() -> None:
    charts = all_charts(comparison())
    place = [model.label for model in comparison().models].index(QUANTIZED[1])
    for name in ("pareto", "kl-against-bytes", "reliability"):
        found = marks(ET.fromstring(charts[name]))
        tip = next(tip for tip in found if tip.startswith(QUANTIZED[1]))
        assert f"c{place % 8}" in found[tip].get("class", "")

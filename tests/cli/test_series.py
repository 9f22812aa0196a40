"""Sparklines, bars and the SVG chart."""

from __future__ import annotations

from xml.etree import ElementTree

from forge.cli.series import Curve, Panel, bar, panels_of, sparkline
from forge.cli.svg_chart import svg
from forge.merge.diagnose import LayerRow, Place

SVG = "{http://www.w3.org/2000/svg}"


def row(layer: int, **values: object) -> LayerRow:
    fields: dict[str, object] = {
        "norms": (), "cosines": (), "conflict_share": None, "kept_shares": (),
        "angle_degrees": None, "num_fallbacks": 0, "fallback": None, "notes": {},
    }  # fmt: skip
    return LayerRow(Place(1, layer, f"layer {layer}"), 1, 1, **{**fields, **values})  # type: ignore[arg-type]


def test_a_sparkline_spans_its_axis() -> None:
    curve = Curve("", (0.0, 0.5, 1.0, None, 2.0, -1.0))
    assert sparkline(curve, low=0.0, high=1.0) == "▁▅█·█▁"


def test_bars() -> None:
    assert bar(1.0, 4) == "████"
    assert bar(0.5, 4) == "██"
    assert bar(0.03125, 4) == "▏"
    assert bar(0.0, 4) == ""
    assert bar(7.0, 4) == "████"


def test_panels_hold_what_was_measured() -> None:
    rows = [row(0, norms=(1.0, 2.0), cosines=(0.5,)), row(1, norms=(3.0, 2.0), cosines=(0.5,))]
    panels = panels_of(rows, norm_title="norm")
    assert [panel.title for panel in panels] == ["norm", "cosine between them"]
    assert (panels[0].low, panels[0].high) == (0.0, 3.0)
    assert [curve.label for curve in panels[0].curves] == ["1", "2"]
    assert panels[0].curves[0].values == (1.0, 3.0)
    assert panels[1].curves[0].label == "1·2"
    assert panels[1].high > panels[1].low
    assert panels_of([row(0)], norm_title="norm") == ()


def test_the_chart_is_xml_that_puts_points_where_values_are() -> None:
    panel = Panel("norm <&>", (Curve("1", (0.0, 4.0)), Curve("2", (2.0, None))), 0.0, 4.0)
    text = svg("mix <1>\x1b", [panel], layers=[0, 1], legend=["1 = a & b"])
    root = ElementTree.fromstring(text)
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"mix <1>", "norm <&>", "1 = a & b"} <= set(texts)
    lines = [element.attrib["points"].split() for element in root.iter(f"{SVG}polyline")]
    assert len(lines) == 2
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in lines[0])
    assert x1 > x0
    assert y0 - y1 == 120  # the whole height, upwards
    middle = float(lines[1][0].split(",")[1])
    assert middle == (y0 + y1) / 2
    assert len(list(root.iter(f"{SVG}circle"))) == 3


def test_a_chart_of_many_layers_labels_some(tmp_path: object) -> None:
    values = tuple(float(number) for number in range(80))
    text = svg("t", [Panel("p", (Curve("", values),), 0.0, 79.0)], layers=range(80), legend=[])
    labels = [element.text for element in ElementTree.fromstring(text).iter(f"{SVG}text")]
    assert labels.count("75") == 1
    assert "76" not in labels

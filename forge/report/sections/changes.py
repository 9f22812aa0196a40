"""Paired differences, and the answers that changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from forge.report.charts.palette import paint
from forge.report.charts.selection import Group
from forge.report.comparison import Comparison
from forge.report.comparison.differences import Difference, FlippedItem, Pair
from forge.report.markup import EMPTY, Markup, element, join
from forge.report.sections.parts import (
    Cell,
    Column,
    Section,
    figures,
    fold,
    named,
    paragraph,
    pill,
    swatch,
    table,
)
from forge.report.verdicts import verdict_kind
from forge.report.words import VERDICT_STATUS, Status, chance, percent, points

_KINDS: Final[Mapping[str, tuple[Status, str]]] = {
    "lost": ("bad", "right → wrong"),
    "gained": ("good", "wrong → right"),
    "moved": ("neutral", "wrong → other"),
}
_BAR: Final = 70


def differences(comparison: Comparison, group: Group, narrow: Group) -> Section:
    """Lay out the forest plot and the figures behind it."""
    margin = percent(comparison.settings.margin)
    caption = (
        f"Shaded: a loss, within the margin of {margin} points and beyond it. A variant whose "
        "whole interval lies right of the dashed line is not worse."
    )
    parts = [figures(group, caption, title="Paired differences", narrow=narrow)]
    if comparison.pairs:
        parts.append(fold("Every difference, by task, with tests", _tests(comparison)))
    return Section("differences", "Differences, pair by pair", join(parts))


def flips(comparison: Comparison, group: Group, narrow: Group) -> Section:
    """Lay out the matrix of changed answers and the questions behind it."""
    lead = (
        "Equal accuracy can hide changed answers. Counted by question and set of examples; colour "
        "is the share of all answers of the pair."
    )
    parts = [
        paragraph(lead, role="lead"),
        figures(group, "", title="Changed answers", narrow=narrow),
    ]
    shown = [pair for pair in comparison.pairs if pair.flips.items]
    if shown:
        parts += [element("h3", None, "The questions behind it"), _filter(shown)]
        parts += [_items(comparison, number, pair) for number, pair in enumerate(shown)]
    return Section("flips", "Changed answers", join(parts))


def _tests(comparison: Comparison) -> Markup:
    columns = [
        Column("Variant", numeric=False, first="ascending"),
        Column("Against", numeric=False, first="ascending"),
        Column("Task", numeric=False, first="ascending"),
        Column("Items"),
        Column("Difference", "points"),
        Column("Interval", "points", first=None),
        Column("Verdict", numeric=False, first="ascending"),
        Column("Gained"),
        Column("Lost"),
        Column("p", "McNemar", first="ascending"),
        Column("p", "after Holm", first="ascending"),
    ]
    rows = [
        _test(comparison, pair, found)
        for pair in comparison.pairs
        for found in (pair.overall, *pair.tasks)
    ]
    caption = "Variant minus baseline on the same questions."
    return table("differences-table", columns, rows, caption=caption)


def _test(comparison: Comparison, pair: Pair, found: Difference) -> list[Cell]:
    word = verdict_kind(found, margin=comparison.settings.margin)
    clusters = EMPTY
    if found.num_clusters != found.num_items:
        clusters = element("small", None, f"{found.num_clusters:,} passages")
    p_holm = chance(found.p_holm) + (" †" if found.significant else "")
    return [
        named(comparison, pair.variant),
        Cell(pair.baseline, role="label-cell"),
        Cell(found.task or "all tasks"),
        Cell(join((f"{found.num_items:,}", clusters)), float(found.num_items)),
        Cell(points(found.difference), 100 * found.difference),
        Cell(f"[{points(found.interval.low)}, {points(found.interval.high)}]"),
        Cell(pill(VERDICT_STATUS[word], word), word),
        Cell(str(found.gained), float(found.gained)),
        Cell(str(found.lost), float(found.lost)),
        Cell(chance(found.p_value), found.p_value),
        Cell(p_holm, found.p_holm),
    ]


def _filter(pairs: list[Pair]) -> Markup:
    tasks = list(dict.fromkeys(item.task for pair in pairs for item in pair.flips.items))
    labels = [(str(n), f"{pair.variant} against {pair.baseline}") for n, pair in enumerate(pairs)]
    kinds = [(kind, word) for kind, (_, word) in _KINDS.items()]
    words = element("input", {"type": "search", "name": "words", "autocomplete": "off"})
    return element(
        "form",
        {"class": "filter", "hidden": True, "aria-label": "Filter the questions"},
        _select("Pair", "pair", labels),
        _select("Change", "kind", kinds),
        _select("Task", "task", [(str(n), task) for n, task in enumerate(tasks)]),
        element("label", None, "Words", words),
        element("output", {"role": "status"}),
    )


def _select(title: str, name: str, options: list[tuple[str, str]]) -> Markup:
    every = element("option", {"value": ""}, "all")
    rest = (element("option", {"value": value}, text) for value, text in options)
    return element("label", None, title, element("select", {"name": name}, every, *rest))


def _items(comparison: Comparison, number: int, pair: Pair) -> Markup:
    tasks = list(
        dict.fromkeys(item.task for other in comparison.pairs for item in other.flips.items)
    )
    found = pair.flips
    changed = found.lost + found.gained + found.moved
    title = join(
        (
            swatch(comparison, pair.variant),
            f"{pair.variant} against {pair.baseline}: "
            f"{len(found.items)} of {changed:,} changed answers",
        )
    )
    parts = [
        _item(item, {"data-pair": str(number), "data-task": str(tasks.index(item.task))})
        for item in found.items
    ]
    body = element("div", {"class": "items"}, *parts)
    note = (
        f"At most {found.shown_of_each} of each kind; those whose right option's probability "
        "changed most come first."
    )
    return fold(title, paragraph(note, role="small mute"), body)


def _item(item: FlippedItem, marks: dict[str, str]) -> Markup:
    status, word = _KINDS[item.kind]
    place = f"{item.task} · {item.item_id} · example set {item.seed}"
    first = " ".join(item.question.split())
    cut = len(first) > 120
    short = f"{first[:119]}…" if cut else first
    summary = element(
        "summary",
        None,
        pill(status, word),
        element("span", {"class": "ask cut" if cut else "ask"}, short),
        element("span", {"class": "place"}, place),
    )
    rows = [_option(item, place) for place in range(len(item.options))]
    head = element(
        "tr",
        None,
        *(element("th", {"scope": "col"}, text) for text in ("Option", "Baseline", "Variant")),
    )
    missing = [
        name
        for name, answer in (("baseline", item.baseline_answer), ("variant", item.variant_answer))
        if answer is None
    ]
    note = (
        paragraph(
            f"No option can be read from the answer of the {' and the '.join(missing)}.",
            role="small",
        )
        if missing
        else EMPTY
    )
    return element(
        "details",
        {"class": "item", "data-kind": item.kind, **marks},
        summary,
        element("p", {"class": "question"}, item.question) if cut else EMPTY,
        element("table", None, element("thead", None, head), element("tbody", None, *rows)),
        note,
    )


def _option(item: FlippedItem, place: int) -> Markup:
    right = element("span", {"class": "tag"}, "right answer") if place == item.gold else EMPTY
    name = element("th", {"scope": "row"}, item.options[place], right)
    cells = (
        _answer(item.baseline_probabilities, place, item.baseline_answer),
        _answer(item.variant_probabilities, place, item.variant_answer),
    )
    return element("tr", None, name, *cells)


def _answer(probabilities: tuple[float, ...], place: int, chosen: int | None) -> Markup:
    share = probabilities[place] if place < len(probabilities) else 0.0
    ground = element("rect", {"width": _BAR, "height": 10, "rx": 2, **paint(fill="grid")})
    role = "c0" if place == chosen else "axis"
    bar = element("rect", {"width": _BAR * share, "height": 10, "rx": 2, **paint(fill=role)})
    bars = element(
        "svg", {"class": "bars", "viewBox": f"0 0 {_BAR} 10", "aria-hidden": "true"}, ground, bar
    )
    mark = element("span", {"class": "tag"}, "chosen") if place == chosen else EMPTY
    return element("td", None, f"{percent(share, 0)} %", bars, mark)

"""The page, read without a browser: whole, safe, reachable, and the same each time."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest

from forge.core.errors import OutputError
from forge.report.comparison import Comparison, Recommendation
from forge.report.comparison.differences import Interval
from forge.report.html import render_page
from forge.report.markup import Markup, element, escape, join, number, visible
from forge.report.words import chance, figures, percent, points, seconds, size_text
from tests.report.comparison_factory import (
    API,
    DARE,
    ENSEMBLE,
    LOCAL,
    POISON,
    QUANTIZED,
    SOURCE,
    TASKS,
    comparison,
    hostile,
)

_VOID = {"meta", "link", "input", "br", "hr", "circle", "line", "polygon", "polyline", "rect"}


@dataclasses.dataclass
class Node:
    """An element of the page; children are elements and texts."""

    tag: str
    attributes: dict[str, str | None]
    children: list[Node | str] = dataclasses.field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        """Return this element and all below it."""
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.walk()

    def all(self, tag: str, **attributes: str) -> list[Node]:
        """Return all elements of a tag with these attributes; ``_`` stands for ``-``."""
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [
            node for node in self.walk()
            if node.tag == tag
            and all((node.attributes.get(key) or "") == value for key, value in wanted.items())
        ]  # fmt: skip

    @property
    def text(self) -> str:
        """All text below it."""
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class Reader(HTMLParser):
    """Builds the tree, and objects to a tag that is not closed where it should be."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        node = Node(tag, dict(attrs))
        self._open[-1].children.append(node)
        if tag not in _VOID:
            self._open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


def read(page: str) -> Node:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert len(reader._open) == 1
    return reader.root


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(comparison(), files=["report.json", "charts/pareto.svg"])


@pytest.fixture(scope="module")
def tree(page: str) -> Node:
    return read(page)


@pytest.fixture(scope="module", params=["usual", "hostile"])
def any_page(request: pytest.FixtureRequest) -> str:
    return render_page(comparison() if request.param == "usual" else hostile())


def policy(tree: Node) -> dict[str, str]:
    """Return the directives of the page's own policy."""
    (found,) = tree.all("meta", http_equiv="Content-Security-Policy")
    parts = (found.attributes["content"] or "").split(";")
    return dict(part.strip().partition(" ")[::2] for part in parts)


def test_the_policy_forbids_everything_but_the_page_itself(any_page: str) -> None:
    tree = read(any_page)
    found = policy(tree)
    (style,), (script,) = tree.all("style"), tree.all("script")

    def digest(node: Node) -> str:
        content = base64.b64encode(hashlib.sha256(node.text.encode()).digest()).decode()
        return f"'sha256-{content}'"

    assert found == {
        "default-src": "'none'",
        "script-src": digest(script),
        "style-src": digest(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    # The policy holds from where it stands, so nothing may come before it.
    head = tree.all("head")[0]
    elements = [child for child in head.children if isinstance(child, Node)]
    assert [child.tag for child in elements[:2]] == ["meta", "meta"]
    assert elements[1].attributes["http-equiv"] == "Content-Security-Policy"


def test_nothing_can_ask_for_anything(any_page: str) -> None:
    tree = read(any_page)
    tags = {node.tag for node in tree.walk()}

    assert tags.isdisjoint({"img", "iframe", "object", "embed", "base", "audio", "video", "image",
                            "use", "foreignobject", "animate", "set", "source"})  # fmt: skip
    for node in tree.walk():
        for key, value in node.attributes.items():
            assert not key.startswith("on"), node
            assert key not in {"src", "srcset", "style", "action", "xlink:href", "ping"}, node
            if key == "href":
                assert re.fullmatch(r"#[a-z0-9-]+|data:,", value or ""), node
    (style,), (script,) = tree.all("style"), tree.all("script")
    assert "url(" not in style.text
    assert "@import" not in style.text
    for text in (style.text, script.text):
        assert not re.search(r"https?:|//[a-z]", text.replace("// ", ""))
    for word in ("fetch(", "XMLHttpRequest", "eval(", "innerHTML", "document.write", "import("):
        assert word not in script.text


def test_hostile_text_is_shown_as_text() -> None:
    found = hostile()
    tree = read(render_page(found))

    assert len(tree.all("script")) == len(tree.all("style")) == 1
    shown = visible(POISON)
    title = f"{comparison().title} {shown}"
    assert tree.all("h1")[0].text == title
    assert tree.all("title")[0].text == title
    assert "\ud800" not in render_page(found)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", render_page(found))
    # In each kind of place: a cell, a code block, an option, a tip, a drop-down, a question.
    for tag in ("th", "pre", "td", "title", "option", "summary", "li", "dd"):
        assert any("<script>window.hacked=1</script>" in node.text for node in tree.all(tag)), tag


def test_every_id_is_there_once_and_every_reference_finds_it(any_page: str) -> None:
    tree = read(any_page)
    ids = [node.attributes["id"] for node in tree.walk() if node.attributes.get("id")]

    assert len(set(ids)) == len(ids)
    for node in tree.walk():
        for key in ("aria-labelledby", "aria-describedby", "for"):
            for name in (node.attributes.get(key) or "").split():
                assert name in ids, (key, name)
        href = node.attributes.get("href") or ""
        if href.startswith("#"):
            assert href[1:] in ids


def test_sections_follow_the_order_in_which_one_decides(tree: Node) -> None:
    links = [node.attributes["href"] for node in tree.all("nav")[0].all("a")]
    sections = [f"#{node.attributes['id']}" for node in tree.all("section")]

    assert links == sections
    assert [link.strip("#") for link in links if link] == [
        "choice", "verdicts", "cost", "scores", "pareto-front", "differences", "flips",
        "divergence", "errors", "calibration", "merges", "lineage", "environment", "methods",
        "downloads",
    ]  # fmt: skip


def test_headings_do_not_jump(tree: Node) -> None:
    levels = [int(node.tag[1]) for node in tree.walk() if re.fullmatch("h[1-6]", node.tag)]

    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_tables_say_what_each_cell_belongs_to(tree: Node) -> None:
    for table in tree.all("table"):
        head = table.all("thead")[0].all("th")
        assert head
        assert all(node.attributes["scope"] == "col" for node in head)
        for row in table.all("tbody")[0].all("tr") + [
            row for foot in table.all("tfoot") for row in foot.all("tr")
        ]:
            cells = [child for child in row.children if isinstance(child, Node)]
            assert cells[0].tag == "th"
            assert cells[0].attributes["scope"] == "row"
            assert len(cells) == len(head)
    for region in tree.all("div", class_="scroll"):
        # What scrolls can be reached by keyboard and has a name.
        assert region.attributes["tabindex"] == "0"
        assert region.attributes["role"] == "region"
        assert region.attributes["aria-labelledby"]


def test_charts_are_images_with_a_title_and_a_description(tree: Node) -> None:
    charts = [node for node in tree.all("svg") if "chart" in (node.attributes["class"] or "")]
    assert len(charts) == 14
    for chart in charts:
        assert chart.attributes["role"] == "img"
        assert chart.all("title")[0].text
        assert chart.all("desc")[0].text
    for node in tree.all("svg"):
        assert node in charts or node.attributes["aria-hidden"] == "true"


def test_charts_in_the_page_are_xml(page: str) -> None:
    found = re.findall(r'<svg class="chart.*?</svg>', page, flags=re.DOTALL)

    assert len(found) == 14
    for chart in found:
        ET.fromstring(chart)


def test_the_page_is_the_same_each_time(page: str) -> None:
    assert page == render_page(comparison(), files=["report.json", "charts/pareto.svg"])
    assert not re.search(r"20\d\d-\d\d-\d\d", page)


def test_the_choice_is_at_the_top_with_its_figures(tree: Node) -> None:
    (choice,) = tree.all("section", id="choice")

    assert choice.attributes["class"] == "choice"
    assert QUANTIZED[1] in choice.all("h2")[0].text
    tiles = {
        tile.all("dt")[0].text: tile.all("dd")[0].text for tile in choice.all("div", class_="tile")
    }
    assert tiles["Memory"] == "530 MBpeak resident memory"
    assert tiles["Decoding"].startswith("58.9tokens/s, 0.53 × the time of")
    assert tiles["Difference"] == f"−0.4points [−0.9, +0.2] against {DARE}"


def test_no_choice_is_said_too() -> None:
    found = Recommendation(None, "No model was measured", ("Run `forge eval`.",), None)
    tree = read(render_page(dataclasses.replace(comparison(), recommendation=found)))
    (choice,) = tree.all("section", id="choice")

    assert choice.attributes["class"] == "choice none"
    assert "no choice yet" in choice.text
    assert not choice.all("div", class_="tile")


def test_a_verdict_is_a_word_and_a_sign_not_only_a_colour(tree: Node) -> None:
    rows = [
        child for child in tree.all("ul", class_="verdicts")[0].children if isinstance(child, Node)
    ]
    states = {row.all("span", class_="name")[0].text: row.all("div")[0].text for row in rows}

    assert states[SOURCE] == "–source"
    assert states[QUANTIZED[0]] == "?undecided"
    assert states[QUANTIZED[1]] == "✓not worse"
    assert states[QUANTIZED[2]] == "✕worse"
    assert len(states) == len(LOCAL) + 2


def rows_of(tree: Node, name: str) -> dict[str, list[Node]]:
    (board,) = tree.all("div", data_csv=name)
    rows = [
        row for part in ("tbody", "tfoot") for body in board.all(part) for row in body.all("tr")
    ]
    found = {}
    for row in rows:
        cells = [child for child in row.children if isinstance(child, Node)]
        found[cells[0].attributes.get("data-value") or cells[0].text] = cells[1:]
    return found


def test_table_2_marks_best_second_and_who_differs(tree: Node) -> None:
    rows = rows_of(tree, "scores-1")
    table = comparison().tables[0]

    assert list(rows) == [*(row.model for row in table.rows), "Majority baseline"]
    for row in table.rows:
        for score, cell in zip(row.scores, rows[row.model], strict=False):
            if score is None:
                assert cell.text == "–"
                continue
            classes = [node.attributes.get("class") for node in cell.all("span")]
            assert ("best" in classes) == (score.standing == "best")
            assert ("second" in classes) == (score.standing == "second")
            assert ("†" in cell.text) == score.dagger
            assert cell.text.startswith(percent(score.value))
            assert float(cell.attributes["data-value"] or "") == pytest.approx(100 * score.value)
            assert (score.deviation is None) == ("±" not in cell.text)
    assert rows["Majority baseline"][0].text == percent(TASKS[0][2])
    names = [node.text for node in tree.all("div", data_csv="scores-1")[0].all("th", scope="row")]
    assert f"{API}API" in names
    assert f"{ENSEMBLE}ensemble" in names


def test_the_dagger_is_explained_only_where_there_is_one() -> None:
    found = comparison()
    plain = tuple(
        dataclasses.replace(
            table,
            rows=tuple(
                dataclasses.replace(
                    row,
                    scores=tuple(s and dataclasses.replace(s, dagger=False) for s in row.scores),
                    micro=row.micro and dataclasses.replace(row.micro, dagger=False),
                )
                for row in table.rows
            ),
        )
        for table in found.tables
    )

    def legend(what: Comparison) -> str:
        return read(render_page(what)).all("section", id="scores")[0].text

    assert "† differs from its baseline" in legend(found)
    assert "†" not in legend(dataclasses.replace(found, tables=plain))


def test_table_1_names_no_winner_where_noise_covers_the_difference(tree: Node) -> None:
    rows = rows_of(tree, "cost-table")

    assert rows[DARE][7].text == "1.00noise[0.98, 1.02]"
    assert rows[QUANTIZED[1]][7].text == "0.53[0.52, 0.54]"
    assert rows[QUANTIZED[1]][:4][2].text == "4"
    assert rows[SOURCE][7].text == "1"


def test_a_profile_that_failed_says_why(tree: Node) -> None:
    assert "out of memory: 31.2 GB needed" in tree.all("div", data_csv="profiles")[0].text


def test_questions_can_be_filtered_by_what_they_carry(tree: Node) -> None:
    (form,) = tree.all("form", class_="filter")
    values = {
        select.attributes["name"]: {option.attributes["value"] for option in select.all("option")}
        for select in form.all("select")
    }
    items = tree.all("details", class_="item")

    assert len(items) == sum(len(pair.flips.items) for pair in comparison().pairs)
    for item in items:
        for key in ("pair", "kind", "task"):
            assert item.attributes[f"data-{key}"] in values[key]
    first = comparison().pairs[0].flips.items[0]
    assert first.options[first.gold] + "right answer" in items[0].text


def test_an_answer_that_is_missing_is_said(tree: Node) -> None:
    items = tree.all("details", class_="item")

    assert "No option can be read from the answer of the variant." in items[5].text
    assert "No option can be read" not in items[0].text


def test_a_loss_that_is_sure_is_called_worse_wherever_it_is_shown() -> None:
    """Its interval lies below zero and reaches beyond the margin: inconclusive by the margin."""
    found = comparison()
    overall = dataclasses.replace(
        found.pairs[0].overall, difference=-0.008, interval=Interval(-0.015, -0.001),
        verdict="inconclusive",
    )  # fmt: skip
    pair = dataclasses.replace(found.pairs[0], overall=overall, tasks=())
    tree = read(render_page(dataclasses.replace(found, pairs=(pair,))))
    (row,) = rows_of(tree, "differences-table").values()
    (forest, _) = tree.all("figure", data_name="paired-differences")[0].all("svg")

    assert row[5].text == "✕worse"
    assert forest.all("desc")[0].text.endswith("−0.8 [−1.5, −0.1], worse.")


def test_controls_that_need_a_script_are_not_there_without_it(tree: Node) -> None:
    assert all("hidden" in node.attributes for node in tree.all("button"))
    assert all("hidden" in node.attributes for node in tree.all("form"))


def test_absent_charts_say_why_and_the_page_holds() -> None:
    found = dataclasses.replace(
        comparison(), pairs=(), pareto=None, divergences=(), reliability=(), merges=(),
        quantization_errors=(), tables=(), environments=(), lineage=(), commands=(),
        profiles=dataclasses.replace(comparison().profiles, rows=(), sweep=(), setting=""),
        recommendation=Recommendation(None, "Nothing was measured", (), None),
    )  # fmt: skip
    tree = read(render_page(found))
    absent = [node.text for node in tree.all("p", class_="absent")]

    assert not [node for node in tree.all("svg") if "chart" in (node.attributes["class"] or "")]
    assert len(absent) == 10
    assert all(sentence.endswith(".") for sentence in absent)
    assert "`forge divergence` does." in " ".join(absent)


def test_files_beside_the_page_are_linked(tree: Node) -> None:
    (downloads,) = tree.all("section", id="downloads")

    assert [link.attributes["href"] for link in downloads.all("a")] == [
        "report.json",
        "charts/pareto.svg",
    ]
    odd = read(render_page(comparison(), files=["tables/a b&c.csv", "javascript:x"]))
    links = [link.attributes["href"] for link in odd.all("section", id="downloads")[0].all("a")]
    assert links == ["tables/a%20b%26c.csv", "javascript%3Ax"]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a//b", "", "a\nb", "a/./b"])
def test_a_file_elsewhere_is_not_linked(name: str) -> None:
    with pytest.raises(OutputError, match="no path below the report's folder"):
        render_page(comparison(), files=[name])


def test_markup_escapes_all_but_markup() -> None:
    inner = element("b", {"title": 'a"b', "hidden": True, "lang": None}, "<i>", Markup("<i>x</i>"))

    assert inner == '<b title="a&quot;b" hidden>&lt;i&gt;<i>x</i></b>'
    assert join(["a<", inner], " & ") == f"a&lt; &amp; {inner}"
    assert escape(inner) is inner
    assert element("rect", {"x": 1.005, "y": -0.001}) == '<rect x="1" y="0"/>'
    with pytest.raises(ValueError, match="always empty"):
        element("br", None, "x")


def test_what_a_page_must_not_carry_is_replaced_where_one_sees_it() -> None:
    assert visible("a\x00b\u202ec\ud800d\ufffee") == "a\ufffdb\ufffdc\ufffdd\ufffde"
    assert visible("é\n\t\u00a0中文 😀") == "é\n\t\u00a0中文 😀"


def test_figures_are_written_in_one_way() -> None:
    assert percent(0.45249) == "45.2"
    assert points(-0.0149) == "−1.5"
    assert points(0.02) == "+2.0"
    assert size_text(271_999_999) == "272 MB"
    assert size_text(1_500_000_000) == "1.50 GB"
    assert size_text(512) == "512 bytes"
    assert figures(0.0123456) == "0.0123"
    assert figures(12345.6) == "12,346"
    assert figures(0) == "0"
    assert figures(3.2e-7) == "3.20e-07"
    assert seconds(0.03214) == "32.1 ms"
    assert seconds(2.5) == "2.50 s"
    assert chance(0.0004) == "< 0.001"
    assert number(3.14159) == "3.14"

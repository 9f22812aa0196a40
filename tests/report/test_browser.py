"""The page in a real browser: no request leaves it, nothing complains, and it does what it offers.

Needs Chromium (on Debian: ``apt-get install chromium``); what can be checked without one is in
``test_page.py``.
"""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge.report.html import render_page
from tests.report.browser import Browser, find_chromium
from tests.report.comparison_factory import QUANTIZED, comparison, hostile

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="No Chromium on this machine."),
]


_OWN = re.compile(r"(?!fonts\.|ajax\.)[\w.-]+\.(google|googleapis|gvt1|gstatic)\.com")
"""Whom Chromium asks for the time, accounts and updates of itself, whatever page it shows; fonts
and scripts are what pages ask for. The DevTools log, which knows who asked, excepts nothing."""


class CountingProxy:
    """A proxy that refuses everything and notes what was asked for, but for the browser itself."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.asked: list[str] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with client:
                line = client.recv(4096).decode("latin-1").partition("\r\n")[0]
                host = re.match(r"\w+ (?:\w+://)?([^:/ ]+)", line)
                if host is None or _OWN.fullmatch(host[1]) is None:
                    self.asked.append(line)
                client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    def close(self) -> None:
        self._server.close()


@pytest.fixture(scope="module")
def proxy() -> Iterator[CountingProxy]:
    found = CountingProxy()
    yield found
    found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for name, what in (("usual", comparison()), ("hostile", hostile())):
        found[name] = folder / f"{name}.html"
        found[name].write_text(render_page(what), encoding="utf-8")
    return found


@pytest.fixture
def browser(proxy: CountingProxy) -> Iterator[Browser]:
    program = find_chromium()
    assert program is not None
    flags = (f"--proxy-server=127.0.0.1:{proxy.port}", "--proxy-bypass-list=<-loopback>")
    with Browser(program, *flags) as found:
        found.show(1280, 900)
        yield found


def first_column(browser: Browser, name: str) -> list[str]:
    """Return the names of a table's rows, in the order in which they stand."""
    found: list[str] = browser.run(
        f"[...document.querySelectorAll('[data-csv={name}] tbody tr')]"
        ".map(r => r.cells[0].dataset.value)"
    )
    return found


@pytest.mark.parametrize("name", ["usual", "hostile"])
def test_no_request_leaves_the_page_and_nothing_complains(
    browser: Browser, proxy: CountingProxy, pages: dict[str, Path], name: str
) -> None:
    browser.open(pages[name])
    for script in (
        "document.querySelectorAll('details').forEach(d => d.open = true)",
        "document.querySelectorAll('button').forEach(b => b.click())",
        "scrollTo(0, document.body.scrollHeight)",
        "new Promise(done => setTimeout(done, 300))",
    ):
        browser.run(script)

    requests = [event["request"]["url"] for event in browser.of("Network.requestWillBeSent")]
    outside = [url for url in requests if not url.startswith(("file://", "data:,", "blob:"))]
    assert [url for url in requests if url.startswith("file://")] == [pages[name].as_uri()]
    assert outside == []
    assert proxy.asked == []
    assert browser.of("Log.entryAdded") == []
    assert browser.of("Runtime.consoleAPICalled") == []
    assert browser.of("Runtime.exceptionThrown") == []
    assert browser.run("window.hacked") is None
    assert browser.of("Page.javascriptDialogOpening") == []


def test_the_browser_would_have_noticed(
    browser: Browser, proxy: CountingProxy, tmp_path: Path
) -> None:
    """The checks above can fail: a page that asks for something and complains is seen."""
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://example.org/x.png'><script>console.log(nothing)</script>")
    browser.open(page)

    assert any("example.org" in line for line in proxy.asked)
    assert browser.of("Runtime.exceptionThrown")
    proxy.asked.clear()


def test_the_policy_stops_a_script_that_got_into_the_page(
    browser: Browser, proxy: CountingProxy, pages: dict[str, Path], tmp_path: Path
) -> None:
    """Were a text ever not escaped, it still could not run or ask for anything."""
    broken = tmp_path / "broken.html"
    planted = (
        "<script>window.hacked = 1</script><p style='color: red' id=planted "
        "onclick='window.hacked = 1'>x</p><img src='http://example.org/x.png' onerror='hacked = 1'>"
    )
    text = pages["usual"].read_text("utf-8").replace("<main ", f"{planted}<main ")
    broken.write_text(text, encoding="utf-8")
    browser.open(broken)
    browser.run("document.getElementById('planted').click()")

    assert browser.run("window.hacked") is None
    assert (
        browser.run("getComputedStyle(document.getElementById('planted')).color")
        != "rgb(255, 0, 0)"
    )
    assert proxy.asked == []
    # The page's own script and style are those that the policy names, so they still work.
    assert browser.run("document.getElementById('theme').hidden") is False


def test_a_table_sorts_by_click_and_by_key(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["usual"])
    table = comparison().tables[0]
    micro = {row.model: row.micro.value for row in table.rows if row.micro is not None}
    without = [row.model for row in table.rows if row.micro is None]
    down = sorted(micro, key=lambda model: -micro[model]) + without
    up = sorted(micro, key=lambda model: micro[model]) + without
    header = "[data-csv=scores-1] thead th:last-child"
    assert first_column(browser, "scores-1") == [row.model for row in table.rows]

    browser.click(f"{header} button")
    assert first_column(browser, "scores-1") == down
    assert (
        browser.run(f"document.querySelector('{header}').getAttribute('aria-sort')") == "descending"
    )

    browser.run(f"document.querySelector('{header} button').focus()")
    browser.press("Enter")
    assert first_column(browser, "scores-1") == up
    assert (
        browser.run(f"document.querySelector('{header}').getAttribute('aria-sort')") == "ascending"
    )
    assert "ascending" in browser.run("document.getElementById('said').textContent")

    browser.press(" ")
    assert first_column(browser, "scores-1") == down
    browser.click("[data-csv=scores-1] thead th:first-child button")
    assert first_column(browser, "scores-1") == sorted(
        [*micro, *without], key=lambda name: name.lower()
    )
    sorts = browser.run("[...document.querySelectorAll('[data-csv=scores-1] [aria-sort]')]"
                        ".map(h => h.getAttribute('aria-sort'))")  # fmt: skip
    assert sorts.count("ascending") == 1
    assert sorts.count("descending") == 0
    # The baseline is no model: it stays where it is.
    assert browser.run("document.querySelector('[data-csv=scores-1] tfoot th').textContent") == (
        "Majority baseline"
    )


def test_tables_are_saved_as_csv(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["usual"])
    text = browser.run("asCsv(document.querySelector('[data-csv=cost-table] table'))")
    lines = text.strip().split("\r\n")

    assert lines[0].startswith("Model,Method,Group size,Bits,Version,")
    gemv = next(line for line in lines if line.startswith(QUANTIZED[1])).split(",")
    assert float(gemv[8]) == pytest.approx(31.0 / 58.9)
    formula = browser.run("""(() => {
        const t = document.createElement('table');
        const c = t.insertRow().insertCell();
        c.textContent = '=HYPERLINK("x"),1'; return asCsv(t); })()""")
    assert formula == '"\'=HYPERLINK(""x""),1"\r\n'


def test_the_colours_follow_the_system_and_the_button(
    browser: Browser, pages: dict[str, Path]
) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    mark = "getComputedStyle(document.querySelector('.chart .f-c0')).fill"
    browser.show(1280, 900, dark=True)
    browser.open(pages["usual"])
    assert browser.run(ground) == "rgb(18, 22, 29)"
    assert browser.run(mark) == "rgb(86, 180, 233)"
    browser.click("#theme")
    assert browser.run(ground) == "rgb(255, 255, 255)"
    assert browser.run(mark) == "rgb(0, 114, 178)"
    assert browser.run("document.getElementById('theme').textContent") == "Dark"
    browser.show(1280, 900, dark=False)
    assert browser.run(ground) == "rgb(255, 255, 255)"
    browser.click("#theme")
    assert browser.run(ground) == "rgb(18, 22, 29)"


def test_everything_is_reached_by_keyboard_beginning_with_the_skip_link(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["usual"])
    browser.press("Tab")
    assert browser.run("document.activeElement.className") == "skip"
    assert browser.run("document.activeElement.getBoundingClientRect().left >= 0") is True
    browser.press("Enter")
    assert browser.run("document.activeElement.id") == "main"
    browser.press("Tab")
    seen = []
    for _ in range(30):
        seen.append(
            browser.run("document.activeElement.tagName + '.' + document.activeElement.className")
        )
        outline = browser.run("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", seen[-1]
        browser.press("Tab")
    assert {"SUMMARY.", "DIV.scroll", "BUTTON.sort"} <= set(seen)


def test_questions_are_filtered(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["usual"])
    shown = (
        "[...document.querySelectorAll('.item')].filter(i => !i.hidden).map(i => i.dataset.kind)"
    )
    total = len(browser.run(shown))
    browser.run("""(() => { const s = document.querySelector('.filter [name=kind]');
        s.value = 'lost'; s.dispatchEvent(new Event('input', {bubbles: true})); })()""")
    kinds = browser.run(shown)

    assert set(kinds) == {"lost"}
    assert 0 < len(kinds) < total
    note = browser.run("document.querySelector('.filter output').textContent")
    assert note == f"{len(kinds)} of {total} shown"
    browser.run("""(() => { const s = document.querySelector('.filter [name=words]');
        s.value = 'no such words'; s.dispatchEvent(new Event('input', {bubbles: true})); })()""")
    assert browser.run(shown) == []


@pytest.mark.parametrize("has_clipboard", [True, False])
def test_a_command_is_copied(browser: Browser, pages: dict[str, Path], has_clipboard: bool) -> None:
    browser.open(pages["usual"])
    browser.call("Browser.grantPermissions", permissions=["clipboardReadWrite"])
    browser.run("window.read = navigator.clipboard.readText.bind(navigator.clipboard); void 0")
    if not has_clipboard:
        browser.run("Object.defineProperty(navigator, 'clipboard', {value: undefined}); void 0")
    browser.click("#lineage > .code button")
    browser.run("new Promise(done => setTimeout(done, 100))")

    assert browser.run("read()") == "\n".join(comparison().commands)
    assert browser.run("document.activeElement.textContent") == "Copied"


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_fits_its_window(browser: Browser, pages: dict[str, Path], width: int) -> None:
    for page in pages.values():
        browser.show(width, 844)
        browser.open(page)
        assert browser.run("document.documentElement.scrollWidth") == width
        sideways = browser.run("""[...document.querySelectorAll('main *')].filter(e => {
            const r = e.getBoundingClientRect();
            return r.width && r.right > innerWidth + 1 && !e.closest('.scroll'); })
            .map(e => e.tagName + '.' + e.className)""")
        assert sideways == []


@pytest.mark.parametrize("width", [390, 1280])
def test_texts_of_charts_do_not_lie_on_one_another(
    browser: Browser, pages: dict[str, Path], width: int
) -> None:
    browser.show(width, 900)
    browser.open(pages["usual"])
    overlaps = browser.run("""[...document.querySelectorAll('figure')].flatMap(figure => {
        const svg = [...figure.querySelectorAll('svg.chart')]
            .find(s => s.getBoundingClientRect().width);
        const own = svg.getBoundingClientRect();
        const boxes = [...svg.querySelectorAll('text')].map(t => {
            const r = t.getBoundingClientRect();
            // Letters fill about two thirds of the height of a line.
            const shy = r.width < r.height * 0.9 ? 0 : r.height / 6;
            return {t: t.lastChild.textContent, l: r.left, r: r.right,
                    u: r.top + shy, d: r.bottom - shy}; });
        const outside = boxes.filter(b => b.l < own.left - 1 || b.r > own.right + 1);
        const pairs = [];
        boxes.forEach((a, i) => boxes.slice(i + 1).forEach(b => {
            if (a.l < b.r - 1 && b.l < a.r - 1 && a.u < b.d - 1 && b.u < a.d - 1)
                pairs.push([figure.dataset.name, a.t, b.t]); }));
        return [...pairs, ...outside.map(b => [figure.dataset.name, 'outside', b.t])]; })""")

    assert overlaps == []


def test_it_prints_in_light_colours_with_everything_open(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    browser.show(1280, 900, dark=True)
    browser.open(pages["usual"])
    content = browser.print()
    num_pages = len(re.findall(rb"/Type\s*/Page\b", content))
    streams = re.findall(rb"stream\r?\n(.*?)endstream", content, flags=re.DOTALL)
    drawn = b"".join(_inflated(stream) for stream in streams)

    assert content.startswith(b"%PDF")
    assert 10 <= num_pages <= 60
    assert len(drawn) > 200_000
    closed = browser.run("document.querySelectorAll('details:not([open])').length")
    assert closed > 20, "What was folded before printing is folded again."
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.querySelector('.bar')).display") == "none"


def _inflated(stream: bytes) -> bytes:
    try:
        return zlib.decompress(stream.rstrip(b"\r\n"))
    except zlib.error:
        return b""


def test_it_is_whole_without_its_script(browser: Browser, pages: dict[str, Path]) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(pages["usual"])
    found = browser.call("DOM.getDocument", depth=-1)
    text = json.dumps(found)

    assert "demo-dare-awq-gemv" in text
    assert browser.of("Log.entryAdded") == []


def test_the_first_view_shows_the_decision(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["usual"])

    assert browser.run("document.getElementById('choice').getBoundingClientRect().bottom") <= 900


def test_a_link_into_a_folded_part_opens_it(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render_page(dataclasses.replace(comparison(), title="t")), encoding="utf-8")
    browser.open(page)
    browser.run("location.hash = '#profiles-caption'")
    browser.run("new Promise(done => setTimeout(done, 100))")

    assert (
        browser.run("document.getElementById('profiles-caption').closest('details').open") is True
    )

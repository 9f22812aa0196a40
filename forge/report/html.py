"""Write a comparison as one HTML file that opens offline and asks nobody for anything.

The page is the skeleton, style sheet and script in ``forge/report/page/`` around the sections in
``forge/report/sections/``. All text from results passes through ``forge.report.markup``; in case
one ever did not, the page's own policy still forbids every script and style but the two that are
in it, by their hashes, and every request:

    default-src 'none'; script-src 'sha256-…'; style-src 'sha256-…'; img-src data:;
    base-uri 'none'; form-action 'none'

The same comparison gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files as resources
from string import Template

from forge.core.errors import OutputError
from forge.report.charts import groups, narrow_groups
from forge.report.charts.palette import style_sheet
from forge.report.comparison import Comparison
from forge.report.markup import Markup, element, escape, join
from forge.report.sections.calibration import calibration
from forge.report.sections.changes import differences, flips
from forge.report.sections.conditions import environment
from forge.report.sections.decision import opening, verdicts
from forge.report.sections.fidelity import divergence, quantization_errors
from forge.report.sections.merging import merges
from forge.report.sections.methods import downloads, methods
from forge.report.sections.origin import lineage
from forge.report.sections.parts import Section, figures
from forge.report.sections.profile_table import profile_table
from forge.report.sections.score_tables import score_tables


def render_page(comparison: Comparison, *, files: Sequence[str] = ()) -> str:
    """Return a comparison as the text of one HTML file.

    Args:
        comparison: What to show.
        files: Paths of files that are written beside the page, relative to its folder, with ``/``;
            the page links to them.

    Raises:
        OutputError: A path leads out of the folder, or is no plain name.
    """
    sections = [*_sections(comparison), downloads(_checked(files))]
    style = f"\n{style_sheet()}\n{_part('page.css')}"
    script = f"\n{_part('page.js')}"
    places = [("choice", "Which to release"), *((part.name, part.title) for part in sections)]
    links = (
        element("li", None, element("a", {"href": f"#{name}"}, title)) for name, title in places
    )
    body = join((opening(comparison), *(section.rendered() for section in sections)))
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    # One pass over the skeleton: a dollar sign in a result is never looked at.
    return Template(_part("skeleton.html")).substitute(
        policy=policy,
        version=escape(comparison.forge_version),
        title=escape(comparison.title),
        style=style,
        script=script,
        contents=element("ol", None, *links),
        body=body,
    )


def _sections(comparison: Comparison) -> list[Section]:
    charts, narrow = groups(comparison), narrow_groups(comparison)
    caption = (
        "Up and left is better. The dashed line is the best accuracy that a memory buys; the area "
        "of a mark is the decoding speed; a whisker is the paired interval of the difference from "
        "the model's baseline. Filled marks are on the front: no other model is at least as good "
        "in accuracy, memory and speed, and better in one."
    )
    pareto = figures(
        charts["pareto"], caption, title="Accuracy against memory", narrow=narrow["pareto"]
    )
    missing = () if comparison.pareto is None else comparison.pareto.missing
    if missing:
        sentence = f"Not shown, because accuracy or memory was not measured: {', '.join(missing)}."
        pareto = join((pareto, element("p", {"class": "small mute"}, sentence)))
    return [
        verdicts(comparison),
        profile_table(comparison),
        score_tables(comparison),
        Section("pareto-front", "Accuracy, memory and speed", pareto),
        differences(comparison, charts["differences"], narrow["differences"]),
        flips(comparison, charts["flips"], narrow["flips"]),
        divergence(comparison, charts["kl"], charts["layers"], narrow=narrow["kl"]),
        quantization_errors(comparison, charts["errors"]),
        calibration(comparison, charts["reliability"]),
        merges(comparison, charts["merges"]),
        lineage(comparison),
        environment(comparison),
        methods(comparison),
    ]


def _checked(files: Sequence[str]) -> tuple[str, ...]:
    for name in files:
        if not name.isprintable() or not {"", ".", ".."}.isdisjoint(name.split("/")):
            msg = f"{name!r} is no path below the report's folder, so it cannot be linked."
            raise OutputError(msg)
    return tuple(files)


def _part(name: str) -> str:
    return (resources("forge.report") / "page" / name).read_text(encoding="utf-8")


def _hash(content: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return Markup(f"'sha256-{digest}'")

"""Write the page of an invented comparison, to look at: ``python -m tests.report.sample_page OUT``.

``OUT`` is a folder; ``--hostile`` plants markup everywhere, ``--charts`` writes SVG and PNG too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from forge.report.charts import all_charts
from forge.report.html import render_page
from forge.report.images import write_png
from tests.report.comparison_factory import comparison, hostile


def main() -> None:
    """Write ``index.html``, and the charts if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hostile", action="store_true")
    parser.add_argument("--charts", action="store_true")
    options = parser.parse_args()
    found = hostile() if options.hostile else comparison()
    options.out.mkdir(parents=True, exist_ok=True)
    page = options.out / "index.html"
    page.write_text(render_page(found), encoding="utf-8")
    print(page)
    if options.charts:
        for name, svg in all_charts(found).items():
            (options.out / f"{name}.svg").write_text(svg, encoding="utf-8")
            write_png(svg, options.out / f"{name}.png")
            print(options.out / f"{name}.png")


if __name__ == "__main__":
    main()

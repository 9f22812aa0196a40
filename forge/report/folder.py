"""Write a report's folder: everything or nothing, and never over anything else.

    index.html     the page, whole in one file
    report.md      for a model card          report.tex    tables for a paper
    report.json    everything, unrounded     tables/*.csv  a file a table
    charts/*.svg, charts/*.png               recipes/*.yaml  that the commands of the report name
    .forge-report  that this is a report, and which files are its own

The folder is written beside its place under another name, and gets its own in one step. One that
is there already is replaced only if it holds the files of a report and nothing else, so that a
note that somebody put into it is not lost.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge.checkpoints.replace import publish
from forge.core.catalog import did_you_mean
from forge.core.errors import OutputError, ResultsError
from forge.report.compare import DEFAULT_MARGIN, compare
from forge.report.comparison import Comparison
from forge.report.writers.csv_files import render_csv
from forge.report.writers.json_document import render_json
from forge.report.writers.latex import render_latex
from forge.report.writers.markdown import render_markdown
from forge.results.answers import Mode

FORMATS: Final = ("html", "md", "tex", "csv", "json", "svg", "png")
MARKER: Final = ".forge-report"
_MARKER_SCHEMA: Final = "forge-report-folder"
_PARTIAL: Final = ".forge-partial"
_MAX_MARKER_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ReportResult:
    """A report that was written.

    Attributes:
        out: Its folder.
        comparison: What it shows.
        files: Paths of its files, relative to the folder, in order.
        notices: What was left out, and why.
    """

    out: Path
    comparison: Comparison
    files: tuple[str, ...]
    notices: tuple[str, ...]


def write_report(
    out: Path,
    *,
    results: Path,
    models: Sequence[str] = (),
    baseline: str | None = None,
    margin: float = DEFAULT_MARGIN,
    suite: str | None = None,
    mode: Mode = "constrained",
    title: str | None = None,
    formats: Sequence[str] | None = None,
) -> ReportResult:
    """Compare what was measured, and write the report.

    Args:
        out: Folder to make; a report that is there is replaced.
        results: The results file.
        models: Labels of the models to show; empty for all.
        baseline: Label of the model that all others are compared with.
        margin: Loss of accuracy that does not matter, a share.
        suite: Name of the suite that verdicts rest on.
        mode: Scoring mode that verdicts rest on.
        title: Of the report; by default the names of its models.
        formats: Of ``FORMATS``; by default all, PNG only where its renderer is installed.

    Returns:
        What was written.

    Raises:
        ResultsError: Something asked for is not in the results file; see ``compare``.
        OutputError: ``out`` is no report of forge's, or cannot be written.
        MissingExtraError: PNG was asked for, and its renderer is not installed.
    """
    chosen, notices = _formats(formats)
    check_place(out)
    comparison = compare(
        results, models=models, baseline=baseline, margin=margin, suite=suite, mode=mode,
        title=title,
    )  # fmt: skip
    files = write_folder(comparison, out, formats=chosen)
    return ReportResult(out, comparison, files, notices)


def write_folder(comparison: Comparison, out: Path, *, formats: Sequence[str]) -> tuple[str, ...]:
    """Write a comparison's folder.

    Args:
        comparison: What to show.
        out: Folder to make; a report that is there is replaced.
        formats: Of ``FORMATS``.

    Returns:
        Paths of its files, relative to the folder, in order.

    Raises:
        OutputError: As ``write_report``.
        MissingExtraError: As ``write_report``.
    """
    check_place(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_PARTIAL, dir=out.parent))
    except OSError as error:
        raise OutputError(f"'{out}' cannot be made: {error.strerror}.") from error
    try:
        files = _fill(folder, comparison, formats)
        publish(folder, out, overwrite=True)
    except OSError as error:
        raise OutputError(f"'{out}' cannot be written: {error.strerror}.") from error
    finally:
        # After an exchange this is the report that was there before.
        shutil.rmtree(folder, ignore_errors=True)
    return files


def check_place(out: Path) -> None:
    """Refuse a place where something stands that is no report.

    Args:
        out: The folder to make.

    Raises:
        OutputError: It is a file, or a folder with anything in it that no report put there.
    """
    if not out.name or out.name == "..":
        raise OutputError(f"'{out}' is no name for a report. Choose another, such as reports/mine.")
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise OutputError(f"'{out}' exists and is not a folder. Choose another output.")
    try:
        found = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if not p.is_dir())
    except OSError as error:
        raise OutputError(f"'{out}' cannot be looked into: {error.strerror}.") from error
    if not found:
        return
    own = _own_files(out / MARKER)
    if own is None:
        raise OutputError(
            f"'{out}' exists and is no report of forge's (it has no {MARKER}). Choose another "
            "output, or delete it yourself."
        )
    strange = [name for name in found if name not in own and name != MARKER]
    if strange:
        raise OutputError(
            f"'{out}' holds what no report put there: {', '.join(strange[:3])}"
            f"{' ...' if len(strange) > 3 else ''}. Move it away, or choose another output."
        )


def _own_files(marker: Path) -> frozenset[str] | None:
    """Return what a report says that it consists of, or ``None`` where it is none."""
    try:
        if not marker.is_file() or marker.stat().st_size > _MAX_MARKER_BYTES:
            return None
        content = json.loads(marker.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("schema") != _MARKER_SCHEMA:
        return None
    files = content.get("files")
    return frozenset(str(name) for name in files) if isinstance(files, list) else None


def _formats(formats: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if formats is None:
        # Known without importing it, which takes a second.
        if importlib.util.find_spec("vl_convert") is not None:
            return FORMATS, ()
        notice = (
            "PNG files are left out, because their renderer is not installed; run "
            "pip install 'forge[report]' to have them."
        )
        return tuple(name for name in FORMATS if name != "png"), (notice,)
    for name in formats:
        if name not in FORMATS:
            raise ResultsError(
                f"There is no report format '{name}'.{did_you_mean(name, FORMATS)} Known: "
                f"{', '.join(FORMATS)}."
            )
    return tuple(name for name in FORMATS if name in formats), ()


def _fill(folder: Path, comparison: Comparison, formats: Sequence[str]) -> tuple[str, ...]:
    texts = _texts(comparison, formats)
    names = list(texts)
    charts: Mapping[str, str] = {}
    if "svg" in formats or "png" in formats:
        from forge.report.charts import all_charts

        charts = all_charts(comparison)
        names += [f"charts/{name}.{kind}" for kind in ("svg", "png") if kind in formats
                  for name in charts]  # fmt: skip
    if "html" in formats:
        from forge.report.html import render_page

        texts["index.html"] = render_page(comparison, files=sorted(names))
        names.append("index.html")
    for name, text in texts.items():
        _write(folder / name, text)
    for name, svg in charts.items():
        if "svg" in formats:
            _write(folder / "charts" / f"{name}.svg", svg)
        if "png" in formats:
            from forge.report.images import write_png

            (folder / "charts").mkdir(exist_ok=True)
            write_png(svg, folder / "charts" / f"{name}.png")
    files = tuple(sorted(names))
    marker = {"schema": _MARKER_SCHEMA, "version": 1, "files": files}
    _write(folder / MARKER, json.dumps(marker, indent=1) + "\n")
    # mkdtemp makes a folder that nobody else may enter; a report is for others.
    folder.chmod(0o755)
    return files


def _texts(comparison: Comparison, formats: Sequence[str]) -> dict[str, str]:
    writers: Mapping[str, tuple[str, Callable[[Comparison], str]]] = {
        "md": ("report.md", render_markdown),
        "tex": ("report.tex", render_latex),
        "json": ("report.json", render_json),
    }
    texts = {
        name: render(comparison) for kind, (name, render) in writers.items() if kind in formats
    }
    if "csv" in formats:
        texts |= {f"tables/{name}": text for name, text in render_csv(comparison).items()}
    for entry in comparison.lineage:
        if entry.recipe is not None and entry.recipe_file is not None:
            texts[f"recipes/{entry.recipe_file}"] = entry.recipe
    return texts


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file name's stray bytes, which a label can carry, have no UTF-8.
    path.write_bytes(text.encode("utf-8", "backslashreplace"))

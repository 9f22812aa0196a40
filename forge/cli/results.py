"""``forge results``: show or export what was measured."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from forge.cli import console
from forge.cli.options import debug_option, json_option
from forge.cli.tables import plural, table
from forge.core.errors import OutputError

if TYPE_CHECKING:
    from forge.results.store import ResultsStore

_RESULTS: Final = Path("reports/results.db")


@click.command("results")
@click.argument("file", metavar="[FILE]", type=click.Path(path_type=Path), default=_RESULTS)
@click.option(
    "--export", metavar="OUT.jsonl", type=click.Path(path_type=Path, allow_dash=True),
    help="Write everything as JSON lines, '-' to stdout.",
)  # fmt: skip
@json_option
@debug_option
def command(file: Path, export: Path | None, as_json: bool) -> None:
    """Show which models were measured, and what of them is in a results file.

    FILE is reports/results.db unless another is named.
    """
    from forge.results.store import open_results

    with open_results(file, create=False) as store:
        if export is not None:
            count = _export(store, export)
            console.say(f"{plural(count, 'line')} written to '{export}'.")
            return
        rows = _rows(store)
    if as_json:
        console.result_json(rows)
        return
    heads = ["model", "kind", "evaluations", "suites", "profiles", "divergences", "fingerprint"]
    cells = [
        [
            str(row["label"]), str(row["kind"]), str(row["evaluations"]),
            ", ".join(map(str, row["suites"] if isinstance(row["suites"], list) else ())),
            str(row["profiles"]), str(row["divergences"]), str(row["fingerprint"])[:12],
        ]
        for row in rows
    ]  # fmt: skip
    right = ["evaluations", "profiles", "divergences"]
    console.result(table(heads, cells, right=right, width=console.width(), can_drop_last=True))


def _rows(store: ResultsStore) -> list[dict[str, object]]:
    evaluations = store.evaluations()
    counts = Counter(each.model for each in evaluations)
    profiles = Counter(each.model for each in store.profiles())
    divergences = Counter(each.variant for each in store.divergences())
    return [
        {
            "label": model.label,
            "kind": model.kind,
            "location": model.location,
            "fingerprint": model.fingerprint,
            "evaluations": counts[model.fingerprint],
            "suites": sorted({e.suite for e in evaluations if e.model == model.fingerprint}),
            "profiles": profiles[model.fingerprint],
            "divergences": divergences[model.fingerprint],
        }
        for model in store.models()
    ]


def _export(store: ResultsStore, out: Path) -> int:
    count = 0
    if str(out) == "-":
        for line in store.export():
            console.result(line)
            count += 1
        return count
    partial = out.with_name(f"{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
            for line in store.export():
                stream.write(f"{line}\n")
                count += 1
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"'{out}' cannot be written: {error.strerror}.") from error
    return count

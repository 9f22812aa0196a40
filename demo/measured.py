"""The demonstration's last part: all ten models measured, compared, and one of them chosen.

The parents, the three merges and the five variants of the DARE merge are profiled in turns, answer
the demo suite (as does the ensemble of both parents), and each made model is held against the one
that it was made from. The report that follows is what a release is decided from. Everything is
kept in one results file, so that running the demonstration again computes only what changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

RESULTS = Path("demo_output/results.db")
REPORT = Path("reports/demo")
SUITE = "demo"
# The demonstration must not take long; a release deserves the defaults, which are longer.
# Four rounds are the fewest whose two halves say how far the machine's noise reaches.
PROFILE = ("--prompt-tokens", "128", "--new-tokens", "16", "--rounds", "4", "--samples", "1")
DIVERGENCE = ("--tokens", "1024")

NOTE = (
    "Some seventy questions cannot tell such models apart, and the report says so instead of",
    "naming winners: a release is decided on thousands (forge eval --suite medical). Open",
    "{page} in a browser; beside it are the same tables as Markdown, LaTeX, CSV and JSON.",
)


def measure(
    forge: Callable[..., str],
    say: Callable[[str], None],
    *,
    parents: Sequence[Path],
    merges: Sequence[Path],
    variants: Sequence[Path],
    source: Path,
) -> str:
    """Measure all models and write the report.

    Args:
        forge: Runs the ``forge`` command and returns its stdout.
        say: Hears what begins.
        parents: The models that were merged, the instruct model first.
        merges: The merges.
        variants: Quantized variants.
        source: The merge that they were made from.

    Returns:
        The verdicts, as ``forge report`` prints them.
    """
    models = [str(path) for path in (*parents, *merges, *variants)]
    results = ("--results", str(RESULTS))
    say("forge profile: memory and speed of ten models, in turns")
    forge("profile", *models, *results, *PROFILE)
    say(f"forge eval --suite {SUITE}: ten models and the ensemble of both parents")
    ensemble = "+".join(path.name for path in parents)
    forge("eval", *models, "--suite", SUITE, "--ensemble", f"both parents={ensemble}", *results)
    say("forge divergence: each model against the one that it was made from")
    pairs = [(merge, parents[0]) for merge in merges] + [(variant, source) for variant in variants]
    for model, against in pairs:
        forge("divergence", str(model), "--against", str(against), *results, *DIVERGENCE)
    say("forge report")
    title = "SmolLM2-135M, merged and quantized"
    return forge("report", *results, "--out", str(REPORT), "--suite", SUITE, "--title", title)


def summary(verdicts: str) -> str:
    """Return the verdicts, and what to open, as text."""
    lines = [line.format(page=REPORT / "index.html") for line in NOTE]
    return "\n".join([verdicts.rstrip(), "", *lines])

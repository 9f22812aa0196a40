"""The demonstration's measurements: which commands run, on which models, and that they exist."""

from __future__ import annotations

from pathlib import Path

import click

from demo import measured
from forge.cli.app import app
from forge.evaluate.suite import load_suite

PARENTS = (Path("models/instruct"), Path("models/domain"))
MERGES = (Path("out/dare"), Path("out/ties"))
VARIANTS = (Path("out/dare-awq/awq-gemm"),)


def commands() -> list[tuple[str, ...]]:
    calls: list[tuple[str, ...]] = []

    def forge(*arguments: str) -> str:
        calls.append(arguments)
        return f"verdicts of {arguments[0]}\n"

    found = measured.measure(
        forge, lambda text: None, parents=PARENTS, merges=MERGES, variants=VARIANTS,
        source=MERGES[0],
    )  # fmt: skip
    assert found == "verdicts of report\n"
    return calls


def test_every_model_is_profiled_and_evaluated() -> None:
    calls = commands()
    models = tuple(map(str, (*PARENTS, *MERGES, *VARIANTS)))
    for verb in ("profile", "eval"):
        (call,) = [call for call in calls if call[0] == verb]
        assert call[1 : 1 + len(models)] == models


def test_each_made_model_is_held_against_what_it_was_made_from() -> None:
    pairs = [(call[1], call[3]) for call in commands() if call[0] == "divergence"]
    assert pairs == [
        ("out/dare", "models/instruct"),
        ("out/ties", "models/instruct"),
        ("out/dare-awq/awq-gemm", "out/dare"),
    ]


def test_every_command_is_one_that_forge_has() -> None:
    # With its settings: a command remembers the help option of the first context that it meets.
    context = click.Context(app, **app.context_settings)
    for verb, *arguments in commands():
        command = app.get_command(context, verb)
        assert command is not None
        # Parses every option and argument, and runs nothing.
        command.make_context(verb, list(arguments), parent=context)
    assert load_suite(measured.SUITE).tasks


def test_the_summary_names_the_page() -> None:
    text = measured.summary("the verdicts\n")
    assert text.startswith("the verdicts\n\n")
    assert "reports/demo/index.html" in text

"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import click

from forge.cli import console

DEBUG_KEY: Final = "forge.debug"
"""Key of ``Context.meta``: whether errors show their traceback."""
RESUMABLE_KEY: Final = "forge.resumable"
"""Key of ``Context.meta``: whether the same command goes on where this one was stopped."""

Command = TypeVar("Command", bound=Callable[..., None])


def _switch_debug_on(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[DEBUG_KEY] = True
        console.set_up_logging(debug=True)


def debug_option(command: Command) -> Command:
    """Add ``--debug``, which every verb understands before and after its name."""
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=_switch_debug_on,
        help="Show tracebacks and the log.",
    )(command)


def json_option(command: Command) -> Command:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")(command)

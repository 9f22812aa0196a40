"""The command ``forge``: assembles the verbs, and turns what they raise into exit codes.

A verb's module is imported only when it is called, so ``forge --help`` loads nothing but
click. Exit codes:

    0      done
    1      ``verify`` found a difference
    2      the input, the environment or the command line is wrong
    70     a defect in forge
    128+N  stopped by signal N: 130 after Ctrl-C, 143 after ``kill``
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final, NoReturn

import click

from forge import __version__
from forge.cli import console
from forge.cli.options import DEBUG_KEY, RESUMABLE_KEY, debug_option
from forge.core.catalog import did_you_mean
from forge.core.errors import ForgeError

_VERBS: Final = {
    "merge": "Merge checkpoints as a recipe says.",
    "moe": "Build a mixture of experts of dense models.",
    "check": "Say what a merge would run into, from headers and configs alone.",
    "methods": "List the merge methods, or explain one.",
    "calibrate": "Collect statistics of a model for the merges that weight by them.",
    "quantize": "Quantize a checkpoint, to one or several formats.",
    "convert": "Change the layout of a quantized checkpoint, without loss.",
    "lora": "Extract a fine-tune as a LoRA adapter.",
    "generate": "Let a checkpoint write text, here and now.",
    "profile": "Measure memory and speed, each model in processes of its own.",
    "eval": "Answer a suite's questions, and score the answers.",
    "divergence": "Say how far a variant's predictions are from its source's.",
    "report": "Compare what was measured, and write the page to decide from.",
    "lint": "Say what is wrong in the tables of a model card.",
    "results": "Show or export what was measured.",
    "inspect": "Show what a checkpoint is and how it was merged.",
    "verify": "Check every byte of a checkpoint against its manifest.",
    "diff": "Say how two checkpoints differ, layer by layer.",
}
_MODULES: Final = {"eval": "evaluate"}
_USAGE_EXIT: Final = 2
_DEFECT_EXIT: Final = 70
_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)
_AGAIN_AFTER_S: Final = 0.02


class Terminated(KeyboardInterrupt):
    """A signal asked the process to end; raised like Ctrl-C, so that everything cleans up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class LazyGroup(click.Group):
    """Imports a verb's module when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order in which one uses them."""
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a verb's command, importing its module, or ``None``."""
        if cmd_name not in _VERBS:
            return None
        # 'eval' is a word of Python's own, so its module is called otherwise.
        module = _MODULES.get(cmd_name, cmd_name)
        command = importlib.import_module(f"forge.cli.{module}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the verb that the arguments begin with; a misspelt one is named with a guess."""
        word = args[0]
        if word not in _VERBS and not word.startswith("-") and not ctx.resilient_parsing:
            guess = did_you_mean(word, _VERBS) or f" Choose from: {', '.join(_VERBS)}."
            raise click.UsageError(f"There is no command '{word}'.{guess}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_VERBS.items()))


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="'forge COMMAND --help' explains a command.",
)
@click.version_option(__version__, "-V", "--version", message="forge %(version)s")
@debug_option
@click.pass_context
def app(ctx: click.Context) -> None:
    """Turn checkpoints into published model variants."""
    if ctx.invoked_subcommand is None:
        console.say(ctx.get_help())
        ctx.exit(_USAGE_EXIT)


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    # numpy's linear algebra would start a thread for each core, at a third of a merge's start-up;
    # forge multiplies with torch, or on threads of its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # pydantic would look through all installed packages for plugins of its own.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    _catch_signals()
    _complete_for_shell()
    code = run(sys.argv[1:])
    # The end of the process frees everything at once. Python would first search all that was
    # imported for cycles, several times: a tenth of a merge's start-up.
    gc.freeze()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: Without the program's name.

    Returns:
        The exit code.
    """
    context: click.Context | None = None
    try:
        console.set_up_logging(debug=False)
        # Not app.main(): it hides Ctrl-C behind an Abort and prints an empty line.
        context = app.make_context("forge", list(arguments))
        with context:
            app.invoke(context)
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.Abort:
        console.say("interrupted")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return _broken_pipe()
    except click.ClickException as problem:
        return _show_usage(problem)
    except ForgeError as problem:
        return _show(problem, context, problem.exit_code)
    except KeyboardInterrupt as problem:
        return _show_interruption(problem, context)
    except Exception as problem:
        return _show_defect(problem, context)
    return 0


def _catch_signals() -> None:
    for number in _SIGNALS:
        # nohup has its children ignore SIGHUP; it must stay ignored.
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _terminate)
    sys.unraisablehook = _raise_again


def _terminate(number: int, frame: FrameType | None) -> None:
    # Once is enough: a second signal must not interrupt the cleaning up.
    for known in _SIGNALS:
        signal.signal(known, signal.SIG_IGN)
    raise Terminated(number)


def _raise_again(what: sys.UnraisableHookArgs) -> None:
    # A signal that comes while a finalizer runs is raised in it, and Python drops what is raised
    # there: the run would go on, with all further signals ignored. It is raised once more, from
    # an alarm, because what this hook raises is dropped as well.
    problem = what.exc_value
    if not isinstance(problem, KeyboardInterrupt):
        sys.__unraisablehook__(what)
        return
    number = problem.number if isinstance(problem, Terminated) else signal.SIGINT

    def stop(_: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_AFTER_S)


def _complete_for_shell() -> None:
    instruction = os.environ.get("_FORGE_COMPLETE")
    if instruction:
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(app, {}, "forge", "_FORGE_COMPLETE", instruction))


def _broken_pipe() -> int:
    # The reader, such as head, has gone; Python would complain once more while it exits.
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:
            console.abandon(stream)
    return 128 + signal.SIGPIPE


def _show_usage(problem: click.ClickException) -> int:
    console.error(problem.format_message())
    if isinstance(problem, click.UsageError) and problem.ctx is not None:
        console.say(f"Try '{problem.ctx.command_path} --help'.")
    return _USAGE_EXIT


def _show(problem: Exception, context: click.Context | None, code: int) -> int:
    if _wants_debug(context):
        console.show_traceback(problem)
    console.error(str(problem))
    return code


def _show_interruption(problem: KeyboardInterrupt, context: click.Context | None) -> int:
    if _wants_debug(context):
        console.show_traceback(problem)
    resumable = context is not None and bool(context.meta.get(RESUMABLE_KEY))
    console.say("interrupted; the same command resumes" if resumable else "interrupted")
    return 128 + (problem.number if isinstance(problem, Terminated) else signal.SIGINT)


def _show_defect(problem: Exception, context: click.Context | None) -> int:
    if _wants_debug(context):
        console.show_traceback(problem)
    console.error(f"{type(problem).__name__}: {problem}")
    console.say("This is a defect in forge; run with --debug to see where, and report it.")
    return _DEFECT_EXIT


def _wants_debug(context: click.Context | None) -> bool:
    return context is not None and bool(context.meta.get(DEBUG_KEY))

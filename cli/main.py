"""`vcls`: finds commands, runs one, and turns every outcome into an exit code and a line."""

from __future__ import annotations

import difflib
import functools
import gc
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import click

from vllm_cls import startup
from vllm_cls.errors import PluginError, VclsError

from .options import State, say

GROUP = "vllm_cls.commands"

startup.let_threads_sleep()

HELP = {
    "convert": "Turn a model into a classifier on disk.",
    "classify": "Classify the rows of files.",
    "score": "Score the pairs of texts in the rows of files.",
    "serve": "Answer vLLM's classification API over HTTP.",
    "bench": "Measure how fast a model runs, alone or against other libraries.",
    "inspect": "Show what a model is and how it would run.",
    "plugins": "Show the installed plugins, and what is wrong with them.",
}
"""The commands of our own, in the order of --help, with their help: listing must not import them."""

EPILOG = """\b
Examples:
  vcls convert bert-base-uncased my-classifier --head fit --train train.jsonl
  vcls classify my-classifier reviews.csv -o classified.csv
  vcls inspect my-classifier

\b
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some rows failed, 130 interrupted.
Completion: eval "$(_VCLS_COMPLETE=bash_source vcls)" in ~/.bashrc; also zsh_source, fish_source.
"""


class Commands(click.Group):
    """Commands of the entry-point group, listed by name and loaded when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        found = entries()
        return [name for name in HELP if name in found] + sorted(set(found) - set(HELP))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = entries().get(cmd_name, [])
        if len(found) > 1:
            owners = " and ".join(sorted(distribution(entry) for entry in found))
            raise PluginError(f"the command {cmd_name!r} is in {owners}; uninstall one of them.")
        return load(found[0]) if found else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found = entries()
        rows = [(name, HELP.get(name) or f"(from {distribution(found[name][0])})") for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader, such as head, has enough
            _discard_stdout()
            ctx.exit(1)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "vcls",
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        run = functools.partial(super().main, args, prog_name, complete_var, standalone_mode=False)
        if not standalone_mode:
            return run(**extra)
        state = State()
        sys.exit(_outcome(lambda: run(obj=state, **extra), state))


def entries() -> dict[str, list[importlib.metadata.EntryPoint]]:
    """Every command by its name; several under one name are of different distributions."""
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        found.setdefault(entry.name, []).append(entry)
    return found


def distribution(entry: importlib.metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unknown distribution"


def load(entry: importlib.metadata.EntryPoint) -> click.Command:
    """The command behind an entry point.

    Raises:
        PluginError: it cannot be imported, or is no click command.
    """
    where = f"the command {entry.name!r} of {distribution(entry)} ({entry.value})"
    try:
        command = entry.load()
    except Exception as error:  # whatever a third party's import raises
        raise PluginError(f"{where} cannot be loaded: {type(error).__name__}: {error}.") from error
    if not isinstance(command, click.Command):
        raise PluginError(f"{where} is a {type(command).__name__}, not a click command.")
    return command


def _outcome(run: Callable[[], Any], state: State) -> int:
    """Run a command; its exit code."""
    try:
        code = run()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption):
            near = _near(error.option_name, error.possibilities or ())
            error = click.NoSuchOption(error.option_name, error.message, near, error.ctx)
        error.show()
        return error.exit_code
    except click.Abort:
        say("interrupted", style="red")
        return 130
    except (VclsError, OSError) as error:
        say(f"error: {_one_line(error)}", style="red")
        failure: Exception = error
    except Exception as error:
        told = f"{type(error).__name__}: {_one_line(error)}"
        advice = "" if state.verbose else " Run it again with -v for the traceback, and report that."
        say(f"error: {told} — this is a fault of vllm-cls, not of yours.{advice}", style="red")
        failure = error
    if state.verbose:
        traceback.print_exception(failure)
    return 1


def _near(name: str, options: Sequence[str]) -> list[str]:
    """Those of click's guesses that a slip of the fingers could have made this name of: click's own are wide of it."""
    bare = {each.lstrip("-"): each for each in options}
    return [bare[each] for each in difflib.get_close_matches(name.lstrip("-"), bare, cutoff=0.8)]


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and not isinstance(error, VclsError):
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        text = str(error) or type(error).__name__
    return " ".join(line.strip() for line in text.splitlines())


def _discard_stdout() -> None:
    """Send what is still in stdout's buffer nowhere, or Python complains of it when it ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is no file, and so needs nothing
        return


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.version_option(package_name="vllm-cls", prog_name="vcls")
def vcls() -> None:
    """Turn transformers models into text classifiers, and run them over files.

    `vcls COMMAND --help` shows the options and examples of a command.
    """


def main() -> None:
    """The script `vcls`."""
    try:
        vcls.main()
    finally:
        gc.freeze()  # the process ends: a last collection would walk all that torch and transformers are made of

"""`vcls`: finds commands, runs one, and turns every outcome into an exit code and a line."""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from vllm_cls.compat import lazy_imports
from vllm_cls.errors import PluginError

from .options import State, debug_option, say
from .outcome import InputEnded, outcome, report_background_errors

GROUP = "vllm_cls.commands"

lazy_imports.let_threads_sleep()

HELP = {
    "convert": "Turn a model into a classifier on disk.",
    "decide": "Ask typed questions about the rows of files.",
    "classify": "Classify the rows of files.",
    "score": "Score the pairs of texts in the rows of files.",
    "serve": "Answer vLLM's classification API over HTTP.",
    "run-batch": "Answer files of requests, as the server would.",
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
            ctx.exit(1)
        except OSError as error:
            if _discarded_stdout():
                raise OSError(error.errno, error.strerror, "standard output") from error
            raise
        except EOFError as error:
            raise InputEnded from error
        finally:
            _discarded_stdout()

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
        state = extra.setdefault("obj", State())
        sys.exit(outcome(lambda: run(**extra), state))


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


def _discarded_stdout() -> bool:
    """Whether stdout took nothing more; what is left in its buffer goes nowhere then, or Python complains of it as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.version_option(package_name="vllm-cls", prog_name="vcls")
@debug_option
def vcls() -> None:
    """Turn transformers models into text classifiers, and run them over files.

    `vcls COMMAND --help` shows the options and examples of a command.
    """


def main() -> None:
    """The script `vcls`."""
    state = State()
    report_background_errors(state)
    if sys.stdout is None:
        say("error: standard output is closed; where nobody reads it, send it to /dev/null.", style="red")
        sys.exit(1)
    try:
        vcls.main(obj=state)
    finally:
        gc.freeze()  # the process ends: a last collection would walk all that torch and transformers are made of

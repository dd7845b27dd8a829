"""How a run of `vcls` ends: an exit code, and, where it failed, one line on stderr."""

from __future__ import annotations

import difflib
import errno
import importlib.metadata
import os
import platform
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from .options import State, say

OURS = "vllm-cls"
GROUPS = ("vllm_cls", "vllm_cls.commands", "vllm_cls.heads")
"""Entry points by which code of others comes in: plugins, commands and head sources."""

_DISK_FULL = os.strerror(errno.ENOSPC)
_OUT_OF_MEMORY = ("OutOfMemoryError", "can't allocate memory", "bad_alloc")
"""How torch, which has no class of its own for it on a CPU, says that there is none left."""


class InputEnded(Exception):
    """Stands for an `EOFError`, which click would take for an interrupt."""


def outcome(run: Callable[[], Any], state: State) -> int:
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
    except click.Abort as error:
        say(str(error.__cause__ or "") or "interrupted", style="red")
        return 130
    except SystemExit:
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        failure = error.__cause__ if isinstance(error, InputEnded) and error.__cause__ else error
        report_error(failure, state)
        return 1


def _near(name: str, options: Sequence[str]) -> list[str]:
    """Those of click's guesses that a slip of the fingers could have made this name of: click's own are wide of it."""
    bare = {each.lstrip("-"): each for each in options}
    return [bare[each] for each in difflib.get_close_matches(name.lstrip("-"), bare, cutoff=0.8)]


def report_error(error: BaseException, state: State, where: str = "") -> None:
    """Print an error in one line; with --debug, the traceback too.

    Args:
        where: what was going on, for errors of threads and finalizers.
    """
    say(f"error: {where}{error_line(error)}", style="red")
    if state.debug or state.verbose:
        traceback.print_exception(error)
        say(f"({', '.join(_versions())})")


def error_line(error: BaseException) -> str:
    """An error and what to do about it, in one line."""
    from vllm_cls.errors import VclsError

    if isinstance(error, VclsError):
        return _one_line(str(error) or type(error).__name__)
    text = _one_line(str(error))
    if isinstance(error, MemoryError) or any(each in f"{type(error).__name__} {text}" for each in _OUT_OF_MEMORY):
        return f"there is not enough memory ({text or 'MemoryError'}); try a smaller --max-num-batched-tokens, or --dtype bfloat16."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if _DISK_FULL in text:  # as libraries in Rust have it
        return _DISK_FULL
    if isinstance(error, OSError):
        return text or type(error).__name__
    owner, link = failing_distribution(error)
    failed = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return (
        f"{failed}: this is a fault of {owner}; please report it {f'at {link}' if link else 'to its developers'} with the output "
        "of the same command with --debug."
    )


def failing_distribution(error: BaseException) -> tuple[str, str | None]:
    """The distribution whose code failed, and where it takes reports, if it says so.

    The innermost code that is ours or that of a plugin or a command: libraries fail on behalf of whoever called them.
    """
    owners = _owners()
    tree = traceback.walk_tb(error.__traceback__)
    modules = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in tree]
    owner = next((owners[module] for module in reversed(modules) if module in owners), OURS)
    return owner, _link(owner)


def _owners() -> dict[str, str]:
    """Distributions of plugins and commands, by the top-level module of each; ours is among them."""
    found = {"vllm_cls": OURS}
    for group in GROUPS:
        for entry in importlib.metadata.entry_points(group=group):
            if entry.dist is not None:
                found.setdefault(entry.value.partition(":")[0].partition(".")[0], entry.dist.name)
    return found


def _link(distribution: str) -> str | None:
    """Where a distribution's metadata says that faults are reported."""
    try:
        found = importlib.metadata.metadata(distribution).get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    links = dict(each.split(", ", 1) for each in found if ", " in each)
    return next((url for name, url in links.items() if name.lower().startswith(("issue", "bug"))), None)


def report_background_errors(state: State) -> None:
    """Print errors of threads, of finalizers and at exit in one line, too."""

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            name = args.thread.name if args.thread is not None else "?"
            report_error(args.exc_value, state, f"in the thread {name}: ")

    def unraisable(args: Any) -> None:
        if isinstance(args.exc_value, (KeyboardInterrupt, BrokenPipeError)):
            return  # a regular end of the thread
        if args.exc_value is not None:
            report_error(args.exc_value, state, "while it ended: ")

    threading.excepthook = in_thread
    sys.unraisablehook = unraisable


def _versions() -> Iterator[str]:
    """What a report has to name."""
    for name in (OURS, "transformers", "torch", "tokenizers", "safetensors"):
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    yield f"Python {platform.python_version()}"
    yield platform.platform()


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())

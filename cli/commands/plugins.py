"""`vcls plugins`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ..options import State, configure_output, console, pass_state, say, verbosity_options
from ..show import show_table

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from vllm_cls.registry import PluginInfo

EPILOG = """\b
Examples:
  vcls plugins list
  vcls plugins check && vcls classify my-classifier reviews.csv
  VCLS_PLUGINS=qwen2,heads,checkpoint vcls plugins list    # load these alone
"""


@click.group(epilog=EPILOG)
def plugins() -> None:
    """Show the installed plugins, and what is wrong with them."""


@plugins.command("list", epilog=EPILOG)
@verbosity_options
@pass_state
def list_plugins(state: State) -> None:
    """List the plugins, and what each of them registers."""
    configure_output(state)
    rows = [
        (info.name, f"{info.distribution} {info.version}", "BROKEN" if problem else "; ".join(registered) or "nothing")
        for info, registered, problem in _surveyed()
    ]
    show_table(console(), ("plugin", "from", "registers"), rows, left=3)
    show_table(console(), ("command", "from"), _commands(), left=2)


@plugins.command(epilog=EPILOG)
@verbosity_options
@pass_state
def check(state: State) -> None:
    """Load every plugin and call its hooks; exit with 1 if one is broken."""
    configure_output(state)
    broken = [(info, problem) for info, _, problem in _surveyed() if problem]
    for info, problem in broken:
        say(f"broken: {info.name} ({info.distribution} {info.version}, {info.module}): {problem}", style="red")
    faulty = [error for error in map(_command_error, _entries()) if error]
    for error in faulty:
        say(f"broken: {error}", style="red")
    if broken or faulty:
        click.get_current_context().exit(1)
    if not state.quiet:
        console().print("all plugins and commands load")


def _surveyed() -> Iterator[tuple[PluginInfo, list[str], str | None]]:
    """Each plugin with the names that it registers, by hook, and what is wrong with it, or None."""
    from vllm_cls import hookspecs
    from vllm_cls.head_source import HeadSource
    from vllm_cls.registry import no_head_source, registry

    found = registry()
    for info in found.plugins:
        registered, problem = [], info.error
        for hook in found.hooks_of(info.name):
            needs_run = bool(inspect.signature(getattr(hookspecs, hook)).parameters)  # a hook with arguments
            try:
                answer: Any = (None if needs_run else found.answer_of(info.name, hook)) or ()
                names = [_name(item) for item in answer]
            except Exception as error:  # whatever a third party's hook raises
                failure = error.__cause__ or error
                problem = problem or f"{hook} failed: {type(failure).__name__}: {failure}"
                continue
            words = hook.removeprefix("vcls_").replace("_", " ")
            registered.append(f"{words}: {', '.join(names)}" if names else words)
            if hook == "vcls_head_sources" and names:
                wrong = [no_head_source(name, one) for name, one in answer.items() if not isinstance(one, HeadSource)]
                problem = problem or (f"it gives {wrong[0]}" if wrong else None)
        yield info, registered, problem


def _name(item: Any) -> str:
    """What a hook's answer is called: a mapping's key, an architecture, the class of a pair."""
    if isinstance(item, str):
        return item
    return str(item[-1].__name__ if isinstance(item, tuple) else item.name)


def _entries() -> list[EntryPoint]:
    from ..main import entries

    return [entry for found in entries().values() for entry in found]


def _commands() -> list[tuple[str, str]]:
    from ..main import distribution

    return [(entry.name, distribution(entry)) for entry in _entries()]


def _command_error(entry: EntryPoint) -> str | None:
    from vllm_cls.errors import PluginError

    from ..main import load

    try:
        load(entry)
    except PluginError as error:
        return str(error)
    return None

"""The options and the help of `vcls convert` that come from head sources, built-in ones and those of plugins.

The plugins that promise to load nothing heavy are asked always, `--help` included; the others where `--head`, or an
option, is none that those know.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from vllm_cls.errors import PluginError

from .grouped import GroupedCommand

if TYPE_CHECKING:
    from vllm_cls.head_source import HeadOption, HeadSource

_META = "vllm_cls.heads"  # of a context: the head sources that are known in it
_METAVARS: dict[type, str] = {str: "TEXT", int: "N", float: "X"}


class ConvertCommand(GroupedCommand):
    """A command with the options that head sources have of their own.

    EXAMPLES and SUMMARIES in its epilog stand for what the sources say.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, [*args])
        except click.NoSuchOption:
            if not load_all_sources(ctx):
                raise
            return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        params = super().get_params(ctx)
        used = {each.name for each in params}
        own = {name: _option(options) for name, options in _own(ctx).items() if name not in used}
        return [*params, *own.values()]

    def groups_in(self, ctx: click.Context) -> Mapping[str, Sequence[str]]:
        groups: dict[str, list[str]] = {}
        for name, options in _own(ctx).items():
            groups.setdefault(f"Options of --head {', '.join(options)}", []).append(name)
        return {**self.groups, **groups}

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sources = known(ctx)
        width = max(map(len, sources), default=0) + 2
        indent = " " * (width + 3)
        examples, summaries = [], []
        for name, source in sources.items():
            lines = (source.example or f"vcls convert MODEL OUT --head {name}").splitlines()
            examples.append(f"  {name:<{width}} " + f"\n{indent}".join(lines))
            summaries.append(f"  {name:<{width}} {source.summary}")
        text = (self.epilog or "").replace("EXAMPLES", "\n".join(examples)).replace("SUMMARIES", "\n".join(summaries))
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(inspect.cleandoc(text))


def known(ctx: click.Context) -> dict[str, HeadSource]:
    """The head sources that are known so far, by name."""
    if _META not in ctx.meta:
        from vllm_cls.registry import HEADS_GROUP, Registry, discover

        ctx.meta[_META] = Registry(discover([HEADS_GROUP])).head_sources()
    sources: dict[str, HeadSource] = ctx.meta[_META]
    return sources


def load_all_sources(ctx: click.Context) -> bool:
    """Load every plugin; whether there are head sources now that were not known."""
    from vllm_cls.registry import registry

    before = set(known(ctx))
    ctx.meta[_META] = registry().head_sources()
    return bool(set(known(ctx)) - before)


def check_head(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The callback of `--head`: one that is not known is looked for in every plugin, before `--help` is shown."""
    if value is not None and value not in known(ctx):
        load_all_sources(ctx)
    return value


def _own(ctx: click.Context) -> dict[str, dict[str, HeadOption]]:
    """The options that head sources have of their own: by name, by head."""
    found: dict[str, dict[str, HeadOption]] = {}
    for head, source in known(ctx).items():
        for option in source.options:
            found.setdefault(option.name, {})[head] = option
    return found


def _option(options: Mapping[str, HeadOption]) -> click.Option:
    """One option of the command for the options of one name that heads have.

    Raises:
        PluginError: they are of different types.
    """
    (head, first), *others = options.items()
    for other, option in others:
        if option.type is not first.type:
            raise PluginError(
                f"{first.flag} is {first.type.__name__} for --head {head} and {option.type.__name__} for --head {other}; leave "
                "the plugin of one of them out with VCLS_PLUGINS."
            )
    help_text = first.help if first.default is None else f"{first.help}  [default: {first.default}]"
    shared: dict[str, Any] = {"help": help_text, "default": None}
    if first.type is bool:
        return click.Option([f"{first.flag}/{first.flag.replace('--', '--no-', 1)}", first.name], **shared)
    return click.Option([first.flag, first.name], type=first.type, metavar=_METAVARS[first.type], **shared)

"""A command whose `--help` shows its options in groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click


class GroupedCommand(click.Command):
    """A command with many options.

    Args:
        groups: titles, each with the names of its options; options of no group come last, as "Options".
    """

    def __init__(self, *args: Any, groups: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.groups = groups

    def groups_in(self, ctx: click.Context) -> Mapping[str, Sequence[str]]:
        """The groups of its options as it is called."""
        return self.groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups = self.groups_in(ctx)
        title_of = {name: title for title, names in groups.items() for name in names}
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in (*groups, "Options")}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                rows[title_of.get(param.name or "", "Options")].append(record)
        for title, records in rows.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

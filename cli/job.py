"""What the commands that run a job over files share: the files they name, and what they say of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .options import console, say, with_options
from .show import show_metrics

if TYPE_CHECKING:
    from vllm_cls.jobs.classify import JobReport


F = TypeVar("F", bound=Callable[..., Any])

_FILES: list[Callable[[Any], Any]] = [
    click.argument("model"),
    click.argument("inputs", nargs=-1, required=True, metavar="INPUT..."),
    click.option("-o", "--output", metavar="FILE", help="Its name tells the format; without it, JSON lines on stdout."),
    click.option("--format", metavar="NAME", help="Format of INPUT, where its name does not tell it."),
]


def files_of_a_job(function: F) -> F:
    """MODEL, INPUT..., -o and --format."""
    return with_options(function, _FILES)


def show_report(report: JobReport, quiet: bool) -> None:
    """What a job did, and which rows failed; then the command ends with exit code 3."""
    # rows on stdout are for the next program: what is said about them goes beside it
    out = console(stderr=report.output is None)
    if not quiet:
        rate = report.rows / report.seconds if report.seconds else 0.0
        told = f"{report.rows:,} rows in {report.seconds:.1f} s ({rate:,.1f} rows/s), {report.failed:,} failed, "
        told += f"{report.truncated:,} truncated" + (f" → {report.output}" if report.output else "")
        out.print(told, markup=False, soft_wrap=True)
        for note in report.notes:
            say(f"note: {note}", style="yellow")
    if report.metrics is not None:
        show_metrics(out, report.metrics)
    for failure in report.failures:
        say(f"failed: {failure}", style="red")
    if report.failed > len(report.failures):
        say(f"… and {report.failed - len(report.failures):,} more", style="red")
    if report.failed:
        click.get_current_context().exit(3)

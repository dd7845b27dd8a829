"""The progress of a job on stderr: a bar, a line now and then, or JSON."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from .options import console, say

if TYPE_CHECKING:
    from vllm_cls.jobs.options import OnProgress
    from vllm_cls.jobs.report.progress import JobProgress

FORMS = ("auto", "bar", "plain", "json", "none")
SECONDS_BETWEEN = {"bar": 0.25, "plain": 30.0, "json": 1.0}

Show = Callable[[dict[str, Any]], None]

progress_option = click.option(
    "--progress", type=click.Choice(FORMS), default="auto", show_default=True,
    help="On stderr: a bar, a plain line every 30 seconds, a JSON object a second, or none; auto: a bar on a terminal, "
    "else lines.",
)  # fmt: skip


class Reporter:
    """Shows the progress of a job every so many seconds, whatever the job does meanwhile.

    Args:
        show: gets what `Pace.at` tells.
        every: seconds.
        clock: seconds.
    """

    def __init__(self, show: Show, every: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._show, self._clock = show, clock
        self._every, self._next = every, clock() + every
        self._latest: JobProgress | None = None
        self._seen = self._computed = 0
        self._pace: Any = None
        self._lock = threading.Lock()

    def update(self, progress: JobProgress) -> None:
        """Note where the job is."""
        if self._pace is None:
            from vllm_cls.jobs.report.progress import Pace

            self._pace = Pace(self._clock())
        self._latest = progress

    def tick(self) -> None:
        """Show it if it is time to."""
        with self._lock:
            if (now := self._clock()) >= self._next:
                self._next = now + self._every
                self._tell(now)

    def conclude(self) -> None:
        """Show the last of it."""
        if self._latest is not None:
            self._show(self._pace.at(self._latest, self._clock()))

    def _tell(self, now: float) -> None:
        if self._latest is not None:
            self._show(self._pace.at(self._latest.with_running(self._running(self._latest)), now))

    def _running(self, latest: JobProgress) -> int:
        """Rows that the model has done since rows were answered: it answers many together."""
        counters = latest.counters()
        computed = 0 if counters is None else counters.num_sequences
        if latest.rows != self._seen:
            self._seen, self._computed = latest.rows, computed
        return computed - self._computed


@contextmanager
def progress(form: str, quiet: bool) -> Iterator[OnProgress | None]:
    """A function that shows the progress of a job; None where nothing is shown.

    Args:
        form: one of FORMS.
    """
    err = console(stderr=True)
    if form == "auto":
        form = "bar" if err.is_interactive else "plain"
    if form == "none" or (quiet and form != "json"):
        yield None
    elif form == "bar":
        with _bar(err) as show, _reported(show, form) as update:
            yield update
    else:
        with _reported(_json_line if form == "json" else plain_line, form) as update:
            yield update


@contextmanager
def _reported(show: Show, form: str) -> Iterator[OnProgress]:
    reporter = Reporter(show, SECONDS_BETWEEN[form])
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(min(SECONDS_BETWEEN[form], 1.0)):
            reporter.tick()

    thread = threading.Thread(target=run, name="vllm_cls_progress", daemon=True)
    thread.start()
    try:
        yield reporter.update
    finally:
        ended.set()
        thread.join()
        if form != "plain":  # after which comes the summary
            reporter.conclude()


def line_of(told: dict[str, Any]) -> str:
    """`12,345 of 50,000 rows (24.7 %), 1,234 rows/s, 56,789 tokens/s, 0:01:23 left, 3 errors`."""
    rows, total, share = told["rows"], told["total"], told["share"]
    parts = [f"{rows:,} rows" if total is None else f"{rows:,} of {total:,} rows"]
    parts[0] += "" if share is None else f" ({share:.1%})"
    for name in ("rows", "tokens"):
        if rate := told[f"{name}_per_second"]:
            parts.append(f"{rate:,.0f} {name}/s" if rate >= 10 else f"{rate:.1f} {name}/s")
    if (left := told["seconds_left"]) is not None:
        parts.append(f"{_duration(left)} left")
    if told["errors"]:
        parts.append(f"{told['errors']:,} error{'s' if told['errors'] > 1 else ''}")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{rest:02}"


def plain_line(told: dict[str, Any]) -> None:
    """A line for a log."""
    say(f"{_duration(told['seconds'])}: {line_of(told)}")


def _json_line(told: dict[str, Any]) -> None:
    values = {name: round(value, 3) if isinstance(value, float) else value for name, value in told.items()}
    print(json.dumps(values), file=sys.stderr, flush=True)


@contextmanager
def _bar(err: Any) -> Iterator[Show]:
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(BarColumn(30), TextColumn("{task.description}"), console=err, transient=True) as bar:
        task = bar.add_task("loading the model", total=None)

        def show(told: dict[str, Any]) -> None:
            share = told["share"]
            bar.update(task, description=line_of(told), completed=share or 0.0, total=None if share is None else 1.0)

        yield show

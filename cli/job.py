"""Common parts of `vcls classify`, `vcls score` and `vcls run-batch`: their options for files and servers, and the final report."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from .options import console, running_names, say, with_options
from .progress import progress_option
from .show import show_metrics, show_stats

if TYPE_CHECKING:
    from vllm_cls.jobs.remote import RemoteModel
    from vllm_cls.jobs.report.job_report import JobReport


F = TypeVar("F", bound=Callable[..., Any])

SECONDS_FOR_A_SERVER = 600.0  # that it may be overloaded or away before a job gives up
TRIES_OF_A_SERVER = 200
_SHOWN_CAUSES = 10

_RUN: list[Callable[[Any], Any]] = [
    click.option("--overwrite", is_flag=True, help="Replace the file of -o if it is there."),
    click.option("--restart", is_flag=True, help="Begin anew, where a run that ended early would be gone on with."),
    click.option(
        "--on-error", type=click.Choice(["continue", "fail"]), default="continue", show_default=True,
        help="At a bad row: keep its place with an error, or end.",
    ),
    click.option("--max-errors", type=click.IntRange(0), metavar="N", help="End when more rows than this are bad."),
    progress_option,
    click.option("--stats", is_flag=True, help="Say at the end where the time went."),
]  # fmt: skip
_FILES: list[Callable[[Any], Any]] = [
    click.argument("paths", nargs=-1, required=True, metavar="MODEL INPUT..."),
    click.option("-o", "--output", metavar="FILE", help="A path or URL; its name tells the format. Else JSON lines on stdout."),
    click.option("--format", metavar="NAME", help="Format of INPUT, where its name does not tell it."),
    click.option("--delimiter", metavar="CHAR", help="Between the columns of CSV; else as its header tells."),
    click.option("--encoding", metavar="NAME", help="Of text files, such as cp1252 or utf-16; else UTF-8."),
    *_RUN,
    click.option("--server", metavar="URL", help="Ask a running `vcls serve`; there is no MODEL before INPUT then."),
    click.option("--server-model", metavar="NAME", help="One of the server's names, such as an adapter's."),
    click.option("--api-key", metavar="KEY", help="Of the server; else VCLS_API_KEY of the environment."),
    click.option(
        "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
        help="Where the model runs: here, or on a Ray cluster, started on this machine where there is none.",
    ),
    click.option(
        "--num-workers", type=click.IntRange(1), metavar="N",
        help="On the cluster; else one for each GPU, or for each machine.",
    ),
    click.option("--ray-address", metavar="ADDR", help="Of the cluster; else RAY_ADDRESS of the environment."),
]  # fmt: skip


def run_of_a_job(function: F) -> F:
    """What happens to an output that is there, to a run that ended early, and at bad rows."""
    return with_options(_ended_by_sigterm(function), _RUN)


def _ended_by_sigterm(function: F) -> F:
    """Schedulers stop a job by SIGTERM: it then ends as by Ctrl-C, and says what is kept."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():  # which alone gets signals
            return function(*args, **options)
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return function(*args, **options)
        finally:
            signal.signal(signal.SIGTERM, before)

    return run  # type: ignore[return-value]


def files_of_a_job(*local: str) -> Callable[[F], F]:
    """MODEL INPUT..., -o, --format, and a server in place of MODEL; the command gets `model` and `inputs`.

    Args:
        local: options of the command that mean nothing to a server, beside those of running a model.
    """

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def run(
            *state: Any,
            paths: tuple[str, ...],
            server: str | None,
            server_model: str | None,
            api_key: str | None,
            engine: str,
            num_workers: int | None,
            ray_address: str | None,
            **options: Any,
        ) -> Any:
            cluster = {"--num-workers": num_workers, "--ray-address": ray_address}
            _check_engine(engine, server, cluster)
            if server is None:
                _check_local(paths, server_model, api_key)
                model = paths[0] if engine == "local" else _workers(paths[0], num_workers, ray_address)
                return command(*state, model=model, inputs=paths[1:], **options)
            names = {*running_names(), *local}
            _refuse_given(names)
            options = {name: value for name, value in options.items() if name not in names}
            with _remote(server, server_model, api_key) as model:
                return command(*state, model=model, inputs=paths, **options)

        return with_options(_ended_by_sigterm(run), _FILES)  # type: ignore[return-value]

    return decorate


def _check_engine(engine: str, server: str | None, cluster: Mapping[str, Any]) -> None:
    given = [name for name, value in cluster.items() if value is not None]
    if given and engine != "ray":
        raise click.UsageError(f"{', '.join(given)}: of a Ray cluster; give --engine ray too.")
    if engine == "ray" and server is not None:
        raise click.UsageError("--engine ray runs the model on a cluster, and --server asks a server; leave one out.")


def _workers(model: str, num_workers: int | None, address: str | None) -> Any:
    from vllm_cls.distributed import RayWorkers

    return RayWorkers(model, num_workers, address)


def _check_local(paths: tuple[str, ...], server_model: str | None, api_key: str | None) -> None:
    if len(paths) < 2:
        raise click.UsageError("Missing argument 'INPUT...': MODEL comes first, or --server URL.")
    for name, value in (("--server-model", server_model), ("--api-key", api_key)):
        if value is not None:
            raise click.UsageError(f"{name} is for a server; name it with --server URL.")


def _refuse_given(names: set[str]) -> None:
    """Refuse options that the server has decided when it was started."""
    ctx = click.get_current_context()
    refused = [name for name in names if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE]
    if refused:
        line = ", ".join(sorted("--" + name.replace("_", "-") for name in refused))
        raise click.UsageError(f"{line}: with --server, the model runs there; give it to `vcls serve`.")


@contextmanager
def _remote(server: str, name: str | None, api_key: str | None) -> Iterator[RemoteModel]:
    from vllm_cls.client import Client
    from vllm_cls.jobs.remote import RemoteModel

    with Client(server, api_key=api_key, timeout=SECONDS_FOR_A_SERVER, max_retries=TRIES_OF_A_SERVER) as client:
        yield RemoteModel(client, name)


def show_report(report: JobReport, quiet: bool, stats: bool = False, rows: str = "rows") -> None:
    """What a job did, and which rows failed; then the command ends with exit code 3.

    Args:
        rows: what they are called.
    """
    # rows on stdout are for the next program: what is said about them goes beside it
    out = console(stderr=report.output is None)
    if not quiet:
        rate = report.rows / report.seconds if report.seconds else 0.0
        line = f"{report.rows:,} {rows} in {report.seconds:.1f} s ({rate:,.1f} {rows}/s), {report.failed:,} failed"
        line += f", {report.truncated:,} truncated" if rows == "rows" else ""
        line += f" → {report.output}" if report.output else ""
        out.print(line, markup=False, soft_wrap=True)
        for cause, count in sorted(report.causes.items(), key=lambda each: -each[1])[:_SHOWN_CAUSES]:
            out.print(f"{count:,} failed: {cause}", markup=False, soft_wrap=True)
        for note in report.notes:
            say(f"note: {note}", style="yellow")
    if stats and report.stats is not None:
        show_stats(out, report.stats, rows)
    if report.metrics is not None:
        show_metrics(out, report.metrics)
    for failure in report.failures:
        say(f"failed: {failure}", style="red")
    if report.failed > len(report.failures):
        say(f"… and {report.failed - len(report.failures):,} more", style="red")
    if report.failed:
        click.get_current_context().exit(3)

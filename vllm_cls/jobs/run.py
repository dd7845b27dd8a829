"""A job over files: rows are read, answered part by part, and written, and a report is made."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..compat import lazy_imports
from ..errors import ConfigError
from .columns import KnownColumns
from .formats.files import InputFile, OutputFile, find_sources, find_target
from .options import JobOptions, RunOptions
from .pipeline.answers import PlannedWorker, RowWorker, WorkerPool
from .pipeline.record import RowContents
from .pipeline.steps import run_rows
from .report.job_report import JobReport
from .resume.fingerprints import of_inputs, of_versions
from .resume.parts import PART_ROWS
from .resume.work_folder import WorkFolder, open_work_folder

if TYPE_CHECKING:
    from ..client import Client
    from ..llm import LLM
    from .remote import RemoteModel


def run_job(
    model: str | os.PathLike[str] | LLM | Client | RemoteModel | WorkerPool,
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None,
    options: JobOptions,
    how: RunOptions,
    llm_options: dict[str, Any],
) -> JobReport:
    """Answer the rows of files; arguments and errors as for `classify_file`."""
    sources = find_sources(inputs, how.format, how.delimiter, how.encoding)
    target = find_target(output, sources, how.format)
    how.check_report(options, [target.path, *(source.path for source in sources)])
    known = KnownColumns.of(sources)
    known.check(options)
    noted = {
        "model": name_of(model),
        **options.noted(),
        **llm_options,
    }
    with work_on(target, sources, noted, how) as work, _at_work(model, options, llm_options) as worker:
        if work is not None:
            work.agree(model=worker.fingerprint())
        known.check_text(worker.plan.prompts)
        worker.plan.check_target(target)
        return run_rows(worker, RowContents(worker.plan, how.page), known, target, work, how)


def name_of(model: Any) -> str | None:
    """The model's name, whoever runs it; None of an open one."""
    named = model.model if isinstance(model, WorkerPool) else model
    return os.fspath(named) if isinstance(named, str | os.PathLike) else None


@contextmanager
def _at_work(model: Any, options: JobOptions, llm_options: dict[str, Any]) -> Iterator[PlannedWorker]:
    """What computes the job's parts, for as long as the context lasts."""
    if isinstance(model, WorkerPool):
        with model.at_work(options, llm_options) as workers:
            yield workers
    else:
        with opened(model, llm_options) as llm:
            yield RowWorker(llm, options)


@contextmanager
def opened(
    model: str | os.PathLike[str] | LLM | Client | RemoteModel, options: dict[str, Any]
) -> Iterator[LLM | RemoteModel]:
    """The model, loaded and closed again if it is not an open one."""
    if not isinstance(model, str | os.PathLike):
        if options:
            raise ConfigError(f"{', '.join(options)}: options of LLM, and the model is an open one; give them to it.")
        yield _remote(model)
        return
    lazy_imports.import_libraries()
    from .. import llm

    with llm.LLM(os.fspath(model), **options) as opened:
        yield opened


def _remote(model: LLM | Client | RemoteModel) -> LLM | RemoteModel:
    """A server's model in place of a client of it."""
    from ..client import Client
    from .remote import RemoteModel

    return RemoteModel(model) if isinstance(model, Client) else model


@contextmanager
def work_on(
    target: OutputFile,
    sources: Sequence[InputFile],
    noted: Mapping[str, Any],
    how: RunOptions,
) -> Iterator[WorkFolder | None]:
    """The work folder of an output, begun or taken up again; None for standard output."""
    if target.path is None:
        yield None
        return
    with open_work_folder(target.path, overwrite=how.overwrite, restart=how.restart) as work:
        options = {**noted, "rows of a part": how.rows_of_a_part or PART_ROWS}
        work.agree(versions=of_versions(), inputs=of_inputs(sources), options=options)
        yield work

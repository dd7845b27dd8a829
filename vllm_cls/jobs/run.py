"""A job over files: rows are read, answered part by part, and written, and a report is made."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..compat import lazy_imports
from ..errors import ConfigError
from .answers import RowWorker
from .columns import KnownColumns
from .formats.files import InputFile, OutputFile, find_sources, find_target
from .formats.readers import read_rows
from .formats.tables import OutputSchema
from .options import JobOptions
from .output import open_output
from .record import Recorder
from .report import JobReport
from .results import ADDED_TYPES, KeptFields
from .resume.fingerprints import of_inputs, of_versions
from .resume.parts import PART_ROWS, in_parts
from .resume.work_folder import WorkFolder, open_work_folder

if TYPE_CHECKING:
    from ..client import Client
    from ..llm import LLM
    from .remote import RemoteModel

OnProgress = Callable[[int, float | None], None]


@dataclass(frozen=True)
class RunOptions:
    """The options of `classify_file` that say how a job runs; what a row of results holds does not depend on them.

    Raises:
        ConfigError: one of them is wrong.
    """

    format: str | None = None
    overwrite: bool = False
    restart: bool = False
    on_error: str = "continue"
    max_errors: int | None = None
    on_progress: OnProgress | None = None

    def __post_init__(self) -> None:
        if self.on_error not in ("continue", "fail"):
            raise ConfigError(f"on_error={self.on_error!r} is unknown; use 'continue' or 'fail'.")
        if self.max_errors is not None and (self.max_errors < 0 or self.on_error == "fail"):
            raise ConfigError(
                f"max_errors={self.max_errors} must be 0 or more, and on_error='fail' is max_errors=0; drop one."
            )

    @property
    def most_errors(self) -> float:
        """How many rows may fail."""
        if self.max_errors is None:
            return 0 if self.on_error == "fail" else math.inf
        return self.max_errors


def run_job(
    model: str | os.PathLike[str] | LLM | Client | RemoteModel,
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None,
    options: JobOptions,
    how: RunOptions,
    llm_options: dict[str, Any],
) -> JobReport:
    """Answer the rows of files; arguments and errors as for `classify_file`."""
    sources = find_sources(inputs, how.format)
    target = find_target(output, sources, how.format)
    known = KnownColumns.of(sources)
    known.check(options)
    noted = {
        "model": os.fspath(model) if isinstance(model, str | os.PathLike) else None,
        **options.noted(),
        **llm_options,
    }
    with work_on(target, sources, noted, how) as work, _opened(model, llm_options) as llm:
        worker = RowWorker(llm, options)
        if work is not None:
            work.agree(model=worker.fingerprint())
        known.check_text(worker.plan.prompts)
        worker.plan.check_target(target)
        return _run(worker, known, target, work, how)


def _run(
    worker: RowWorker, known: KnownColumns, target: OutputFile, work: WorkFolder | None, how: RunOptions
) -> JobReport:
    """Read, answer, write, report."""
    sources, plan = known.sources, worker.plan
    kept = KeptFields(plan.options.keep_fields, [*plan.columns.types, *ADDED_TYPES])
    report = JobReport(output=None if target.path is None else str(target.path))
    recorder = Recorder(plan, kept, report, how.most_errors, work)
    if work is not None and work.rows:
        report.notes.append(f"{work.rows:,} rows that an earlier run has finished are not run again")
    began = time.perf_counter()
    rows = read_rows(sources, report.notes)
    once = any(source.size is None for source in sources)  # and never again
    answers = worker.compute(rows) if work is None or once else in_parts(rows, worker.compute, work)
    layout = OutputSchema(known.names_in(kept), plan.columns.types, sources)
    with open_output(target, layout, work) as writer, closing(rows), closing(answers):
        for answered in answers:
            recorder.record(answered, writer)
            if how.on_progress is not None:
                how.on_progress(report.rows, answered.row.done)
    report.seconds = time.perf_counter() - began
    recorder.conclude()
    return report


@contextmanager
def _opened(
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
    rows_of_a_part: int = PART_ROWS,
) -> Iterator[WorkFolder | None]:
    """The work folder of an output, begun or taken up again; None for standard output."""
    if target.path is None:
        yield None
        return
    with open_work_folder(target.path, overwrite=how.overwrite, restart=how.restart) as work:
        work.agree(
            versions=of_versions(), inputs=of_inputs(sources), options={**noted, "rows of a part": rows_of_a_part}
        )
        yield work

"""`classify_file`: files in, one row of results for each row, in the same order, streaming."""

from __future__ import annotations

import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ..compat import lazy_imports
from ..errors import ConfigError, JobError
from ..evaluation import Tally
from .answers import Columns, answers_of, results_of, stream_of
from .formats.files import InputFile, OutputFile, find_sources, find_target
from .formats.readers import columns_of, read_rows
from .formats.tables import FIRST_ROWS, OutputSchema
from .formats.writers import Writer
from .head_columns import HeadColumns
from .output import open_output
from .report import JobReport, notes_of
from .results import (
    ADDED_TYPES,
    ERROR,
    TRUNCATED,
    KeptFields,
    ResultColumns,
    RowResults,
    SpanColumns,
    StepColumns,
)
from .resume.fingerprints import of_inputs, of_model, of_versions
from .resume.parts import PART_ROWS, Answered, in_parts
from .resume.work_folder import WorkFolder, open_work_folder
from .rows import InputRow, PromptFields, missing

if TYPE_CHECKING:
    from ..client import Client
    from ..llm import LLM
    from .remote import RemoteModel

_Known = Sequence[tuple[InputFile, Sequence[str]]]
OnProgress = Callable[[int, float | None], None]


_NEEDS_PROBABILITIES = "label_field needs probabilities, and without activation there are none; drop one."


def classify_file(
    model: str | os.PathLike[str] | LLM | Client | RemoteModel,
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    text_field: str = "text",
    text_pair_field: str | None = None,
    messages_field: str | None = None,
    image_field: str | None = None,
    video_field: str | None = None,
    keep_fields: str | Sequence[str] = "all",
    format: str | None = None,
    threshold: float = 0.5,
    top_k: int | None = None,
    scores: bool = False,
    logits: bool = False,
    use_activation: bool | None = None,
    label_field: str | None = None,
    head_name: str | None = None,
    aggregation: str | None = None,
    long_text: str = "truncate",
    truncation_side: str | None = None,
    overwrite: bool = False,
    restart: bool = False,
    on_error: str = "continue",
    max_errors: int | None = None,
    on_progress: OnProgress | None = None,
    prompts: PromptFields | None = None,
    results: type[ResultColumns] = ResultColumns,
    **llm_options: Any,
) -> JobReport:
    """Classify the rows of files; the arguments are those of `vcls classify`.

    Each row of the output has the kept fields of its input, then the results. A kept field that has the name
    of a result column is kept under `input_` and its name. A bad row keeps its place, with `error` and null results.

    Args:
        model: a folder, a hub id, a `.gguf` file, or an `LLM`, which stays open; or a `Client`, and then the model of
            its server classifies, with several requests in flight.
        inputs: paths, globs or "-" (JSON lines on standard input), one or several.
        output: a path whose name tells the format; None is JSON lines on standard output.
        image_field: the field of a row's images: a path (relative ones begin at the file's folder), a URL, bytes, base64,
            a struct of `bytes` and `path`, or a list of these. A row with images or videos may do without a text.
        video_field: the same of videos.
        keep_fields: "all", "none", or names, as a list or separated by commas.
        format: the format of the inputs where their names do not tell it.
        threshold: probability from which a multi-label model gives a label.
        top_k: adds so many labels with their probabilities, the most probable first.
        scores: adds a map label → probability.
        logits: adds the logits.
        use_activation: False gives `logits` in place of `probs`; None does as the model's pooler says.
        label_field: the field of the true label; the report then has metrics.
        head_name: of a model with several heads, the one whose results have no name before them, and that is measured
            against `label_field`; None is the first.
        aggregation: of a token classifier, how tokens become spans: "none", "simple" (where it is None), "first",
            "average" or "max", as in transformers' pipeline.
        long_text: "truncate" cuts what is longer than the model takes and says so; "error" fails the row.
        truncation_side: "left" or "right", the side that is cut off; None is the tokenizer's own.
        overwrite: the output may be replaced, if it is there.
        restart: forget what a run that ended early has finished of this output; else the job goes on from there.
        on_error: "continue" keeps a bad row in its place; "fail" ends the job at the first.
        max_errors: end the job when more rows than this fail; what is finished is kept. None is any number.
        on_progress: called after each row with the rows so far and the share of the input, where it is known.
        prompts: how a row's prompt is read, where the three fields do not say it all.
        results: what a row of results holds, of a model that classifies texts.
        llm_options: options of `LLM`.

    Raises:
        JobError: no input, an output that cannot be, a file damaged as a whole; inputs, options or a model that are not
            those of the run that the job would go on with; too many bad rows.
        ConfigError: an option is wrong.
        ModelError: the model cannot be loaded.
    """
    if long_text not in ("truncate", "error"):
        raise ConfigError(f"long_text={long_text!r} is unknown; use 'truncate' or 'error'.")
    if truncation_side not in (None, "left", "right"):
        raise ConfigError(f"truncation_side={truncation_side!r} is unknown; use 'left' or 'right'.")
    most_errors = _most_errors(on_error, max_errors)
    sources = find_sources(inputs, format)
    target = find_target(output, sources, format)
    prompts = prompts or PromptFields(text_field, text_pair_field, messages_field, image_field, video_field)
    shape = results({}, None, threshold, top_k, scores, logits, use_activation is not False)  # refuses what cannot be
    if label_field is not None and use_activation is False:
        raise ConfigError(_NEEDS_PROBABILITIES)
    strays = {
        "text_pair_field": text_pair_field,
        "messages_field": messages_field,
        "image_field": image_field,
        "video_field": video_field,
        "threshold": None if threshold == 0.5 else threshold,
        "top_k": top_k,
        "scores": scores or None,
        "logits": logits or None,
        "use_activation": use_activation,
        "label_field": label_field,
        "head_name": head_name,
    }
    known = _known_columns(sources)
    _check_columns(known, [prompts.pair, prompts.messages, image_field, video_field, label_field, *_named(keep_fields)])
    if not known:
        _check_first_rows(sources, label_field)
    options = {
        "model": os.fspath(model) if isinstance(model, str | os.PathLike) else None,
        "keep_fields": keep_fields,
        "fields": asdict(prompts),
        "results": results.__name__,
        "aggregation": aggregation,
        "long_text": long_text,
        "truncation_side": truncation_side,
        "threshold": threshold,
        "top_k": top_k,
        "scores": scores,
        "logits": logits,
        "use_activation": use_activation,
        "label_field": label_field,
        "head_name": head_name,
        **llm_options,
    }
    with _work_on(target, sources, options, overwrite, restart) as work, _opened(model, llm_options) as llm:
        _refuse_embedder(llm)
        if work is not None:
            work.agree(model=of_model(llm))
        prompts = _fitting(prompts, llm, known)
        use_activation = llm.use_activation if use_activation is None else use_activation
        of_head = llm if head_name is None else llm.head(head_name)
        shape = results(
            of_head.id2label,
            of_head.problem_type,
            threshold,
            top_k,
            scores,
            logits,
            use_activation,
            of_head.gives_probabilities,
        )
        if threshold != 0.5 and not shape.multi_label:
            raise ConfigError(
                f"threshold={threshold}: of labels that exclude each other the most probable is given; leave it out."
            )
        tally = None if label_field is None else _tally(shape)
        columns = _columns(
            llm, shape, head_name, aggregation, target, [name for name, value in strays.items() if value is not None]
        )
        kept = KeptFields(keep_fields, [*columns.types, *ADDED_TYPES])
        names = kept.mapping(_union(known)) if len(known) == len(sources) else None
        layout = OutputSchema(names, columns.types, sources)
        began = time.perf_counter()
        report = JobReport(output=None if target.path is None else str(target.path))
        if work is not None and work.rows:
            report.notes.append(f"{work.rows:,} rows that an earlier run has finished are not run again")
        stream = functools.partial(
            stream_of(llm, shape, head_name, aggregation),
            truncate=long_text == "truncate",
            truncation_side=truncation_side,
        )

        def compute(rows: Iterator[InputRow]) -> Generator[Answered, None, None]:
            llm.reset_prefix_cache()  # whose hits change the last digits
            for row, output in answers_of(stream, rows, prompts):
                yield Answered(row, results_of(row, output, columns, tally is not None))

        rows = read_rows(sources, report.notes)
        once = any(source.size is None for source in sources)  # and never again
        answers = compute(rows) if work is None or once else in_parts(rows, compute, work)
        labelled = False
        with open_output(target, layout, work) as writer, closing(rows), closing(answers):
            for row, found in answers:
                _finish(row, found, columns, kept, writer, report)
                if report.failed > most_errors:
                    kept_so_far = "" if work is None else work.hint
                    raise JobError(f"more than {most_errors} rows failed: {report.failures[-1]}.{kept_so_far}")
                if tally is not None and label_field is not None and found.measured is not None:
                    labelled = labelled or label_field in row.fields
                    tally.add(found.measured, row.fields.get(label_field))
                if on_progress is not None:
                    on_progress(report.rows, row.done)
        report.seconds = time.perf_counter() - began
    report.metrics = None if tally is None else tally.metrics()
    report.notes += notes_of(kept, report, shape)
    if report.metrics is not None and report.metrics.unknown and not labelled:
        report.notes.append(f"no row has the field {label_field!r}, which was to be measured against")
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


def _refuse_embedder(llm: Any) -> None:
    if llm.task == "embed":
        llm.check("classify")


def _remote(model: LLM | Client | RemoteModel) -> LLM | RemoteModel:
    """A server's model in place of a client of it."""
    from ..client import Client
    from .remote import RemoteModel

    return RemoteModel(model) if isinstance(model, Client) else model


def _known_columns(sources: Sequence[InputFile]) -> list[tuple[InputFile, list[str]]]:
    """The sources that declare their columns, with these."""
    found = [(source, columns_of(source)) for source in sources]
    return [(source, columns) for source, columns in found if columns is not None]


def _union(known: _Known) -> list[str]:
    return list(dict.fromkeys(name for _, columns in known for name in columns))


def _check_columns(known: _Known, names: Iterable[str | None]) -> None:
    for name in names:
        for source, columns in known:
            if name is not None and name not in columns:
                raise JobError(f"{source.name} has {missing(name, columns)}")


def _check_first_rows(sources: Sequence[InputFile], name: str | None) -> None:
    """Refuse a field that no row has, as far as the first rows tell; of what can be read once only, they do not."""
    if name is None or any(source.size is None for source in sources):
        return
    fields: dict[str, Any] = {}
    for source in sources:
        for row in itertools.islice(read_rows([source]), FIRST_ROWS):
            if name in row.fields:
                return
            fields |= dict.fromkeys(row.fields)
    if fields:
        files = ", ".join(source.name for source in sources[:3]) + (" …" if len(sources) > 3 else "")
        have = "has" if len(sources) == 1 else "have"
        raise JobError(f"{files} {have} {missing(name, fields)}")


def _named(keep_fields: str | Sequence[str]) -> list[str]:
    return KeptFields(keep_fields, ()).named


def _fitting(prompts: PromptFields, llm: LLM | RemoteModel, known: _Known) -> PromptFields:
    """The columns of the prompt, without the text where the model's stored template makes do without it; a pair has both."""
    prompts.check(llm)
    template = llm.describe().get("prompt_template")
    if prompts.media:
        return prompts.reading(llm.media, template is not None or bool(llm.describe().get("chat_template_prompt")))
    alone = prompts.messages is None and prompts.pair is None
    if alone and template is not None and "text" not in _places(template):
        return replace(prompts, text=None)
    if prompts.messages is None:
        try:
            _check_columns(known, [prompts.text])
        except JobError as error:
            raise JobError(f"{error} Name the field of the text with --text-field (text_field=…).") from None
    return prompts


def _places(template: str) -> list[str]:
    from ..inputs.prompt_template import PromptTemplate

    return PromptTemplate.parse(template).fields


def _columns(
    llm: LLM | RemoteModel,
    shape: ResultColumns,
    head_name: str | None,
    aggregation: str | None,
    target: OutputFile,
    strays: Sequence[str],
) -> Columns:
    """The result columns of what the model does."""
    if llm.judges_steps:
        strange = [name for name in strays if name not in ("messages_field", "use_activation")]
        if strange or aggregation is not None:
            names = ", ".join([*strange, "aggregation"] if aggregation is not None else strange)
            raise ConfigError(f"{names}: this model judges the steps of a text; leave it out.")
        if target.format == "txt":
            raise ConfigError("a .txt output holds a label a line, and this model judges steps; write .jsonl.")
        return StepColumns(shape.with_probabilities)
    if llm.task != "token_classify":
        if aggregation is not None:
            raise ConfigError(f"aggregation={aggregation!r} is for token classifiers, and this model classifies texts.")
        several = type(shape) is ResultColumns and llm.heads  # a score is that of one head
        return HeadColumns.from_heads(shape, llm.heads, head_name) if several else shape
    if strays:
        raise ConfigError(f"{', '.join(strays)}: a token classifier gives spans of one text; leave it out.")
    if target.format == "txt":
        raise ConfigError("a .txt output holds a label a line, and a token classifier gives spans; write .jsonl.")
    return SpanColumns()


def _tally(shape: ResultColumns) -> Tally:
    if shape.regression and len(shape.id2label) > 1:
        raise ConfigError("label_field: a regression with several numbers has no metrics here; leave it out.")
    return Tally(shape.id2label, shape.problem_type, threshold=shape.threshold)


def _finish(
    row: InputRow, results: RowResults, columns: Columns, kept: KeptFields, writer: Writer, report: JobReport
) -> None:
    """Write one row and count it."""
    report.rows += 1
    record = {**kept.output_fields(row.fields), **(results.columns or columns.empty())}
    if results.truncated:
        record[TRUNCATED] = True
        report.truncated += 1
    if results.error is not None:
        record[ERROR] = results.error
    problem = writer.write(record)
    if results.error is not None or problem is not None:
        report.fail(row.place, results.error or problem or "")


@contextmanager
def _work_on(
    target: OutputFile, sources: Sequence[InputFile], options: Mapping[str, Any], overwrite: bool, restart: bool
) -> Iterator[WorkFolder | None]:
    """The work folder of an output, begun or taken up again; None for standard output."""
    if target.path is None:
        yield None
        return
    with open_work_folder(target.path, overwrite=overwrite, restart=restart) as work:
        work.agree(versions=of_versions(), inputs=of_inputs(sources), options={**options, "rows of a part": PART_ROWS})
        yield work


def _most_errors(on_error: str, max_errors: int | None) -> float:
    """How many rows may fail."""
    if on_error not in ("continue", "fail"):
        raise ConfigError(f"on_error={on_error!r} is unknown; use 'continue' or 'fail'.")
    if max_errors is None:
        return 0 if on_error == "fail" else math.inf
    if max_errors < 0 or on_error == "fail":
        raise ConfigError(f"max_errors={max_errors} must be 0 or more, and on_error='fail' is max_errors=0; drop one.")
    return max_errors

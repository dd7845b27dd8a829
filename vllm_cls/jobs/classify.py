"""`classify_file`: files in, one row of results for each row, in the same order, streaming."""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..compat import lazy_imports
from ..errors import ConfigError, JobError, PromptError
from ..evaluation import ClassificationMetrics, Tally
from ..parsing.labels import is_number
from .files import InputFile, OutputFile, find_sources, find_target
from .head_columns import HeadColumns
from .readers import columns_of, read_rows
from .results import (
    ADDED_TYPES,
    ERROR,
    NO_PROBABILITIES,
    TRUNCATED,
    KeptFields,
    ResultColumns,
    SpanColumns,
    StepColumns,
)
from .rows import InputRow, PromptFields, missing
from .tables import FIRST_ROWS, OutputSchema
from .writers import Writer, open_writer

if TYPE_CHECKING:
    from ..client import Client
    from ..llm import LLM
    from ..outputs import ClassificationOutput, RequestOutput
    from .remote import RemoteModel

_SHOWN_FAILURES = 5
_BAD_IN_A_ROW = 10_000  # rows without a prompt that are held before they are written, which bounds the memory

_Known = Sequence[tuple[InputFile, Sequence[str]]]
OnProgress = Callable[[int, float | None], None]
Stream = Callable[..., "Iterator[Any]"]  # prompts → their outputs


@dataclass
class JobReport:
    """What a job did.

    Args:
        rows: rows read and written, bad ones included.
        failed: rows with an `error`.
        truncated: rows whose text was cut to the model's length.
        seconds: spent on the rows, without loading the model.
        metrics: what was measured against `label_field`, or None.
        output: the file that was written, or None for standard output.
        failures: the first few bad rows, each with its place and reason.
        notes: what the reader should know: fields renamed, fields that no row had.
    """

    rows: int = 0
    failed: int = 0
    truncated: int = 0
    seconds: float = 0.0
    metrics: ClassificationMetrics | None = None
    output: str | None = None
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fail(self, row: InputRow, reason: str) -> None:
        self.failed += 1
        if len(self.failures) < _SHOWN_FAILURES:
            self.failures.append(f"{row.place}: {reason}")


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
        on_progress: called after each row with the rows so far and the share of the input, where it is known.
        prompts: how a row's prompt is read, where the three fields do not say it all.
        results: what a row of results holds, of a model that classifies texts.
        llm_options: options of `LLM`.

    Raises:
        JobError: no input, an output that cannot be, a file damaged as a whole.
        ConfigError: an option is wrong.
        ModelError: the model cannot be loaded.
    """
    if long_text not in ("truncate", "error"):
        raise ConfigError(f"long_text={long_text!r} is unknown; use 'truncate' or 'error'.")
    if truncation_side not in (None, "left", "right"):
        raise ConfigError(f"truncation_side={truncation_side!r} is unknown; use 'left' or 'right'.")
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
    with _opened(model, llm_options) as llm:
        _refuse_embedder(llm)
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
        stream = functools.partial(
            _stream(llm, shape, head_name, aggregation),
            truncate=long_text == "truncate",
            truncation_side=truncation_side,
        )
        answers = _answers(stream, read_rows(sources, report.notes), prompts)
        labelled = False
        with open_writer(target, layout) as writer:
            for row, answer in answers:
                _finish(row, answer, columns, kept, writer, report)
                if tally is not None and label_field is not None and row.error is None and answer is not None:
                    labelled = labelled or label_field in row.fields
                    _measure(tally, answer.outputs, row.fields.get(label_field))
                if on_progress is not None:
                    on_progress(report.rows, row.done)
        report.seconds = time.perf_counter() - began
    report.metrics = None if tally is None else tally.metrics()
    report.notes += _notes(kept, report, shape)
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
) -> ResultColumns | HeadColumns | SpanColumns | StepColumns:
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


def _stream(llm: Any, shape: ResultColumns, head_name: str | None, aggregation: str | None) -> Stream:
    if llm.judges_steps:
        return functools.partial(llm.step_iter, use_activation=shape.with_probabilities)
    if llm.task == "token_classify":
        return functools.partial(llm.token_classify_iter, aggregation_strategy=aggregation or "simple")
    named = {} if head_name is None else {"head_name": head_name}
    return functools.partial(llm.classify_iter, use_activation=shape.use_activation, **named)


def _tally(shape: ResultColumns) -> Tally:
    if shape.regression and len(shape.id2label) > 1:
        raise ConfigError("label_field: a regression with several numbers has no metrics here; leave it out.")
    return Tally(shape.id2label, shape.problem_type, threshold=shape.threshold)


def _measure(tally: Tally, answer: ClassificationOutput, gold: Any) -> None:
    """Count a row; what is measured of labels are their probabilities, whatever the row shows."""
    tally.add(answer.probs if answer.probabilities is None else answer.probabilities, gold)


def _answers(
    stream: Stream, rows: Iterator[InputRow], fields: PromptFields
) -> Iterator[tuple[InputRow, RequestOutput[Any] | None]]:
    """Rows in their order, each with the model's answer, or None where the row has no prompt.

    The model looks ahead, so rows wait here until their answer comes. Rows without a prompt are never shown
    to it; after many of them in a row the look-ahead is ended, so that they do not pile up.
    """
    waiting: deque[InputRow] = deque()
    ended = False

    def prompts() -> Iterator[dict[str, Any]]:
        nonlocal ended
        bad = 0
        for row in rows:
            prompt = None
            if row.error is None:
                try:
                    prompt = fields.prompt(row.fields, row.folder)
                except PromptError as error:
                    row.error = str(error)
            waiting.append(row)
            bad = bad + 1 if prompt is None else 0
            if prompt is not None:
                yield prompt
            elif bad >= _BAD_IN_A_ROW:
                return
        ended = True

    while not ended:
        for answer in stream(prompts()):
            while waiting[0].error is not None:
                yield waiting.popleft(), None
            yield waiting.popleft(), answer
        while waiting:
            if waiting[0].error is None:
                raise JobError(f"the model gave no answer for {waiting[0].place}; this is a fault of vllm-cls.")
            yield waiting.popleft(), None


def _finish(
    row: InputRow,
    answer: RequestOutput[Any] | None,
    shape: ResultColumns | HeadColumns | SpanColumns | StepColumns,
    kept: KeptFields,
    writer: Writer,
    report: JobReport,
) -> None:
    """Write one row and count it."""
    report.rows += 1
    results = shape.empty()
    if answer is not None:
        row.error = answer.error
        if row.error is None:
            try:
                results = shape.row(answer)
            except ValueError as error:
                row.error = str(error)
    record = {**kept.output_fields(row.fields), **results}
    if answer is not None and answer.truncated:
        record[TRUNCATED] = True
        report.truncated += 1
    if row.error is not None:
        record[ERROR] = row.error
    problem = writer.write(record)
    if row.error is not None or problem is not None:
        report.fail(row, row.error or problem or "")


def _notes(kept: KeptFields, report: JobReport, shape: ResultColumns) -> list[str]:
    notes = [
        f"the input's field {old!r} is kept as {new!r}, because {old!r} is a column of the results"
        for old, new in kept.renamed.items()
    ]
    if report.rows:
        notes += [f"no row has the field {name!r}, which was to be kept" for name in kept.never_seen]
    if shape.use_activation and not (shape.gives_probabilities or shape.regression or type(shape) is not ResultColumns):
        notes.append(f"rows have logits in place of probabilities: {NO_PROBABILITIES}")
    return notes if report.metrics is None else notes + _notes_of_labels(report.metrics, shape)


def _notes_of_labels(metrics: ClassificationMetrics, shape: ResultColumns) -> list[str]:
    """What is to be said of the true labels: how they were read, and which of them are none."""
    if not metrics.unknown:
        return metrics.notes
    told = f"{metrics.unknown} rows are not measured, because their true label is none of the model's: "
    told += ", ".join(metrics.unknown_labels)
    bare = {each: each.strip("' ") for each in metrics.unknown_labels}  # they are told with quotes
    names = {name.casefold(): name for name in shape.id2label.values()}
    near = [
        f"{each} differs from {names[text.casefold()]!r} in upper and lower case"
        for each, text in bare.items()
        if text.casefold() in names and text not in names.values()
    ]
    if not shape.regression and any(map(is_number, bare.values())):
        near.append(f"indices are 0 to {max(1, len(shape.id2label) - 1)}")
    return [*metrics.notes, told + (f" ({'; '.join(near)})" if near else "")]

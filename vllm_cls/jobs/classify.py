"""`classify_file`: files in, one row of results for each row, in the same order, streaming."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..calls.candidates import candidates_of
from .options import JobOptions, OnProgress, RunOptions
from .report.job_report import JobReport
from .results.result_columns import ResultColumns
from .rows import PromptFields
from .run import run_job

if TYPE_CHECKING:
    from ..client import Client
    from ..llm import LLM
    from .pipeline.answers import WorkerPool
    from .remote import RemoteModel


def classify_file(
    model: str | os.PathLike[str] | LLM | Client | RemoteModel | WorkerPool,
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
    delimiter: str | None = None,
    encoding: str | None = None,
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
    candidate_labels: str | Sequence[str] | None = None,
    hypothesis_template: str | None = None,
    multi_label: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    on_error: str = "continue",
    max_errors: int | None = None,
    on_progress: OnProgress | None = None,
    report: str | os.PathLike[str] | None = None,
    prompts: PromptFields | None = None,
    results: type[ResultColumns] = ResultColumns,
    **llm_options: Any,
) -> JobReport:
    """Classify the rows of files; the arguments are those of `vcls classify`.

    Each row of the output has the kept fields of its input, then the results. A kept field that has the name
    of a result column is kept under `input_` and its name. A bad row keeps its place, with `error` and null results.

    Args:
        model: a folder, a hub id, a `.gguf` file, or an `LLM`, which stays open; or a `Client`, and then the model of
            its server classifies, with several requests in flight; or `vllm_cls.distributed.RayWorkers`.
        inputs: paths, URLs such as "s3://bucket/key", globs, folders of Parquet files or "-" (JSON lines on standard
            input), one or several.
        output: a path or URL whose name tells the format; None is JSON lines on standard output.
        image_field: the field of a row's images: a path (relative ones begin at the file's folder), a URL, bytes, base64,
            a struct of `bytes` and `path`, or a list of these. A row with images or videos may do without a text.
        video_field: the same of videos.
        keep_fields: "all", "none", or names, as a list or separated by commas.
        format: the format of the inputs where their names do not tell it.
        delimiter: the character between the columns of CSV and TSV; None is as the header tells.
        encoding: of the inputs that are text, such as "cp1252" or "utf-16"; None is UTF-8.
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
        candidate_labels: in place of the model's own labels, of a model of natural language inference: each text is compared
            with a hypothesis a label; the numbers are those of transformers' zero-shot-classification pipeline.
        hypothesis_template: of candidate labels, with `{}` for the label; None is "This example is {}.".
        multi_label: each candidate label is true or not, whatever the others are.
        overwrite: the output may be replaced, if it is there.
        restart: forget what a run that ended early has finished of this output; else the job goes on from there.
        on_error: "continue" keeps a bad row in its place; "fail" ends the job at the first.
        max_errors: end the job when more rows than this fail; what is finished is kept. None is any number.
        on_progress: called with a `JobProgress` before the first row and after each.
        report: an HTML file with the metrics, pictures of them and the worst mistakes; needs `label_field`.
        prompts: how a row's prompt is read, where the three fields do not say it all.
        results: what a row of results holds, of a model that classifies texts.
        llm_options: options of `LLM`.

    Raises:
        JobError: no input, an output that cannot be, a file damaged as a whole; inputs, options or a model that are not
            those of the run that the job would go on with; too many bad rows.
        ConfigError: an option is wrong.
        ModelError: the model cannot be loaded.
    """
    options = JobOptions(
        prompts or PromptFields(text_field, text_pair_field, messages_field, image_field, video_field),
        results,
        keep_fields,
        threshold,
        top_k,
        scores,
        logits,
        use_activation,
        label_field,
        head_name,
        aggregation,
        long_text,
        truncation_side,
        candidates=candidates_of(candidate_labels, hypothesis_template, multi_label),
    )
    how = RunOptions(format, overwrite, restart, on_error, max_errors, on_progress, delimiter, encoding, report)
    return run_job(model, inputs, output, options, how, llm_options)

"""`score_file`: rows with two texts in, a score for each out; the same job as `classify_file`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..calls.scoring import ScoreOptions
from ..result_fields import PAIR
from .options import JobOptions, OnProgress, RunOptions
from .report.job_report import JobReport
from .results.result_columns import ResultColumns
from .rows import PromptFields
from .run import run_job

if TYPE_CHECKING:
    from ..client import Client
    from ..llm import LLM
    from ..outputs import ClassificationOutput, RequestOutput
    from .pipeline.answers import WorkerPool
    from .remote import RemoteModel

QUERY, DOCUMENT = "query", "document"


@dataclass(frozen=True)
class PairFields(PromptFields):
    """Columns of a query and a document, and how the two are written.

    A column `instruction` is used where the model's template has a place for one. `head_name` is the head that scores.
    """

    options: ScoreOptions = field(default_factory=ScoreOptions)
    head_name: str | None = None

    def check(self, llm: LLM | RemoteModel) -> None:
        heads = () if self.head_name is None else (len(llm.head(self.head_name).id2label),)
        llm.score_processor(self.options, heads)

    def prompt(self, fields: Mapping[str, Any], folder: str = "") -> dict[str, Any]:
        read = super().prompt(fields, folder)
        return self.options.prompt(read.get("prompt"), read["text_pair"], read["fields"])


class ScoreColumns(ResultColumns):
    """The score alone."""

    @property
    def kind(self) -> str:
        return PAIR

    def row(self, output: RequestOutput[ClassificationOutput]) -> dict[str, Any]:
        (score,) = output.outputs.probs
        if not math.isfinite(score):
            raise ValueError(f"the model gave {score}, which is not finite; its weights or its dtype are at fault")
        return {"score": score}


def score_file(
    model: str | os.PathLike[str] | LLM | Client | RemoteModel | WorkerPool,
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    text_field: str = QUERY,
    text_pair_field: str = DOCUMENT,
    instruction: str | None = None,
    max_tokens_per_query: int | None = None,
    max_tokens_per_doc: int | None = None,
    keep_fields: str | Sequence[str] = "all",
    format: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    use_activation: bool | None = None,
    head_name: str | None = None,
    long_text: str = "truncate",
    truncation_side: str | None = None,
    overwrite: bool = False,
    restart: bool = False,
    on_error: str = "continue",
    max_errors: int | None = None,
    on_progress: OnProgress | None = None,
    **llm_options: Any,
) -> JobReport:
    """Score the pairs of texts in the rows of files; the arguments are those of `vcls score`.

    Each row of the output has the kept fields of its input, then `score`. All else is as for `classify_file`.

    Args:
        text_field: the column of the query.
        text_pair_field: the column of the document.
        instruction: for the place of that name in the model's score template.
        max_tokens_per_query: the query's first tokens that are kept; None and 0 keep all.
        max_tokens_per_doc: the document's.
        use_activation: False gives the logit.
        head_name: of a model with several heads, the one that scores; None is the first.
        llm_options: options of `LLM`, such as `score_template`.

    Raises:
        JobError, ConfigError, ModelError: as for `classify_file`; also for a model with several labels, and for a causal
            reranker whose score template is not known.
    """
    prompts = PairFields(
        text_field,
        text_pair_field,
        options=ScoreOptions(None, instruction, max_tokens_per_query, max_tokens_per_doc),
        head_name=head_name,
    )
    options = JobOptions(
        prompts,
        ScoreColumns,
        keep_fields,
        use_activation=use_activation,
        head_name=head_name,
        long_text=long_text,
        truncation_side=truncation_side,
    )
    how = RunOptions(format, overwrite, restart, on_error, max_errors, on_progress, delimiter, encoding)
    return run_job(model, inputs, output, options, how, llm_options)

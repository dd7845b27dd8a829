"""What the options of a job come to with the model that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..calls.candidates import Candidates
from ..errors import ConfigError
from ..evaluation import Tally
from .formats.files import OutputFile
from .options import JobOptions
from .report.html_data import ReportData
from .results.decision_columns import DecisionColumns
from .results.head_columns import HeadColumns
from .results.result_columns import ADDED_TYPES, ResultColumns, RowResults, SpanColumns, StepColumns
from .rows import PromptFields

if TYPE_CHECKING:
    from ..llm import LLM
    from .remote import RemoteModel

Columns = ResultColumns | HeadColumns | SpanColumns | StepColumns | DecisionColumns


@dataclass(frozen=True)
class Plan:
    """A job's options, fitted to a model; another process can be sent it.

    Args:
        prompts: how a row's prompt is read.
        shape: the results of a row, of the head that was asked for.
        columns: the results of a row.
    """

    options: JobOptions
    prompts: PromptFields
    shape: ResultColumns
    columns: Columns

    @classmethod
    def of(cls, llm: LLM | RemoteModel, options: JobOptions) -> Plan:
        """The plan for a model.

        Raises:
            ConfigError: the model does not do what the options ask.
        """
        if options.answers is not None:
            options.prompts.check(llm)
            plan = cls(options, options.prompts, ResultColumns(options.answers.labels), options.answers)
            plan.tally()
            return plan
        if llm.task == "embed":
            llm.check("classify")  # type: ignore[union-attr]  # a server's model is none
        prompts = _fitting(options.prompts, llm)
        if options.candidates is not None:
            shape = _of_candidates(llm, options, options.candidates)
        else:
            head = llm if options.head_name is None else llm.head(options.head_name)
            use_activation = llm.use_activation if options.use_activation is None else options.use_activation
            shape = options.shape(head.id2label, head.problem_type, use_activation, head.gives_probabilities)
        if options.threshold != 0.5 and not shape.multi_label:
            raise ConfigError(
                f"threshold={options.threshold}: of labels that exclude each other the most probable is given; leave it out."
            )
        plan = cls(options, prompts, shape, _columns(llm, shape, options))
        plan.tally()  # refuses what cannot be measured
        return plan

    def tally(self, reported: bool = False) -> Tally | None:
        """What counts the metrics of the rows; None where nothing is measured.

        Args:
            reported: `Tally.observed` is then a `ReportData`.
        """
        if self.options.label_field is None:
            return None
        shape = self.shape
        if shape.regression and len(shape.id2label) > 1:
            raise ConfigError("label_field: a regression with several numbers has no metrics here; leave it out.")

        def observe(labels: Sequence[str]) -> ReportData:
            return ReportData(labels, shape.problem_type, shape.threshold, self.prompts)

        return Tally(
            shape.id2label, shape.problem_type, threshold=shape.threshold, observe=observe if reported else None
        )

    def arrays(self, found: Sequence[RowResults]) -> dict[str, Any]:
        """The results of rows as Arrow's arrays, `truncated` and `error` last."""
        import pyarrow as pa

        from .formats.columnar_writer import arrow_type

        added = [{"truncated": each.truncated, "error": each.error} for each in found]
        records = [{**(each.columns or {}), **more} for each, more in zip(found, added, strict=True)]
        types = {**self.columns.types, **ADDED_TYPES}
        return {name: pa.array([each.get(name) for each in records], arrow_type(kind)) for name, kind in types.items()}

    def check_target(self, target: OutputFile) -> None:
        """Raise `ConfigError` if the output's format cannot hold the results."""
        what = {
            SpanColumns: "a token classifier gives spans",
            StepColumns: "this model judges steps",
            DecisionColumns: "decisions are several answers",
        }
        if target.format == "txt" and type(self.columns) in what:
            told = what[type(self.columns)]
            raise ConfigError(f"a .txt output holds a label a line, and {told}; write .jsonl.")


def _fitting(prompts: PromptFields, llm: LLM | RemoteModel) -> PromptFields:
    """The columns of the prompt, without the text where the model's stored template makes do without it; a pair has both."""
    prompts.check(llm)
    template = llm.describe().get("prompt_template")
    if prompts.media:
        return prompts.reading(llm.media, template is not None or bool(llm.describe().get("chat_template_prompt")))
    alone = prompts.messages is None and prompts.pair is None
    return (
        replace(prompts, text=None) if alone and template is not None and "text" not in _places(template) else prompts
    )


def _of_candidates(llm: LLM | RemoteModel, options: JobOptions, candidates: Candidates) -> ResultColumns:
    """The results of a row by labels that the job names.

    Raises:
        ConfigError: the model does not classify by such.
    """
    llm.classify_iter((), **candidates.arguments)  # nothing runs yet
    problem_type = f"{'multi' if candidates.multi_label else 'single'}_label_classification"
    return options.shape(dict(enumerate(candidates.labels)), problem_type, True)


def _places(template: str) -> list[str]:
    from ..inputs.prompt_template import PromptTemplate

    return PromptTemplate.parse(template).fields


def _columns(llm: LLM | RemoteModel, shape: ResultColumns, options: JobOptions) -> Columns:
    """The result columns of what the model does."""
    strays, aggregation = options.of_whole_texts, options.aggregation
    if llm.judges_steps:
        strange = [name for name in strays if name not in ("messages_field", "use_activation")]
        if strange or aggregation is not None:
            names = ", ".join([*strange, "aggregation"] if aggregation is not None else strange)
            raise ConfigError(f"{names}: this model judges the steps of a text; leave it out.")
        return StepColumns(shape.with_probabilities)
    if llm.task != "token_classify":
        if aggregation is not None:
            raise ConfigError(f"aggregation={aggregation!r} is for token classifiers, and this model classifies texts.")
        several = (
            type(shape) is ResultColumns and llm.heads and options.candidates is None
        )  # a score is that of one head
        return HeadColumns.from_heads(shape, llm.heads, options.head_name) if several else shape
    if strays:
        raise ConfigError(f"{', '.join(strays)}: a token classifier gives spans of one text; leave it out.")
    return SpanColumns()

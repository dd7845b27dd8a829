"""The model's answers to the rows of files, in their order."""

from __future__ import annotations

import abc
import contextlib
import functools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ...compat import lazy_imports
from ...errors import JobError, PromptError
from ...outputs import Decision, RequestOutput
from ..options import JobOptions
from ..plan import Columns, Plan
from ..results.decision_columns import DecisionColumns
from ..results.result_columns import RowResults
from ..resume.fingerprints import differences, of_model, of_versions
from ..resume.parts import Answered
from ..rows import InputRow, PromptFields

if TYPE_CHECKING:
    from ...llm import LLM
    from ..remote import RemoteModel

BAD_IN_A_ROW = 10_000
"""Rows without a prompt that are held before they are written, which bounds the memory."""

Stream = Callable[..., "Iterator[Any]"]  # prompts → their outputs


class PartWorker(Protocol):
    """What computes the parts of a job.

    Args:
        ahead: parts that it is given while the results of one are awaited.
    """

    ahead: int

    @property
    def counters(self) -> Any: ...

    def description(self) -> str: ...

    def compute(self, rows: Iterator[InputRow]) -> Generator[Answered, None, None]: ...


class PlannedWorker(PartWorker, Protocol):
    """What computes those of a job over rows.

    Args:
        plan: the job's options, fitted to the model.
    """

    plan: Plan

    def fingerprint(self) -> dict[str, Any]: ...


class WorkerPool(abc.ABC):
    """A model in other processes, in place of an open one.

    Args:
        model: as `LLM` takes it.
    """

    model: str

    @abc.abstractmethod
    def at_work(
        self, options: JobOptions, llm_options: Mapping[str, Any]
    ) -> contextlib.AbstractContextManager[PlannedWorker]:
        """Its workers, for one job; those end with the context."""


def check_versions(elsewhere: Mapping[str, str]) -> None:
    """Raise `JobError` if a worker has other versions than this process: numbers, and what is sent, may differ."""
    if found := differences(of_versions(), elsewhere):
        raise JobError(
            f"a worker has other versions than this process: {'; '.join(found)}. Install the same everywhere."
        )


class RowWorker:
    """A model at work on a job: rows in, rows with their results out.

    It needs an open model and the options alone, and rows and results can be sent, so that any process can hold one.

    Args:
        llm: stays the caller's to close.

    Raises:
        ConfigError: the model does not do what the options ask.
    """

    ahead = 0

    def __init__(self, llm: LLM | RemoteModel, options: JobOptions) -> None:
        self._llm = llm
        self.plan = Plan.of(llm, options)
        self._stream = functools.partial(
            _stream_of(llm, self.plan),
            truncate=options.long_text == "truncate",
            truncation_side=options.truncation_side,
        )

    @classmethod
    def opened(cls, model: str, options: JobOptions, llm_options: Mapping[str, Any]) -> RowWorker:
        """With a model of its own, for as long as the process lasts."""
        lazy_imports.import_libraries()
        from ...llm import LLM

        return cls(LLM(model, **llm_options), options)

    def fingerprint(self) -> dict[str, Any]:
        """What the results depend on of the model."""
        return of_model(self._llm)

    @staticmethod
    def versions() -> dict[str, str]:
        """What they depend on of this process."""
        return of_versions()

    @property
    def counters(self) -> Any:
        """What the model has computed so far, as `LLM.counters` gives it; None of a server's."""
        return self._llm.counters

    def description(self) -> str:
        """How the model runs: the form of its batches, which attention and products, where."""
        return description_of(self._llm)

    def compute(self, rows: Iterator[InputRow]) -> Generator[Answered, None, None]:
        """The rows of one part with their results, in their order; they depend on no other part."""
        self._llm.reset_prefix_cache()  # whose hits change the last digits
        plan, measured = self.plan, self.plan.options.label_field is not None
        for row, output in answers_of(self._stream, rows, plan.prompts):
            yield Answered(row, results_of(row, output, plan.columns, measured))


def description_of(llm: LLM | RemoteModel) -> str:
    """How a model runs: the form of its batches, which attention and products, where."""
    told = llm.describe()
    if "execution" not in told:
        return f"the server {told['server']}" if "server" in told else ""
    attention = told["attention_kernel"] and f"attention by {told['attention_kernel']}"
    products = told["matrix_kernels"] and f"products by {' and '.join(told['matrix_kernels'])}"
    where = f"{told['dtype']} on {told['device']}"
    where += f" with {told['num_threads']} threads" if told["num_threads"] else ""
    return ", ".join(filter(None, (told["execution"], attention, products, where)))


def _stream_of(llm: Any, plan: Plan) -> Stream:
    """What the model does with prompts."""
    if plan.options.answers is not None:
        return functools.partial(_decided, llm)
    if llm.judges_steps:
        return functools.partial(llm.step_iter, use_activation=plan.shape.with_probabilities)
    if llm.task == "token_classify":
        return functools.partial(llm.token_classify_iter, aggregation_strategy=plan.options.aggregation or "simple")
    if plan.options.candidates is not None:
        return functools.partial(llm.classify_iter, **plan.options.candidates.arguments)
    named = {} if plan.options.head_name is None else {"head_name": plan.options.head_name}
    return functools.partial(llm.classify_iter, use_activation=plan.shape.use_activation, **named)


def _decided(llm: LLM | RemoteModel, requests: Iterator[Any], **_: Any) -> Iterator[RequestOutput[Decision]]:
    """Answers to requests, which are never cut."""
    for each in llm.decide_iter(requests):
        yield RequestOutput("", each, [], error=each.error)


def answers_of(
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
            elif bad >= BAD_IN_A_ROW:
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


def results_of(row: InputRow, output: RequestOutput[Any] | None, columns: Columns, measured: bool) -> RowResults:
    """What a part keeps of a row.

    Args:
        output: the model's answer; None where the row has no prompt.
        measured: keep what is compared with the true label: of labels their probabilities, whatever the row shows.
    """
    if output is None:
        return RowResults(None, row.error)
    tokens = len(output.prompt_token_ids)
    if output.error is not None:
        return RowResults(None, output.error, output.truncated, tokens=tokens)
    try:
        found = columns.row(output)
    except ValueError as error:
        return RowResults(None, str(error), output.truncated, tokens=tokens)
    return RowResults(found, None, output.truncated, _numbers(output, columns) if measured else None, tokens)


def _numbers(output: RequestOutput[Any], columns: Columns) -> list[float]:
    """What is compared with the true label."""
    if isinstance(columns, DecisionColumns):
        return columns.numbers(output)
    answer = output.outputs
    return list(answer.probs if answer.probabilities is None else answer.probabilities)

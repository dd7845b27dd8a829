"""`AsyncLLM`: `LLM` behind `await`; requests that arrive together share batches."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from .calls import candidates, decisions, moderations, scoring, tasks, zero_shot
from .calls.output_processor import NextId
from .calls.scoring import RankedDocument, ScoreOptions, Side
from .calls.tasks import TaskCall
from .errors import ConfigError, DeadlineError, EngineDeadError, PromptError, QueueFullError
from .inputs.prompts import is_single, size
from .inputs.tokenization import Tokenized
from .llm import LLM
from .outputs import ScoringRequestOutput
from .params import PoolingParams
from .scheduler.continuous_batching import ContinuousBatching
from .scheduler.telemetry import NullTelemetry, Telemetry
from .scheduler.waiting_queue import Request, WaitingQueue, Window

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .model.loaded_model import LoadedModel
    from .runtime.batch import TokenSequence
    from .runtime.engine import Result

T = TypeVar("T")

_TOKENIZERS = 2  # threads: one tokenizes at a time, the other reads an adapter meanwhile
# Tokenized before another request has its turn.
_PROMPTS_AT_ONCE, _CHARACTERS_AT_ONCE = 64, 1 << 16
_LONGEST_WINDOW = 0.25  # seconds
_QUEUED_WINDOWS = 64  # that wait at most, unless told otherwise


class Sending(TypedDict, total=False):
    """What every method takes beside what `LLM`'s takes."""

    request_id: str | None
    timeout: float | None
    cache_salt: str | None
    max_tokens: int | None


@dataclass(eq=False)
class _Asked(Request):
    """A request with all that its outputs take, and where they go."""

    call: TaskCall[Any] = field(kw_only=True)
    tokenized: Sequence[Tokenized] = field(kw_only=True)
    next_id: NextId = field(kw_only=True)
    future: asyncio.Future[list[Any]] = field(kw_only=True)
    loop: asyncio.AbstractEventLoop = field(kw_only=True)

    def outcome(self, telemetry: Telemetry) -> list[Any] | BaseException:
        """The outputs, which `telemetry` is told of, or why there are none."""
        if self.error is not None:
            return self.error
        try:
            outputs = self.call.outputs(self.tokenized, self.answers, self.next_id)  # type: ignore[arg-type]  # all are there
            if self.call.kind is tasks.CLASSIFY:  # by the model's labels: those of a request are the client's own
                for each in outputs:
                    if (label := each.outputs.label) is not None:
                        telemetry.predicted(label)
        except BaseException as error:  # whatever it is belongs to the caller that awaits
            return error
        return outputs


class AsyncLLM:
    """A classifier behind `await`, safe for many tasks at once.

    Its methods are those of `LLM`; one prompt gives one output and a list of them a list. Beside what `LLM`'s take, each
    takes `request_id`, which the outputs carry (with `-0`, `-1`, … where there are several); `timeout` in seconds;
    `cache_salt`, for prompts without one of their own; and `max_tokens`, of its prompts together. Cancelling the task that
    awaits drops what has not begun.

    Args:
        model: as for `LLM`; or an `LLM`, which is then taken as it is, and not closed with this.
        max_queued_requests: requests in flight at once; one more is refused.
        max_queued_tokens: tokens that wait for the device; once so many do, a request more is refused. None: as many as take
            64 full windows (see `docs/server.md`).
        telemetry: is told what happens.
        llm_options: as for `LLM`.

    Every method raises, for its request alone:
        PromptError: a prompt is bad, or all together are too long.
        ConfigError: an option is.
        QueueFullError: too much is waiting.
        DeadlineError: `timeout` is over.
        EngineDeadError: the engine failed, or is shutting down.
    """

    def __init__(
        self,
        model: str | LLM,
        *,
        max_queued_requests: int = 1024,
        max_queued_tokens: int | None = None,
        telemetry: Telemetry | None = None,
        **llm_options: Any,
    ) -> None:
        if isinstance(model, LLM) and llm_options:
            raise ConfigError(f"{', '.join(llm_options)}: give these to the LLM; it is taken as it is.")
        self._owns = not isinstance(model, LLM)
        self.llm = model if isinstance(model, LLM) else LLM(model, **llm_options)
        self.telemetry: Telemetry = telemetry or NullTelemetry()
        if max_queued_tokens is None:
            max_queued_tokens = _QUEUED_WINDOWS * self.llm._open.engine.window[0]
        self.max_queued_requests = max_queued_requests
        self._queue = WaitingQueue(max_queued_requests, max_queued_tokens)
        self._tokenizers = ThreadPoolExecutor(_TOKENIZERS, thread_name_prefix="vllm_cls_async_tokenizer")
        self._outputs = ThreadPoolExecutor(1, thread_name_prefix="vllm_cls_outputs")
        self._batching = ContinuousBatching(self._queue, self._run, self._window, self._finished, self.telemetry)
        self._numbers = itertools.count()

    # -- how it is ----------------------------------------------------------------------------------

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered; once False, it stays so."""
        return self._batching.is_alive

    @property
    def load(self) -> int:
        """Requests in flight: tokenized, waiting, running."""
        return self._queue.num_requests

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for the device."""
        return self._queue.num_tokens

    async def drain(self, timeout: float | None = None) -> bool:
        """Let no request in any more and wait for those in flight; whether all were answered in time."""
        self._queue.refuse("the engine is shutting down and takes no new requests.")
        deadline = time.monotonic() + (timeout if timeout is not None else float("inf"))
        while self.load and self.is_alive and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return not self.load

    def close(self) -> None:
        """Finish what is running, and give the model's memory back; requests that wait fail with `EngineDeadError`."""
        self._batching.close()
        self._tokenizers.shutdown(wait=True)
        self._outputs.shutdown(wait=True)
        if self._owns:
            self.llm.close()

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.to_thread(self.close)

    # -- what it does -------------------------------------------------------------------------------

    async def classify(
        self,
        prompts: Any,
        *,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        candidate_labels: Sequence[str] | None = None,
        hypothesis_template: str = candidates.HYPOTHESIS,
        multi_label: bool = False,
        **sending: Unpack[Sending],
    ) -> Any:
        """Probabilities; options as for `LLM.classify`."""
        if candidate_labels is not None:
            return await self._prompted(
                zero_shot.classify,
                prompts,
                sending,
                candidates=candidates.Candidates(candidate_labels, hypothesis_template, multi_label),
                pooling_params=pooling_params,
                lora_request=lora_request,
                tokenization_kwargs=tokenization_kwargs,
            )
        return await self._prompted(
            tasks.classify,
            prompts,
            sending,
            pooling_params=pooling_params,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
        )

    async def encode(
        self,
        prompts: Any,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        pooling_task: str | None = None,
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        **sending: Unpack[Sending],
    ) -> Any:
        """Tensors; options as for `LLM.encode`."""
        return await self._prompted(
            tasks.encode,
            prompts,
            sending,
            pooling_params=pooling_params,
            pooling_task=pooling_task,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
        )

    async def token_classify(
        self,
        prompts: Any,
        *,
        aggregation_strategy: str = "simple",
        ignore_labels: Sequence[str] = ("O",),
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        **sending: Unpack[Sending],
    ) -> Any:
        """The labelled spans of texts; options as for `LLM.token_classify`."""
        return await self._prompted(
            tasks.token_classify,
            prompts,
            sending,
            aggregation_strategy=aggregation_strategy,
            ignore_labels=ignore_labels,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
        )

    async def reward(
        self,
        prompts: Any,
        *,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        **sending: Unpack[Sending],
    ) -> Any:
        """Rewards; options as for `LLM.reward`."""
        return await self._prompted(
            tasks.reward,
            prompts,
            sending,
            pooling_params=pooling_params,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
        )

    async def score(
        self,
        text_1: Side | Sequence[Side],
        text_2: Side | Sequence[Side],
        /,
        *,
        pooling_params: PoolingParams | None = None,
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        instruction: str | None = None,
        max_tokens_per_query: int | None = None,
        max_tokens_per_doc: int | None = None,
        **sending: Unpack[Sending],
    ) -> list[ScoringRequestOutput]:
        """One score a pair; options as for `LLM.score`."""
        build = functools.partial(
            tasks.score,
            text_1=text_1,
            text_2=text_2,
            options=ScoreOptions(chat_template, instruction, max_tokens_per_query, max_tokens_per_doc),
            pooling_params=pooling_params,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
        )
        return await self._answer(build, **sending)

    async def rerank(
        self, query: Side, documents: Side | Sequence[Side], *, top_n: int | None = None, **options: Any
    ) -> list[RankedDocument]:
        """Documents by falling score for a query; other options as for `score`."""
        documents = [documents] if isinstance(documents, str | Mapping) else list(documents)
        return scoring.rank(documents, await self.score(query, documents, **options), top_n)

    async def decide(self, requests: Any, **sending: Unpack[Sending]) -> Any:
        """Answers to typed questions; requests as for `LLM.decide`, and one of them gives one `Decision`."""
        return await self._prompted(decisions.decide, requests, sending)

    async def moderate(
        self,
        prompts: Any,
        *,
        threshold: float = moderations.THRESHOLD,
        categories: Sequence[str] | None = None,
        safe_label: str | None = None,
        pooling_params: PoolingParams | None = None,
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        **sending: Unpack[Sending],
    ) -> Any:
        """What texts are flagged for; options as for `LLM.moderate`, and one text gives one `Moderation`."""
        return await self._prompted(
            moderations.moderate,
            prompts,
            sending,
            threshold=threshold,
            categories=categories,
            safe_label=safe_label,
            pooling_params=pooling_params,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
        )

    async def chat(self, messages: Any, **options: Any) -> Any:
        """Probabilities for a conversation, or for each of a list of them; options as for `classify`."""
        return await self.classify(messages if is_single(messages) else list(messages), **options)

    async def token_ids(
        self, prompt: Any, *, add_special_tokens: bool | None = None, timeout: float | None = None
    ) -> list[int]:
        """The tokens of a prompt, as `LLM.token_ids`."""
        ids = functools.partial(self.llm.token_ids, prompt, add_special_tokens=add_special_tokens)
        return await self.tokenizing(ids, timeout=timeout)

    async def tokenizing(self, work: Callable[[], T], *, timeout: float | None = None) -> T:
        """What `work` gives where prompts are tokenized, in turn with those: for other uses of a tokenizer.

        Args:
            work: of the processor alone, and short: nothing else is tokenized meanwhile.
        """
        loop = asyncio.get_running_loop()
        return await self._in_flight(lambda: loop.run_in_executor(self._tokenizers, work), timeout)

    # -- how ----------------------------------------------------------------------------------------

    async def _prompted(
        self, call: Callable[..., TaskCall[Any]], prompts: Any, sending: Sending, **options: Any
    ) -> Any:
        """What a call of `vllm_cls.calls.tasks` gives: one output for one prompt, a list of them for a list."""
        outputs = await self._answer(functools.partial(call, prompts=prompts, **options), **sending)
        return outputs[0] if is_single(prompts) else outputs

    async def _answer(
        self,
        build: Callable[[LoadedModel], TaskCall[Any]],
        *,
        request_id: str | None = None,
        timeout: float | None = None,
        cache_salt: str | None = None,
        max_tokens: int | None = None,
    ) -> list[Any]:
        build_now = functools.partial(build, self.llm._open)
        deadline = time.monotonic() + (timeout if timeout is not None else float("inf"))
        work = functools.partial(self._run_through, build_now, request_id, deadline, cache_salt, max_tokens)
        return await self._in_flight(work, timeout)

    async def _in_flight(self, work: Callable[[], Awaitable[T]], timeout: float | None) -> T:
        """What `work` gives, as one of the requests in flight."""
        try:
            with self._queue.place():
                return await (work() if timeout is None else asyncio.wait_for(work(), timeout))
        except QueueFullError:
            self.telemetry.rejected("queue_full")
            raise
        except EngineDeadError:
            self.telemetry.rejected("dead")
            raise
        except asyncio.CancelledError:
            self.telemetry.rejected("cancelled")
            raise
        except asyncio.TimeoutError as error:
            if timeout is None:  # of something else
                raise
            self.telemetry.rejected("deadline")
            raise DeadlineError(
                f"no answer within {round(timeout, 3):g} s, the time that this request was given."
            ) from error

    async def _run_through(
        self,
        build: Callable[[], TaskCall[Any]],
        request_id: str | None,
        deadline: float,
        cache_salt: str | None,
        max_tokens: int | None,
    ) -> list[Any]:
        """Tokenize, wait for the turn, and for the outputs."""
        began, loop = time.perf_counter(), asyncio.get_running_loop()
        call, tokenized = await loop.run_in_executor(self._tokenizers, _begun, build, cache_salt)
        num_tokens = _counted(0, tokenized, max_tokens)
        while (start := len(tokenized)) < len(call.prompts):
            more = await loop.run_in_executor(self._tokenizers, call.tokenize, start, _turn(call.prompts, start))
            num_tokens = _counted(num_tokens, more, max_tokens)
            tokenized += more
        self.telemetry.stage("tokenize", began, time.perf_counter())
        asked = _Asked(
            call.kind.task,
            [each.sequence for each in tokenized],
            deadline,
            call=call,
            tokenized=tokenized,
            next_id=self._ids(request_id, len(tokenized) // call.each),
            future=loop.create_future(),
            loop=loop,
        )
        self._queue.put(asked)
        try:
            self.telemetry.request_queued(len(tokenized), num_tokens)
            if cut := sum([each.truncated for each in tokenized]):
                self.telemetry.truncated(cut)
            outputs = await asked.future
        finally:
            self._queue.discard(asked)
        self.telemetry.stage("queue", asked.queued_at, asked.began_at)
        self.telemetry.stage("compute", asked.began_at, asked.ended_at)
        return outputs

    def _ids(self, request_id: str | None, count: int) -> NextId:
        if request_id is None:
            return lambda: str(next(self._numbers))
        return functools.partial(
            next, iter([request_id] if count == 1 else [f"{request_id}-{i}" for i in range(count)])
        )

    def _run(self, task: str, sequences: Sequence[TokenSequence]) -> Sequence[Result]:
        return self.llm._open.runs[task](sequences)

    def _window(self) -> Window:
        """What keeps the device busy once; where that takes long, since who comes next waits for it, half as much."""
        tokens, sequences = self.llm._open.engine.window
        rate = self._queue.tokens_per_second
        if rate is not None:
            tokens = max(tokens // 2, min(tokens, int(rate * _LONGEST_WINDOW)))
        return Window(tokens, sequences)

    def _finished(self, requests: Sequence[Request]) -> None:
        """In the engine's thread: outputs are made in another, while the next window runs."""
        self._outputs.submit(self._deliver, [each for each in requests if isinstance(each, _Asked)])

    def _deliver(self, requests: Sequence[_Asked]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], list[Any] | BaseException]]] = {}
        for request in requests:
            outcome = request.outcome(self.telemetry)
            loops.setdefault(request.loop, []).append((request.future, outcome))
        for loop, outcomes in loops.items():
            with suppress(RuntimeError):  # the caller's loop is closed: nobody waits for these answers
                loop.call_soon_threadsafe(_settle, outcomes)


def _begun(build: Callable[[], TaskCall[Any]], cache_salt: str | None) -> tuple[TaskCall[Any], list[Tokenized]]:
    """A call, checked, and its first prompts, tokenized."""
    call = build()
    if cache_salt is not None:
        call = dataclasses.replace(call, cache_salt=cache_salt)
    return call, call.tokenize(0, _turn(call.prompts, 0))


def _turn(prompts: Sequence[Any], start: int) -> int:
    """Up to which prompt one turn of tokenizing goes: many short ones, or a long one."""
    stop, characters = start, 0
    while stop < min(len(prompts), start + _PROMPTS_AT_ONCE):
        characters += size(prompts[stop])
        if stop > start and characters > _CHARACTERS_AT_ONCE:
            break
        stop += 1
    return stop


def _counted(num_tokens: int, more: Sequence[Tokenized], max_tokens: int | None) -> int:
    """The tokens of a request's prompts so far; raises `PromptError` where they are too many."""
    num_tokens += sum([len(each.sequence.token_ids) for each in more])
    if max_tokens is not None and num_tokens > max_tokens:
        raise PromptError(
            f"{num_tokens} tokens are more than the {max_tokens} that one request may have; send several."
        )
    return num_tokens


def _settle(outcomes: Sequence[tuple[asyncio.Future[Any], list[Any] | BaseException]]) -> None:
    """Give futures their answers, except those whose callers have gone."""
    for future, outcome in outcomes:
        if future.done():
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

"""`AsyncLLM`: the same results with `await`; requests that arrive together share batches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError
from .llm import LLM
from .outputs import ScoringRequestOutput
from .params import PoolingParams
from .prompts import is_single
from .scoring import RankedDocument
from .telemetry import Telemetry


@dataclass(frozen=True)
class _Request:
    """One prompt's call and where its answer goes."""

    prompt: Any
    options: dict[str, Any]
    task: str
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop

    @property
    def group(self) -> str:
        """Requests with equal groups can be answered by one call."""
        return repr((self.task, self.options.get("tokenization_kwargs")))


class AsyncLLM:
    """A classifier behind `await`, safe for many tasks at once.

    Args:
        model: as for `LLM`; or an `LLM`, which is then taken as it is, and not closed with this.
        max_queued_requests: requests in flight at once; one more is refused.
        max_queued_tokens: tokens that wait for the device; once so many do, a request more is refused.
        telemetry: is told what happens.
        llm_options: as for `LLM`.

    Every method takes beside what `LLM`'s takes: `request_id`, which the outputs carry; `timeout` in seconds; and
    `cache_salt`, which keeps prompts without one of their own apart from others in the prefix cache.

    Raises of every method:
        PromptError: a prompt is bad.
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
        self._owns = not isinstance(model, LLM)
        self.llm = model if isinstance(model, LLM) else LLM(model, **llm_options)
        self._waiting: list[_Request] = []
        self._lock = threading.Lock()
        self._worker: ThreadPoolExecutor | None = ThreadPoolExecutor(1, thread_name_prefix="vllm_cls")
        self._running = False
        self.load = 0
        self.queued_tokens = 0

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered; once False, it stays so."""
        return self._worker is not None

    async def classify(
        self,
        prompts: Any,
        *,
        pooling_params: Any = None,
        lora_request: Any = None,
        tokenization_kwargs: Any = None,
        request_id: str | None = None,
        timeout: float | None = None,
        cache_salt: str | None = None,
    ) -> Any:
        """Probabilities: one output for one prompt, a list of them for a list; options as for `LLM.classify`."""
        options = {
            "pooling_params": pooling_params,
            "lora_request": lora_request,
            "tokenization_kwargs": tokenization_kwargs,
        }
        if not is_single(prompts):
            return await self._through(self.llm.classify, list(prompts), **options)
        return await self._submit("classify", prompts, _kept(options))

    async def encode(
        self, prompts: Any, pooling_params: Any = None, *, pooling_task: str | None = None, **options: Any
    ) -> Any:
        """Tensors; options as for `LLM.encode`."""
        options["pooling_params"] = pooling_params
        if not is_single(prompts):
            return await self._through(self.llm.encode, list(prompts), pooling_task=pooling_task, **options)
        return await self._submit(f"encode:{pooling_task or ''}", prompts, _kept(options))

    async def token_classify(self, prompts: Any, **options: Any) -> Any:
        """The labelled spans of texts; options as for `LLM.token_classify`."""
        found = await self._through(self.llm.token_classify, prompts, **options)
        return found[0] if is_single(prompts) else found

    async def reward(self, prompts: Any, **options: Any) -> Any:
        """Rewards; options as for `LLM.reward`."""
        found = await self._through(self.llm.reward, prompts, **options)
        return found[0] if is_single(prompts) else found

    async def score(self, text_1: Any, text_2: Any, **options: Any) -> list[ScoringRequestOutput]:
        """One score a pair; options as for `LLM.score`."""
        found: list[ScoringRequestOutput] = await self._through(self.llm.score, text_1, text_2, **options)
        return found

    async def rerank(self, query: str, documents: Sequence[str], **options: Any) -> list[RankedDocument]:
        """Documents by falling score; options as for `LLM.rerank`."""
        found: list[RankedDocument] = await self._through(self.llm.rerank, query, documents, **options)
        return found

    async def chat(self, messages: Any, **options: Any) -> Any:
        """Probabilities for a conversation, or several."""
        return await self.classify(messages, **options)

    async def drain(self, timeout: float | None = None) -> bool:
        """Take no new requests and wait for those in flight; whether all were answered in time."""
        return True

    def close(self) -> None:
        """Finish what is running and give the model's memory back."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.shutdown(wait=True)
        if self._owns:
            self.llm.close()

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.to_thread(self.close)

    async def _through(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return await asyncio.to_thread(method, *arguments, **_kept(options))

    async def _submit(self, task: str, prompt: Any, options: dict[str, Any]) -> Any:
        if self._worker is None:
            raise ConfigError("this AsyncLLM is closed; make a new one.")
        loop = asyncio.get_running_loop()
        request = _Request(prompt, options, task, loop.create_future(), loop)
        with self._lock:
            self._waiting.append(request)
            if not self._running:
                self._running = True
                self._worker.submit(self._work)
        return await request.future

    def _work(self) -> None:
        while True:
            with self._lock:
                taken, self._waiting = self._waiting, []
                if not taken:
                    self._running = False
                    return
            groups: dict[str, list[_Request]] = {}
            for request in taken:
                groups.setdefault(request.group, []).append(request)
            for requests in groups.values():
                self._answer(requests)

    def _answer(self, requests: list[_Request]) -> None:
        """One call for all; if it fails, one call each, so that a bad prompt costs itself alone."""
        try:
            answers: list[Any] = self._call(requests)
        except Exception as error:  # whatever it is belongs to the caller that awaits
            if len(requests) > 1:
                for request in requests:
                    self._answer([request])
                return
            answers = [error]
        for request, answer in zip(requests, answers, strict=True):
            with suppress(RuntimeError):  # the caller's loop is closed: nobody waits for this answer
                request.loop.call_soon_threadsafe(_settle(request.future, answer))

    def _call(self, requests: list[_Request]) -> list[Any]:
        first = requests[0]
        adapters = [each.options.get("lora_request") for each in requests]
        shared: dict[str, Any] = {
            "tokenization_kwargs": first.options.get("tokenization_kwargs"),
            "lora_request": adapters,
        }
        params = [each.options.get("pooling_params") or PoolingParams() for each in requests]
        prompts = [each.prompt for each in requests]
        if first.task.startswith("encode:"):
            task = first.task.removeprefix("encode:") or None
            return list(self.llm.encode(prompts, params, pooling_task=task, **shared))
        return list(self.llm.classify(prompts, pooling_params=params, **shared))


def _settle(future: asyncio.Future[Any], answer: Any) -> Callable[[], None]:
    """Give a future its answer, unless its caller has gone."""

    def settle() -> None:
        if future.cancelled():
            return
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    return settle


def _kept(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in ("request_id", "timeout", "cache_salt")}

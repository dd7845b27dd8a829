"""`AsyncLLM`: the same results with `await`; requests that arrive together share batches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError
from .llm import LLM
from .outputs import ClassificationRequestOutput, PoolingRequestOutput, ScoringRequestOutput
from .params import PoolingParams


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

    One thread works: it takes what is waiting, and what arrives while a batch runs makes the next one,
    so a request alone is never delayed and many together are batched.

    Args:
        model: as for `LLM`, like all other arguments.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self.llm = LLM(model, **options)
        self._waiting: list[_Request] = []
        self._lock = threading.Lock()
        self._worker: ThreadPoolExecutor | None = ThreadPoolExecutor(1, thread_name_prefix="vllm_cls")
        self._running = False

    async def classify(
        self,
        prompt: Any,
        *,
        pooling_params: PoolingParams | None = None,
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> ClassificationRequestOutput:
        """Probabilities for one prompt; options as for `LLM.classify`."""
        options = {
            "pooling_params": pooling_params,
            "lora_request": lora_request,
            "tokenization_kwargs": tokenization_kwargs,
        }
        output: ClassificationRequestOutput = await self._submit("classify", prompt, options)
        return output

    async def encode(
        self,
        prompt: Any,
        pooling_params: PoolingParams | None = None,
        *,
        lora_request: Any = None,
        pooling_task: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> PoolingRequestOutput:
        """A tensor for one prompt; options as for `LLM.encode`."""
        options = {
            "pooling_params": pooling_params,
            "lora_request": lora_request,
            "tokenization_kwargs": tokenization_kwargs,
        }
        output: PoolingRequestOutput = await self._submit(f"encode:{pooling_task or ''}", prompt, options)
        return output

    async def score(self, text_1: str, text_2: str, **options: Any) -> ScoringRequestOutput:
        """The score of one pair; options as for `LLM.score`."""
        return (await asyncio.to_thread(self.llm.score, text_1, text_2, **options))[0]

    async def chat(self, messages: list[Any], **options: Any) -> ClassificationRequestOutput:
        """Probabilities for one conversation."""
        return await self.classify(messages, **options)

    def close(self) -> None:
        """Finish what is running and give the model's memory back."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.shutdown(wait=True)
        self.llm.close()

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.to_thread(self.close)

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

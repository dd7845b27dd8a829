"""Continuous batching: one thread runs what waits, a window at a time; what arrives meanwhile makes the next one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import EngineDeadError, PromptError
from .telemetry import Telemetry
from .waiting_queue import Request, Taken, WaitingQueue, Window

if TYPE_CHECKING:
    from ..runtime.batch import TokenSequence
    from ..runtime.engine import Result

_logger = logging.getLogger("vllm_cls")


class ContinuousBatching:
    """The thread that owns the device.

    It never waits for a batch to fill: a request alone runs at once, and under load batches fill by themselves.

    Args:
        queue: what it takes from.
        run: answers to the sequences of a task, in their order; what it raises costs the requests that it was called for.
        window: what is taken at once.
        finished: is told, in this thread, of requests that are done, those of a window together.
        telemetry: is told of each window.
    """

    def __init__(
        self,
        queue: WaitingQueue,
        run: Callable[[str, Sequence[TokenSequence]], Sequence[Result]],
        window: Callable[[], Window],
        finished: Callable[[Sequence[Request]], None],
        telemetry: Telemetry,
    ) -> None:
        self._queue, self._run, self._window = queue, run, window
        self._finished, self._telemetry = finished, telemetry
        self._running: list[Request] = []
        self._thread = threading.Thread(target=self._work, name="vllm_cls_engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """Finish the window that runs; requests that wait fail with `EngineDeadError`."""
        reason = "the engine is shutting down; this request was not finished."
        self._fail(self._queue.close(reason), reason)
        self._thread.join()

    def _work(self) -> None:
        try:
            while taken := self._queue.take(window := self._window()):
                self._running = list(dict.fromkeys([each.request for each in taken]))
                self._answer(taken, window)
                self._running = []
        except BaseException as failure:  # whatever ends this thread, nobody is left waiting for it
            _logger.critical("the engine died", exc_info=failure)
            reason = f"the engine died ({type(failure).__name__}); its log says why. Start it again."
            self._fail([*self._running, *self._queue.close(reason)], reason)

    def _fail(self, requests: Sequence[Request], reason: str) -> None:
        unfinished = [request for request in dict.fromkeys(requests) if not request.is_done]
        for request in unfinished:
            request.error = EngineDeadError(reason)
        if unfinished:
            self._finished(unfinished)

    def _answer(self, taken: Sequence[Taken], window: Window) -> None:
        began = time.perf_counter()
        tasks: dict[str, list[Taken]] = {}
        for each in taken:
            tasks.setdefault(each.request.task, []).append(each)
        for task, members in tasks.items():
            self._answer_task(task, members)
        ended = time.perf_counter()
        self._measure(taken, window, ended - began)
        done = [request for request in self._running if request.is_done]
        for request in done:
            request.ended_at = ended
        if done:
            self._finished(done)

    def _answer_task(self, task: str, taken: Sequence[Taken]) -> None:
        """One run for all; if it fails, one for each request, so that a bad one costs itself alone."""
        try:
            answers = self._run(task, [each.sequence for each in taken])
        except EngineDeadError:
            raise
        except Exception as error:  # whatever it is belongs to the caller that waits
            requests = list(dict.fromkeys(each.request for each in taken))
            if len(requests) > 1:
                for request in requests:
                    self._answer_task(task, [each for each in taken if each.request is request])
                return
            requests[0].error = error
            self._queue.discard(requests[0])
            return
        for each, answer in zip(taken, answers, strict=True):
            each.request.answers[each.place] = answer
            each.request.num_answered += 1

    def _measure(self, taken: Sequence[Taken], window: Window, seconds: float) -> None:
        tokens = saved = 0
        for each in taken:
            answer, length = each.request.answers[each.place], each.request.lengths[each.place]
            tokens += length
            if each.repeated:
                saved += length
            elif answer is not None and not isinstance(answer, PromptError):
                saved += answer.num_cached_tokens
        self._queue.measured(tokens, seconds)
        self._telemetry.batch(len(taken), tokens, window.num_tokens, saved)

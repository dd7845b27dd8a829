"""`Client` and `AsyncClient`: the functions of `calls.py` as methods, with retries."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx

from ..errors import ConfigError
from . import calls
from .calls import ClientRequest
from .connection import ClientConnection, result

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(call: Callable[P, ClientRequest[T]]) -> Callable[Concatenate[Client, P], T]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.send(call(*args, **kwargs))

    _describe(method, call)
    return method


def _awaited(call: Callable[P, ClientRequest[T]]) -> Callable[Concatenate[AsyncClient, P], Awaitable[T]]:
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.send(call(*args, **kwargs))

    _describe(method, call)
    return method


def _describe(method: Any, call: Callable[..., Any]) -> None:
    """Give a method the name, the words and the arguments of its call."""
    functools.update_wrapper(method, call)
    signature = inspect.signature(call)
    result = str(signature.return_annotation).removeprefix("ClientRequest[").removesuffix("]")
    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = signature.replace(parameters=[me, *signature.parameters.values()], return_annotation=result)


class Client(ClientConnection):
    """A client that waits for each answer; safe for several threads. Close it, or use it in a `with`.

    The arguments are those of `ClientConnection`.
    """

    _http: httpx.Client

    def _opened(self, **options: Any) -> httpx.Client:
        self._closed = threading.Event()
        return httpx.Client(**options)

    classify = _blocking(calls.classify)
    chat = _blocking(calls.chat)
    pool = _blocking(calls.pool)
    embed = _blocking(calls.embed)
    score = _blocking(calls.score)
    rerank = _blocking(calls.rerank)
    decide = _blocking(calls.decide)
    tokenize = _blocking(calls.tokenize)
    detokenize = _blocking(calls.detokenize)
    models = _blocking(calls.models)
    describe = _blocking(calls.describe)
    health = _blocking(calls.health)
    ready = _blocking(calls.ready)

    def send(self, call: ClientRequest[T]) -> T:
        """The result of a call, tried again while that makes sense."""
        attempts = self.attempts()
        while True:
            if self._closed.is_set():
                raise ConfigError("this Client is closed; make a new one.")
            try:
                response = self._http.request(**self.request(call, attempts))
            except httpx.HTTPError as error:
                pause = self.after_failure(error, attempts)
            else:
                found = self.after_answer(call, response, attempts)
                if found is None:
                    return result(call, response)
                pause = found
            self._closed.wait(pause)  # `close` ends the waiting

    def close(self) -> None:
        """End its connections, and the waiting of calls that other threads make."""
        self._closed.set()
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(ClientConnection):
    """`Client` for asyncio: the same methods, awaited. Close it with `aclose`, or use it in an `async with`."""

    _http: httpx.AsyncClient

    def _opened(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(**options)

    classify = _awaited(calls.classify)
    chat = _awaited(calls.chat)
    pool = _awaited(calls.pool)
    embed = _awaited(calls.embed)
    score = _awaited(calls.score)
    rerank = _awaited(calls.rerank)
    decide = _awaited(calls.decide)
    tokenize = _awaited(calls.tokenize)
    detokenize = _awaited(calls.detokenize)
    models = _awaited(calls.models)
    describe = _awaited(calls.describe)
    health = _awaited(calls.health)
    ready = _awaited(calls.ready)

    async def send(self, call: ClientRequest[T]) -> T:
        """The result of a call, tried again while that makes sense."""
        attempts = self.attempts()
        while True:
            if self._http.is_closed:
                raise ConfigError("this AsyncClient is closed; make a new one.")
            try:
                response = await self._http.request(**self.request(call, attempts))
            except httpx.HTTPError as error:
                pause = self.after_failure(error, attempts)
            else:
                found = self.after_answer(call, response, attempts)
                if found is None:
                    return result(call, response)
                pause = found
            await asyncio.sleep(pause)

    async def aclose(self) -> None:
        """End its connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

"""A small app behind our middlewares, and ways to ask it: what they do needs no model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI, Request

from vllm_cls.server.middleware.stack import add_middleware
from vllm_cls.server.observability.metrics import ServerMetrics
from vllm_cls.server.observability.tracing import Tracing
from vllm_cls.server.settings import ServerSettings

T = TypeVar("T")
JSON = {"Content-Type": "application/json"}


def app_with(settings: ServerSettings | None = None, tracing: Tracing | None = None) -> FastAPI:
    """An app that echoes the size of a body, sleeps, or fails; `app.state.cancelled` counts what was dropped."""
    app = FastAPI(redirect_slashes=False)
    app.state.cancelled = 0
    app.state.metrics = ServerMetrics()
    add_middleware(app, settings or ServerSettings(), app.state.metrics, tracing)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {}

    @app.post("/size")
    async def size(request: Request) -> dict[str, int]:
        return {"size": len(await request.body())}

    @app.post("/sleep")
    async def sleep() -> dict[str, int]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            app.state.cancelled += 1
            raise
        return {}

    @app.post("/nap")
    async def nap() -> dict[str, int]:
        await asyncio.sleep(0.2)
        return {"slept": 1}

    @app.post("/fail")
    async def fail() -> None:
        raise ValueError("the text of a prompt")

    @app.get("/items/{number}")
    async def items(number: int) -> dict[str, int]:
        return {"number": number}

    return app


def ask(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    """One request."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def run(function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """A coroutine's result, or an error if it takes too long."""
    return asyncio.run(asyncio.wait_for(function(), 20))


def message_of(answer: httpx.Response) -> str:
    """What an error says, in the one form that errors have."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == answer.status_code
    return str(error["message"])

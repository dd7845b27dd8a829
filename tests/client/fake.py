"""A server without a model: it answers with what it was told to, and keeps what it was asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx

from vllm_cls import AsyncClient, Client

Answer = httpx.Response | Exception | Callable[[dict[str, Any]], httpx.Response]


class FakeServer:
    """Gives its answers one after the other, the last one again and again."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer(self.bodies[-1]) if callable(answer) else answer

    @property
    def bodies(self) -> list[Any]:
        """What was sent to it."""
        return [json.loads(request.content) if request.content else None for request in self.requests]

    def client(self, **options: Any) -> Client:
        return Client("http://server", transport=httpx.MockTransport(self), **options)

    def async_client(self, **options: Any) -> AsyncClient:
        return AsyncClient("http://server", transport=httpx.MockTransport(self), **options)


def error(status: int, message: str, retry_after: str | None = None, **more: Any) -> httpx.Response:
    """An error as our servers write it."""
    detail = {"message": message, "type": "SomeError", "param": None, "code": status, **more}
    return httpx.Response(status, json={"error": detail}, headers={"Retry-After": retry_after} if retry_after else {})


def classified(*probs: list[float], **more: Any) -> httpx.Response:
    """An answer of /classify."""
    data = [
        {
            "index": i,
            "label": f"L{max(range(len(each)), key=each.__getitem__)}",
            "probs": each,
            "num_classes": len(each),
        }
        | more
        for i, each in enumerate(probs)
    ]
    usage = {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0, "prompt_tokens_details": None}
    body = {"id": "classify-1", "object": "list", "created": 1, "model": "m", "data": data, "usage": usage}
    return httpx.Response(200, json=body)

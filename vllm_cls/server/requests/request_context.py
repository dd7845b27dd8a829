"""The context of one request: its id, its LoRA adapter, the arguments of `AsyncLLM` besides the prompts; what all answers say."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from ...params import PoolingParams
from ..errors import RequestError
from ..protocol.common import CommonRequest, ResponseHeader, UsageInfo
from ..protocol.tokenize import TokenizeChat, TokenizePrompt
from ..served_model import ServedModel


def seconds_left(state: Mapping[str, Any]) -> float | None:
    """Seconds until the deadline of a request; None without one."""
    deadline: float | None = state.get("deadline")
    return None if deadline is None else max(0.0, deadline - time.monotonic())


@dataclass(frozen=True)
class RequestContext:
    """What is known of a request before it runs.

    Args:
        name: of the model in the answer.
        request_id: the client's, in the header X-Request-Id or in the body, or a random one.
        keywords: arguments of `AsyncLLM`'s methods, which `options` completes.
        state: of the request; `answered_at` is when the model had answered, on the clock `time.perf_counter`.
    """

    name: str
    request_id: str
    keywords: dict[str, Any]
    state: dict[str, Any]

    @classmethod
    def from_request(cls, model: ServedModel, request: Request, body: CommonRequest) -> RequestContext:
        """The context of a request.

        Raises:
            RequestError: the model that it names does not exist, or nothing would be left of a prompt.
        """
        asked = model.by_name[body.model]
        state = request.scope["state"]  # the header's id, or a new one
        if body.request_id is not None and "x-request-id" not in request.headers:
            state["request_id"] = body.request_id
        request_id = str(state["request_id"])
        # Prompts of different keys are kept apart, and of one key those of different salts (which have no @).
        key, salt = state.get("key"), body.cache_salt
        keywords = {
            "pooling_params": _pooling_params(body),
            "lora_request": asked.adapter,
            "tokenization_kwargs": _tokenization(body),
            "request_id": request_id,
            "cache_salt": salt if key is None else f"{key}@{salt or ''}",
            "max_tokens": model.settings.max_request_tokens,
        }
        return cls(asked.name, request_id, keywords, state)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `AsyncLLM`'s methods, with the time that is left now."""
        return {**self.keywords, "timeout": seconds_left(self.state)}

    def head(self, kind: str) -> ResponseHeader:
        """The first fields of the response, and the time from which it is written; `kind` is the prefix of the id."""
        self.answered()
        return ResponseHeader(id=f"{kind}-{self.request_id}", object="list", created=int(time.time()), model=self.name)

    def answered(self) -> None:
        """From now on the response is written."""
        self.state["answered_at"] = time.perf_counter()


def _pooling_params(body: CommonRequest) -> PoolingParams | None:
    """The options of the model's head; None where there are none."""
    if body.use_activation is None and body.head_name is None:
        return None
    return PoolingParams(use_activation=body.use_activation, head_name=body.head_name)


def asked_special_tokens(body: CommonRequest | TokenizePrompt | TokenizeChat) -> bool | None:
    """What a client says of special tokens; None, which is what the prompt's form says, where it says nothing."""
    return body.add_special_tokens if "add_special_tokens" in body.model_fields_set else None


def _tokenization(body: CommonRequest) -> dict[str, Any]:
    """`tokenization_kwargs` of `AsyncLLM`."""
    if body.truncate_prompt_tokens == 0:
        raise RequestError("The decoder prompt cannot be empty.", "truncate_prompt_tokens")
    given = {
        "truncate_prompt_tokens": body.truncate_prompt_tokens,
        "truncation_side": body.truncation_side,
        "add_special_tokens": asked_special_tokens(body),
    }
    return {name: value for name, value in given.items() if value is not None}


def usage(outputs: Any) -> UsageInfo:
    """The tokens of the prompts of some outputs."""
    tokens = sum([len(each.prompt_token_ids) for each in outputs])
    return UsageInfo(prompt_tokens=tokens, total_tokens=tokens, completion_tokens=0, prompt_tokens_details=None)

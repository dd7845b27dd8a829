"""One request on its way through the model: its id, its adapter, what `AsyncLLM` is told besides the prompts."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from ..params import LoRARequest
from .errors import RequestError
from .protocol.common import CommonRequest, Head
from .served_model import ServedModel

_ID = re.compile(r"[!-~]{1,256}")


@dataclass(frozen=True)
class Call:
    """What is known of a request before it runs.

    Args:
        name: of the model in the answer.
        request_id: the client's, or a random one.
        options: keyword arguments of `AsyncLLM`'s methods.
    """

    name: str
    request_id: str
    options: dict[str, Any]

    @classmethod
    def of(cls, model: ServedModel, request: Request, asked: CommonRequest) -> Call:
        """The call that a request means.

        Raises:
            RequestError: its model or its id is none.
        """
        adapter: LoRARequest | None = model.adapter(asked.model)
        request_id = request_id_of(request) or asked.request_id or uuid.uuid4().hex
        options = {
            "pooling_params": asked.pooling_params,
            "lora_request": adapter,
            "tokenization_kwargs": asked.tokenization,
            "request_id": request_id,
            "cache_salt": asked.cache_salt,
        }
        return cls(model.name_of(adapter), request_id, options)

    def head(self, kind: str) -> Head:
        """What the answer begins with; `kind` is in front of the id."""
        return Head(id=f"{kind}-{self.request_id}", object="list", created=int(time.time()), model=self.name)


def request_id_of(request: Request) -> str | None:
    """The header X-Request-Id, or None.

    Raises:
        RequestError: it is nothing that could be sent back.
    """
    given = request.headers.get("x-request-id")
    if given is not None and not _ID.fullmatch(given):
        raise RequestError("X-Request-Id takes 1 to 256 visible ASCII characters.", "x-request-id")
    return given

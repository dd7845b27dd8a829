"""Reads JSON requests and writes JSON responses; large ones in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import Response

from ...errors import nearest
from ..errors import RequestError, format_errors
from ..protocol.common import BaseRequest

T = TypeVar("T", bound=BaseRequest)

Choice = Callable[[dict[str, Any]], type[T]]
"""Tells the form of a JSON object from its fields."""

_REMOVED = ("softmax", "activation", "normalize")  # fields of vLLM's requests
_LARGE_BODY = 1 << 15  # bytes
_LARGE_ANSWER = 1 << 14  # numbers


async def read(request: Request, choose: Choice[T]) -> T:
    """The body of a request.

    Raises:
        RequestError: it is not JSON, or not a valid request.
    """
    body = await request.body()
    parsed = parse(body, choose) if len(body) < _LARGE_BODY else await asyncio.to_thread(parse, body, choose)
    request.scope["state"]["param_names"] = parsed.param_names
    return parsed


def parse(body: bytes, choose: Choice[T]) -> T:
    """The request that a body is; raises as `read` does."""
    try:  # NaN, infinities and lone surrogates are no JSON; depth is bounded
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"The body is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise RequestError("The body must be a JSON object.")
    try:
        return _validated(choose(value), value)
    except ValidationError as error:
        raise RequestError(*_describe_error(error)) from error


def _validated(form: type[T], given: dict[str, Any]) -> T:
    """A request of this form, all of whose fields are known."""
    known = form.model_fields
    for name in given:
        if name in _REMOVED:
            raise RequestError(f"{name} was removed; use use_activation (true or false).", name)
        if name not in known and name not in form.ignored_fields:
            raise RequestError(f"There is no field {name[:100]!r} here.{nearest(name, known)}", name[:100])
    return form.model_validate({name: value for name, value in given.items() if name in known})


def _describe_error(error: ValidationError) -> tuple[str, str]:
    """The message and the first wrong field; never its value, which may be long or secret."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    pairs = [(str(each["loc"][0]), each["msg"]) for each in found]
    return format_errors(pairs), pairs[0][0]


async def json_response(content: Any, numbers: int = 0) -> Response:
    """A JSON response, serialized by pydantic, which is much faster than `json` for floats.

    Args:
        numbers: about how many it holds.
    """
    if numbers < _LARGE_ANSWER:
        return Response(to_json(content), media_type="application/json")
    return Response(await asyncio.to_thread(to_json, content), media_type="application/json")

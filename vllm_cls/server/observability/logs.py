"""Logs of a server, as text or JSON lines, each with its request id; never with a classified text."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any, Literal

LogFormat = Literal["text", "json"]

logger = logging.getLogger("vllm_cls.server")
request_id: ContextVar[str | None] = ContextVar("vllm_cls_request_id", default=None)


def failure(error: BaseException) -> str:
    """The kinds of an error and of what caused it, and where each came from; without messages, which may quote a request."""
    lines, cause, seen = [], _cause(error), {id(error)}
    lines += _where(error)
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        lines += ["because of", *_where(cause)]
        cause = _cause(cause)
    return "\n".join(lines)


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _where(error: BaseException) -> list[str]:
    frames = getattr(error, "frames", None) or traceback.extract_tb(error.__traceback__)  # those that had to be let go
    return [type(error).__name__, *(f"  {each.filename}:{each.lineno} in {each.name}" for each in frames)]


class LineFormatter(logging.Formatter):
    """One record as one line; fields given as `extra={"fields": …}` follow the message."""

    def __init__(self, form: LogFormat) -> None:
        super().__init__()
        self.form = form

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {"request_id": request_id.get(), **getattr(record, "fields", {})}
        fields = {name: value for name, value in fields.items() if value is not None}
        moment = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        message = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            message += "\n" + failure(record.exc_info[1])
        if self.form == "json":
            line = {"time": moment, "level": record.levelname.lower(), "logger": record.name, "message": message}
            return json.dumps({**line, **fields})
        shown = " ".join(f"{name}={value}" for name, value in fields.items())
        return f"{moment} {record.levelname:<7} {message} {shown}".rstrip()


def configure(form: LogFormat = "text", level: str = "info") -> None:
    """Send what this process logs to stderr, a line each. For a process that is the server, not for one that mounts it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(form))
    logging.basicConfig(handlers=[handler], level="WARNING", force=True)
    logger.setLevel(level.upper())

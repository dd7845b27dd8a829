"""`run_batch`: a file of requests, in the form of OpenAI's batches, is answered by the server's own app."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any

import httpx

from ..async_llm import AsyncLLM
from ..errors import ConfigError, JobError
from ..jobs.columns import KnownColumns
from ..jobs.formats.files import find_sources, find_target
from ..jobs.options import OnProgress, RunOptions
from ..jobs.pipeline.answers import description_of
from ..jobs.pipeline.record import Contents
from ..jobs.pipeline.steps import run_rows
from ..jobs.report.job_report import JobReport
from ..jobs.results.result_columns import RowResults
from ..jobs.resume.fingerprints import of_model
from ..jobs.resume.parts import Answered
from ..jobs.rows import InputRow, json_type
from ..jobs.run import work_on
from ..llm import LLM
from .app import create_app
from .asgi import Answer, ask
from .settings import ServerSettings

IN_FLIGHT = 256
"""Requests at a time: what shares batches."""

PART = 1024
"""Requests that a job which ended early runs again at most."""

_METHODS = ("GET", "POST")


def run_batch(
    model: str | os.PathLike[str] | LLM,
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    settings: ServerSettings | None = None,
    format: str | None = None,
    overwrite: bool = False,
    restart: bool = False,
    on_error: str = "continue",
    max_errors: int | None = None,
    on_progress: OnProgress | None = None,
    **llm_options: Any,
) -> JobReport:
    """Answer files of requests, each a line `{"custom_id", "method", "url", "body"}`, as the server would.

    Each line of the output is `{"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}`, in the
    order of the requests. A line that is no request keeps its place, with `error` in place of `response`. A job that ended
    early goes on as those of `classify_file` do.

    Args:
        model: a folder, a hub id, a `.gguf` file, or an `LLM`, which stays open.
        inputs: paths, globs or "-", of JSON lines, or a JSON array of the same.
        output: a path of JSON lines; None is standard output.
        settings: of the server; without them, a request's time is not limited. The number of requests never is, nor are their
            bodies together.
        llm_options: options of `AsyncLLM`.

    All else, and what is raised, is as for `classify_file`.
    """
    how = RunOptions(format, overwrite, restart, on_error, max_errors, on_progress, rows_of_a_part=PART)
    settings = settings or ServerSettings(request_timeout=None)
    sources = find_sources(inputs, format)
    target = find_target(output, sources, format)
    if target.format != "jsonl" or any(each.format not in ("jsonl", "json") for each in sources):
        raise ConfigError("requests and answers are JSON lines: name files .jsonl, .jsonl.gz or .jsonl.zst.")
    noted = {"model": None if isinstance(model, LLM) else os.fspath(model), "settings": _told(settings), **llm_options}
    with work_on(target, sources, noted, how) as work, _opened(model, llm_options) as llm:
        if work is not None:
            work.agree(model=of_model(llm.llm))
        with _Requests(llm, settings) as requests:
            return run_rows(requests, Contents("requests"), KnownColumns.of(sources), target, work, how)


@contextmanager
def _opened(model: str | os.PathLike[str] | LLM, options: dict[str, Any]) -> Iterator[AsyncLLM]:
    unlimited: dict[str, Any] = {"max_queued_requests": sys.maxsize, "max_queued_tokens": sys.maxsize}
    with closing(AsyncLLM(model if isinstance(model, LLM) else os.fspath(model), **unlimited, **options)) as llm:
        yield llm


def _told(settings: ServerSettings) -> dict[str, Any]:
    """What answers depend on; keys are no part of it, and are not written down."""
    return {name: value for name, value in vars(settings).items() if name not in ("api_keys", "metrics_keys")}


class _Requests:
    """Answers requests by an app in this process.

    Its event loop runs while an answer is awaited: the requests behind that one get on meanwhile.
    """

    ahead = 0

    def __init__(self, llm: AsyncLLM, settings: ServerSettings) -> None:
        self._llm = llm
        # What waits is in memory already: a limit of all bodies would refuse some for being many.
        self._app = create_app(llm, dataclasses.replace(settings, max_buffered_bytes=sys.maxsize))
        host = settings.allowed_hosts[0] if settings.allowed_hosts else "localhost"
        self._headers = [(b"host", host.encode()), (b"content-type", b"application/json")]
        if settings.api_keys:
            self._headers.append((b"authorization", f"Bearer {settings.api_keys[0]}".encode()))
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> _Requests:
        self._lifespan = self._app.router.lifespan_context(self._app)
        self._loop.run_until_complete(self._lifespan.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._lifespan.__aexit__(None, None, None))
        self._loop.close()

    @property
    def counters(self) -> Any:
        """As of `PartWorker`."""
        return self._llm.llm.counters

    def description(self) -> str:
        """As of `PartWorker`."""
        return description_of(self._llm.llm)

    def compute(self, rows: Iterator[InputRow]) -> Generator[Answered, None, None]:
        """Requests with their answers, in their order."""
        waiting: deque[tuple[InputRow, asyncio.Task[RowResults]]] = deque()
        try:
            for row in rows:
                waiting.append((row, self._loop.create_task(self._answer(row))))
                if len(waiting) >= IN_FLIGHT:
                    yield from self._answered(waiting)
            while waiting:
                yield from self._answered(waiting)
        finally:
            for _, task in waiting:  # there are none, unless the job ends early
                task.cancel()
            for _, task in waiting:
                with suppress(asyncio.CancelledError):
                    self._loop.run_until_complete(task)

    def _answered(self, waiting: deque[tuple[InputRow, asyncio.Task[RowResults]]]) -> Iterator[Answered]:
        """The first one, once it is answered, and those behind it that are by then: each turn of the loop has its cost."""
        self._loop.run_until_complete(waiting[0][1])
        while waiting and waiting[0][1].done():
            row, task = waiting.popleft()
            yield Answered(row, task.result())

    async def _answer(self, row: InputRow) -> RowResults:
        place = f"{row.source}\n{row.number}".encode("utf-8", "surrogateescape")
        identity = f"batch_req_{hashlib.sha256(place).hexdigest()[:24]}"  # the same if it runs again
        line: dict[str, Any] = {
            "id": identity,
            "custom_id": row.fields.get("custom_id"),
            "response": None,
            "error": None,
        }
        wrong = row.error or _wrong(row.fields)
        if wrong is None:
            answer = await self._asked(row.fields, identity)
            try:
                told = json.loads(answer.body) if answer.body else None
            except ValueError:
                kind = answer.headers.get("content-type")
                wrong = f"the answer of {row.fields['url']} is no JSON but {kind}; ask for another encoding"
            else:
                request_id = answer.headers.get("x-request-id", identity)
                line["response"] = {"status_code": answer.status, "request_id": request_id, "body": told}
                failed = None if answer.status < 400 else f"{_message(told)} ({answer.status})"
                return RowResults(line, failed)
        line["error"] = {"code": "invalid_request", "message": wrong}
        return RowResults(line, wrong)

    async def _asked(self, fields: Mapping[str, Any], identity: str) -> Answer:
        """What the app answers to a request.

        Raises:
            JobError: it cannot answer any more.
        """
        method, url = fields.get("method", "POST"), _url(fields["url"])
        body = b"" if method == "GET" else json.dumps(fields.get("body", {})).encode()  # NaN too: the server refuses it
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": url.path,
            "raw_path": url.raw_path.partition(b"?")[0],
            "query_string": url.query,
            "root_path": "",
            "headers": [
                *self._headers,
                (b"x-request-id", identity.encode()),
                (b"content-length", str(len(body)).encode()),
            ],
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", 80),
        }
        answer = await ask(self._app, scope, body)
        if not self._llm.is_alive:
            raise JobError("the engine has died; its log says why.")
        return answer


_url = functools.lru_cache(httpx.URL)  # there are few


def _wrong(fields: dict[str, Any]) -> str | None:
    """Why a line is no request, or None."""
    if not isinstance(fields.get("custom_id"), str):
        return f"custom_id must be a text, and is {json_type(fields.get('custom_id'))}"
    if fields.get("method", "POST") not in _METHODS:
        return f"method must be POST or GET, and is {str(fields['method'])[:40]!r}"
    url = fields.get("url")
    if not isinstance(url, str) or not url.startswith("/") or url.startswith("//"):
        return f"url must be a route of the server, such as '/classify', and is {str(url)[:100]!r}"
    try:
        _url(url)
    except (httpx.InvalidURL, UnicodeEncodeError) as error:
        return f"url cannot be read: {error}"
    if not isinstance(fields.get("body", {}), dict):
        return f"body must be an object, and is {json_type(fields['body'])}"
    return None


def _message(body: Any) -> str:
    """What an error answer says."""
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message")) if isinstance(error, dict) else "the request failed"

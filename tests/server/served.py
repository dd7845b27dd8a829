"""A server on a port of its own, in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from vllm_cls import LLM
from vllm_cls.server import ServerSettings, create_app


@contextmanager
def served(what: Any, **settings: Any) -> Iterator[str]:
    """The address of a server of this model, or of an app."""
    app = create_app(what, ServerSettings(**settings)) if isinstance(what, LLM) else what
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)

"""A web server on loopback, which policies of these tests may connect to."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from vllm_cls.media.policy import MediaPolicy

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@dataclass
class Web:
    """What a web server on loopback gives, by path, and what it was asked."""

    port: int
    pages: dict[str, Answer | bytes | str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def policy(self, *names: str, **options: Any) -> MediaPolicy:
        """Allows these names, at this port; each is found on loopback."""
        options = {"resolve": lambda host, port, timeout: ["127.0.0.1"], "may_connect": lambda address: True, **options}
        return MediaPolicy(tuple(f"{each}:{self.port}" for each in names or ("images.test",)), **options)

    def url(self, path: str = "/a", host: str = "images.test") -> str:
        return f"http://{host}:{self.port}{path}"


@pytest.fixture
def web() -> Iterator[Web]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found.asked.append((self.headers["Host"], self.path))
            page = found.pages.get(self.path)
            if callable(page):
                page(self)
                return
            if isinstance(page, str):
                self.send_response(302)
                self.send_header("Location", page)
            else:
                self.send_response(404 if page is None else 200)
            body = page if isinstance(page, bytes) else b""
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        found = Web(server.server_port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield found
        server.shutdown()
        thread.join()

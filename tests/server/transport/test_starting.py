"""While a model loads the server answers, and says so; then the model's server takes over, and no client notices."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_cls.server.observability.metrics import ServerMetrics
from vllm_cls.server.settings import ServerSettings
from vllm_cls.server.transport.starting import loading_app

from ..bare import JSON, ask, message_of
from .test_lifecycle import in_background, post

SCRIPT = """
import sys
from pathlib import Path
from tests.server.bare import app_with
from vllm_cls.server.observability.metrics import ServerMetrics
from vllm_cls.server.settings import ServerSettings
from vllm_cls.server.transport import lifecycle, listening, starting

settings = ServerSettings()
listener = listening.listen_at(Path(sys.argv[1])) if sys.argv[1:] else listening.listen("127.0.0.1", 0)
meanwhile = starting.loading_app("critic", settings, ServerMetrics())
with starting.ended_by_sigterm(), listener:
    with starting.answering(meanwhile, settings, listener, None):
        print(sys.argv[1:] or listener.getsockname()[1], flush=True)
        sys.stdin.readline()  # it loads
        app = app_with(settings)
    sys.exit(lifecycle.run(app, settings, listener, lambda: True))
"""
Start = Callable[..., "tuple[subprocess.Popen[str], str]"]


def asked(app: Any, method: str, path: str, **options: Any) -> Any:
    answer = ask(app, method, path, **options)
    return answer.status_code, answer.headers.get("retry-after"), message_of(answer)


def test_every_route_says_what_is_loading(tmp_path: Path) -> None:
    settings = ServerSettings(allowed_hosts=("localhost",))
    assert settings.names_of(str(tmp_path)) == (tmp_path.name,)
    app = loading_app(settings.names_of(str(tmp_path))[0], settings, ServerMetrics())
    for method, path in [
        ("GET", "/health"), ("POST", "/ping"), ("GET", "/ready"), ("GET", "/metrics"), ("GET", "/no/such"), ("GET", "/"),
    ]:  # fmt: skip
        status, retry, message = asked(app, method, path)
        assert (status, retry) == (503, "5") and message.startswith(
            f"The model {tmp_path.name} has been loading for 0 s"
        )
        assert str(tmp_path) not in message
    assert ask(app, "HEAD", "/health").status_code == 503
    assert asked(app, "POST", "/classify", json={"input": "a"})[0] == 503


def test_the_guards_are_those_of_the_server_to_come() -> None:
    app = loading_app("m", ServerSettings(api_keys=("k",), allowed_hosts=("localhost",)), ServerMetrics())
    assert ask(app, "GET", "/ready").status_code == 503
    assert ask(app, "POST", "/classify", json={}).status_code == 401
    assert ask(app, "POST", "/classify", json={}, headers={"Authorization": "Bearer k"}).status_code == 503
    assert ask(app, "GET", "/ready", headers={"Host": "elsewhere.test"}).status_code == 400


@pytest.fixture
def start() -> Iterator[Start]:
    """A server whose model loads until a line is written to its process; the process, and what it prints."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-c", SCRIPT, *arguments]
        root = Path(__file__).parents[3]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
        started.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_the_server_of_the_model_takes_over(start: Start) -> None:
    """Clients that go on asking get 503 until they get 200, and never a broken connection, a slow one in between or not."""
    process, port = start()
    status, body = post(int(port), "/size")
    assert status == 503 and "critic" in json.loads(body)["error"]["message"]
    slow = socket.create_connection(("127.0.0.1", int(port)))
    slow.sendall(b"GET /health HTTP/1.1\r\nHost")

    def until_ready() -> list[int]:
        found = [503]
        while found[-1] == 503:
            found.append(post(int(port), "/size")[0])
        return found

    late = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
    late.connect()
    results: list[Any] = []
    threads = [in_background(until_ready, results) for _ in range(4)]
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    time.sleep(0.3)
    assert post(int(port), "/size", late)[0] == 503  # taken by the server that ends, and answered by it
    for thread in threads:
        thread.join(30)
    slow.close()
    late.close()
    assert [each[-1] for each in results] == [200] * 4, results
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_a_signal_while_the_model_loads(start: Start, tmp_path: Path) -> None:
    process, _ = start(str(tmp_path / "s"))
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(tmp_path / "s"))
    connection.request("GET", "/health", headers=JSON)
    assert connection.getresponse().status == 503
    connection.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert not os.path.lexists(tmp_path / "s")

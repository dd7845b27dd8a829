"""What a request carries is data: no template, no address to fetch, no line of a header or of a log."""

from __future__ import annotations

import http.server
import threading
from typing import Any

import pytest

from .conftest import LAST, Target, answers_in, status_of

TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_of_requests_are_off(server: Target, template: str) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "chat_template": template}
    for path in ("/classify", "/pooling", "/tokenize"):
        answer = server.ask(path, body)
        assert answer.status_code == 400
        assert "--trust-request-chat-template" in answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["image_url", "video_url", "audio_url", "input_image", "file"])
def test_nothing_is_fetched(server: Target, kind: str) -> None:
    """SSRF: an address in a message is refused, whatever it names, and nobody asks for it."""
    asked: list[str] = []

    class Secret(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Secret) as inside:
        threading.Thread(target=inside.serve_forever, daemon=True).start()
        for url in (f"http://127.0.0.1:{inside.server_port}/", "file:///etc/passwd", "http://169.254.169.254/latest"):
            part = {"type": kind, kind: {"url": url}}
            for body in (
                {"messages": [{"role": "user", "content": [part]}]},
                {"input": [part]},
                {"input": "x", "images": [url]},
            ):
                answer = server.ask("/classify", body)
                assert answer.status_code == 400
                assert "root:" not in answer.text
        inside.shutdown()
    assert asked == []


@pytest.mark.parametrize("identity", ["a\r\nSet-Cookie: x=1", "a\nb", "a\x00b", "a b", "é", "x" * 300, "\u2028"])
def test_an_id_in_the_body_splits_nothing(server: Target, identity: str) -> None:
    answer = server.ask("/classify", {"input": "x", "request_id": identity})
    assert answer.status_code == 400
    assert "set-cookie" not in answer.headers


def test_an_id_in_the_header_splits_nothing(server: Target) -> None:
    answer = server.ask("/classify", {"input": "x"}, {"X-Request-Id": "good-id.1"})
    assert answer.headers["X-Request-Id"] == "good-id.1"
    assert answer.json()["id"] == "classify-good-id.1"
    assert server.refused(server.post(b'{"input": "x"}', "X-Request-Id: a\rSet-Cookie: x=1\nevil: 1")) == 400
    answer, _ = answers_in(server.raw(server.post(b'{"input": "x"}', "X-Request-Id: \xe9\xff " + "b" * 2000) + LAST))
    assert status_of(answer) == 200
    assert b"\r\nx-request-id: " + b"b" * 256 + b"\r\n" in answer[0] + b"\r\n"


def test_logs_hold_one_line_a_request_and_no_texts(server: Target) -> None:
    server.ask("/classify", {"input": "a text that nobody may find"})
    server.ask("/classify", {"input": ["a text that nobody may find", 5]})
    server.ask("/nowhere%0aINFO%20forged", headers={"X-Request-Id": "id"})
    log = server.log.read_text()
    assert "nobody may find" not in log
    assert "\nINFO forged" not in log


def test_answers_do_not_say_what_runs_here(server: Target) -> None:
    answer = server.ask("/nowhere")
    assert answer.status_code == 404
    assert "server" not in answer.headers
    assert "location" not in server.ask("/classify/").headers

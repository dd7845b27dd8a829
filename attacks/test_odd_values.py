"""Values that no client of good will sends: an error that says which, or an answer; never a fault, never much memory."""

from __future__ import annotations

import json

import pytest

from .conftest import Target

BODIES = [
    b'{"input": NaN}', b'{"input": Infinity}', b'{"input": [NaN]}', b'{"input": "x", "priority": 1e999}',
    b'{"input": null}', b'{"input": {}}', b'{"input": [[]]}', b'{"input": []}', b'{"input": ""}', b'{"input": [""]}',
    b'{"input": [1, "a"]}', b'{"input": [[1], "a"]}', b'{"input": [[[1]]]}', b'{"input": true}', b'{"input": 1.5}',
    b'{"input": [-1]}', b'{"input": [99999999]}', b'{"input": [' + b"9" * 5000 + b"]}", b'{"input": [18446744073709551616]}',
    b'{"input": "x", "priority": ' + b"9" * 30000 + b"}", b'{"input": "x", "truncate_prompt_tokens": -2}',
    b'{"input": "x", "truncate_prompt_tokens": 9223372036854775808}', b'{"input": "x", "top_k": -1}',
    b'{"input": "x", "model": 7}', b'{"input": "x", "model": "../../etc"}',
    b'{"input": "\\ud800"}', b'{"input": "\xed\xa0\x80"}', b'{"input": "\xff"}', '{"input": "x"}'.encode("utf-16"),
    b'{"input": "x", "__class__": "os.system"}', b'{"input": "x"', b"", b"null", b"[]", b'"x"', b"\x00" * 100,
    b'{"input": ["x"' + b', "x"' * 200 + b"]}", b'{"messages": [{"role": "user", "content": {"a": 1}}]}',
    b'{"input": "x", "cache_salt": "' + b"a" * 2000 + b'"}',
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda body: str(body[:40]))
def test_is_a_bad_request(server: Target, body: bytes) -> None:
    answer = server.ask("/classify", body)
    assert answer.status_code in (400, 404)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(answer.content) < 2000
    for secret in ("Traceback", ".py", "site-packages", "/tmp", "0x", "127.0.0.1"):
        assert secret not in error["message"]


@pytest.mark.parametrize("body", [b'{"input": "\\u0000\\u202e\\ufeff"}', '{"input": "👩‍👩‍👧‍👦"}'.encode()])
def test_odd_texts_are_texts(server: Target, body: bytes) -> None:
    assert server.ask("/classify", body).status_code in (200, 400)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/detokenize", {"tokens": [-1]}), ("/detokenize", {"tokens": [1 << 70]}), ("/detokenize", {"tokens": "x"}),
        ("/tokenize", {"prompt": 5}), ("/pooling", {"input": "x", "task": "nothing"}),
        ("/pooling", {"input": "x", "dimensions": 10**12}), ("/pooling", {"input": "x", "embed_dtype": "pickle"}),
        ("/pooling", {"data": "gASVBQAAAAAAAAB9lC4=", "task": "plugin"}), ("/invocations", {"nothing": 1}),
    ],
)  # fmt: skip
def test_of_other_routes(server: Target, path: str, body: object) -> None:
    assert server.ask(path, body).status_code == 400


def test_counts_that_would_allocate(server: Target) -> None:
    """A few bytes must not ask for many tokens: numbers are bounded, and so is what a request's prompts hold together."""
    assert server.ask("/classify", {"input": ["x"] * 51}).status_code == 400
    assert server.ask("/classify", {"input": [[5] * 300] * 40}).status_code == 400
    assert len(server.ask("/classify", {"input": "x", "top_k": 10**20}).json()["data"][0]["top_k"]) == 3
    before = server.resident()
    for _ in range(20):
        body = {"input": ["word " * 400] * 30, "truncate_prompt_tokens": -1}
        assert server.ask("/classify", json.dumps(body).encode()).status_code in (200, 400, 413)
    assert server.resident() < before + (200 << 20)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/x-pickle", ""])
def test_what_is_not_said_to_be_json(server: Target, kind: str) -> None:
    """A web page can send these to any server without asking it."""
    assert server.ask("/classify", b'{"input": "x"}', {"Content-Type": kind}).status_code == 415

"""Fields that all routes have, and what becomes of bad ones: the table of errors."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from vllm_cls import LLM

from .conftest import client_of

LONG = "good " * 300


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "input", "Field required"),
        ({"input": []}, "input", "You must pass at least one prompt"),
        ({"input": ""}, "input", "The decoder prompt cannot be empty"),
        ({"input": [""]}, "input", "The decoder prompt cannot be empty"),
        ({"input": [[]]}, "input", "The decoder prompt cannot be empty"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "The decoder prompt cannot be empty"),
        ({"input": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "greater than or equal to -1"),
        ({"input": "a", "truncate_prompt_tokens": 257}, "truncate_prompt_tokens", "between 1 and 256"),
        ({"input": "a", "truncate_prompt_tokens": "9"}, "truncate_prompt_tokens", "valid integer"),
        ({"input": "a", "truncation_side": "middle"}, "truncation_side", "'left' or 'right'"),
        ({"input": "a", "padding": "longest"}, "padding", "'max_length' or 'do_not_pad'"),
        ({"input": LONG}, "input_tokens", "This model's maximum context length is 256 tokens. However, your prompt"),
        ({"input": ["a", LONG]}, "input_tokens", "prompt 1: This model's maximum context length is 256 tokens"),
        ({"input": [2, 99999999]}, "input", "Token id 99999999 is out of vocabulary"),
        ({"input": [-1]}, "input", "Token id -1 is out of vocabulary"),
        ({"input": [2, "a"]}, "input", "token ids are whole numbers"),
        ({"input": [True]}, "input", "token ids are whole numbers"),
        ({"input": ["a", 2]}, "input", "input must be"),
        ({"input": {"text": "a", "pair": "b"}}, "input", "input must be"),
        ({"input": {"text": "a", "text_pair": 3}}, "input", "input must be"),
        ({"input": None}, "input", "input must be"),
        ({"input": 3}, "input", "input must be"),
        ({"input": ["a"] * 65}, "input", "65 are more than the 64"),
        ({"input": "a", "softmax": True}, "softmax", "use use_activation"),
        ({"input": "a", "activation": None}, "activation", "use use_activation"),
        ({"input": "a", "normalize": False}, "normalize", "use use_activation"),
        ({"imput": "a"}, "imput", "Did you mean 'input'?"),
        ({"input": "a", "messages": []}, "input", "no field 'input'"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": [{"content": "a"}]}, "messages", '"role"'),
        ({"messages": [{"role": "user", "content": 3}]}, "messages", "must be a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}]},
         "messages", "'image_url'"),
        ({"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": True, "continue_final_message": True},
         "continue_final_message", "Cannot set both"),
        ({"messages": [{"role": "user", "content": "a"}], "chat_template": "x"}, "chat_template", "--trust-request"),
        ({"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs",
         "--trust-request"),
        ({"input": "a", "model": "other"}, "model", "The model 'other' does not exist"),
        ({"input": "a", "model": 3}, "model", "valid string"),
        ({"input": "a", "use_activation": "yes"}, "use_activation", "valid boolean"),
        ({"input": "a", "priority": 1 << 63}, "priority", "less than"),
        ({"input": "a", "priority": 1.5}, "priority", "valid integer"),
        ({"input": "a", "request_id": "a\r\nb"}, "request_id", "match"),
        ({"input": "a", "request_id": "a" * 129}, "request_id", "128"),
        ({"input": "a", "cache_salt": ""}, "cache_salt", "at least 1"),
        ({"input": "a", "cache_salt": "a@b"}, "cache_salt", "match"),
        ({"input": "a", "mm_processor_kwargs": {"size": 1}}, "mm_processor_kwargs", "at most 0"),
        ({"input": "a", "top_k": 0}, "top_k", "greater than or equal to 1"),
        ({"input": "a", "task": "embed"}, "task", "'classify'"),
    ],
)  # fmt: skip
def test_bad_values(client: TestClient, body: dict[str, Any], param: str | None, message: str) -> None:
    answer = client.post("/classify", json=body)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.status_code == error["code"] == (404 if param == "model" and "exist" in message else 400)
    assert error["param"] == param and message in error["message"], error


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"3", b"null", b'"a"', b'{"input": NaN}', b'{"input": "a", "priority": Infinity}',
        b'{"input": "\\ud800"}', b'{"input": "a", "user": "\\udfff"}', b'{"input": "\xff"}',
        b'{"input": "a", "priority": ' + b"9" * 5000 + b"}", b'{"input": [' + b"9" * 400 + b"]}",
        b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"input": "a", "metadata": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"input": "a"} {}', b"\xef\xbb\xbf{}", b"\x1f\x8b\x08\x00",
    ],
)  # fmt: skip
def test_what_is_no_request(client: TestClient, body: bytes) -> None:
    answer = client.post("/classify", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert len(answer.text) < 1000
    assert client.post("/classify", json={"input": "good"}).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "me", "priority": -3, "padding": "do_not_pad", "mm_processor_kwargs": None, "cache_salt": "s"},
        {"user": None, "priority": 3.0, "padding": "max_length", "mm_processor_kwargs": {}, "truncation_side": None},
        {"temperature": 0, "max_tokens": 5, "stop": ["a"], "encoding_format": "float", "dimensions": 3, "n": 1},
        {"model": None}, {"model": ""}, {"model": "film-critic"},
    ],
)  # fmt: skip
def test_fields_that_change_nothing(client: TestClient, fields: dict[str, Any]) -> None:
    answer = client.post("/classify", json={"input": "good", **fields})
    assert answer.status_code == 200, answer.text
    plain = client.post("/classify", json={"input": "good"}).json()
    assert answer.json()["data"] == plain["data"]


def test_the_request_id_comes_back(client: TestClient) -> None:
    def id_of(header: str | None = None, **body: Any) -> str:
        headers = {"X-Request-Id": header} if header else {}
        return str(client.post("/classify", json={"input": "a", **body}, headers=headers).json()["id"])

    assert id_of(request_id="mine") == "classify-mine"
    assert id_of("theirs", request_id="mine") == "classify-theirs"
    assert id_of() != id_of()
    answer = client.post("/classify", json={"input": "a", "request_id": "mine"})
    assert answer.headers["X-Request-Id"] == "mine"


def test_paths_and_methods(client: TestClient) -> None:
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/classify", 405), ("POST", "/classify/", 404)):
        answer = client.request(method, path)
        assert answer.status_code == status and answer.json()["error"]["code"] == status
    allowed = {
        "/classify": "POST",
        "/health": "GET, HEAD",
        "/ping": "GET, HEAD, POST",
        "/ready": "GET, HEAD",
        "/": "GET, HEAD",
    }
    for path, methods in allowed.items():
        assert client.delete(path).headers["Allow"] == methods


def test_large_bodies_and_answers_come_whole(client: TestClient, llm: LLM) -> None:
    texts = [f"good {number} " * 80 for number in range(64)]
    answer = client.post("/classify", json={"input": texts, "truncate_prompt_tokens": 8})
    expected = llm.classify(texts, tokenization_kwargs={"truncate_prompt_tokens": 8})
    for row, output in zip(answer.json()["data"], expected, strict=True):
        assert row["probs"] == pytest.approx(output.outputs.probs, abs=1e-6)


def test_a_text_that_no_truncation_would_leave_much_of(client: TestClient) -> None:
    for given in ("a " * 40_000, ["good", "b" * 70_000], {"text": "good", "text_pair": "a " * 40_000}):
        answer = client.post("/classify", json={"input": given, "truncate_prompt_tokens": -1})
        assert answer.status_code == 400 and "texts of up to 65536 characters" in answer.json()["error"]["message"]
    answer = client.post("/classify", json={"input": "a " * 30_000, "truncate_prompt_tokens": -1})
    assert answer.status_code == 200


def test_tokens_of_texts_are_counted_exactly(llm: LLM) -> None:
    with client_of(llm, max_request_tokens=20) as client:
        for given, status in (
            ("good " * 17, 200),
            ("good " * 19, 400),
            (["good " * 8] * 2, 200),
            (["good " * 9] * 2, 400),
        ):
            answer = client.post("/classify", json={"input": given})
            assert answer.status_code == status, answer.text
        assert "22 tokens are more than the 20" in answer.json()["error"]["message"]


def test_too_many_tokens(llm: LLM) -> None:
    with client_of(llm, max_request_tokens=10) as client:
        for given in ([5] * 11, [[5] * 6] * 2, "a" * 200, ["a" * 100, {"text": "a" * 50, "text_pair": "b" * 50}]):
            answer = client.post("/classify", json={"input": given})
            assert answer.status_code == 400 and "10 tokens" in answer.json()["error"]["message"]
        assert client.post("/classify", json={"input": "good"}).status_code == 200

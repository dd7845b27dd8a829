"""Chat templates of clients: only where they are trusted, and even there in a process of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from vllm_cls import LLM

from .conftest import client_of

MESSAGES = [{"role": "user", "content": "good"}]


@pytest.fixture(scope="module")
def trusting(chatty: LLM) -> Iterator[TestClient]:
    with client_of(chatty, trust_request_chat_template=True) as client:
        yield client


def tokens_of(client: TestClient, text: str) -> list[int]:
    return list(client.post("/tokenize", json={"prompt": text}).json()["tokens"])


@pytest.mark.parametrize(
    ("body", "rendered"),
    [
        ({"chat_template": "{{ messages[0].content }}!"}, "good!"),
        ({"chat_template": "{{ mood }} {{ messages[0].role }}", "chat_template_kwargs": {"mood": "so"}}, "so user"),
        ({"chat_template": "{% if add_generation_prompt %}x{% else %}y{% endif %}"}, "y"),
        ({"chat_template": "{% if add_generation_prompt %}x{% endif %}", "add_generation_prompt": True}, "x"),
        ({"chat_template_kwargs": {"unused": 1}}, "<user>good\n"),
        ({"chat_template": "{{ '{{ 1 }}' }}"}, "{{ 1 }}"),
    ],
)
def test_a_template_of_the_client(trusting: TestClient, body: dict[str, Any], rendered: str) -> None:
    answer = trusting.post("/classify", json={"messages": MESSAGES, **body})
    assert answer.status_code == 200, answer.text
    expected = trusting.post("/classify", json={"input": tokens_of(trusting, rendered)}).json()
    assert answer.json()["data"][0]["probs"] == pytest.approx(expected["data"][0]["probs"], abs=1e-6)
    tokenized = trusting.post("/tokenize", json={"messages": MESSAGES, "add_generation_prompt": False, **body}).json()
    assert tokenized["tokens"] == tokens_of(trusting, rendered)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes longer than"),
        ("{{ 'a' * 99999999999 }}", "memory"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "SecurityError"),
        ("{% for", "TemplateSyntaxError"),
        ("{{ raise_exception('no') }}", "no"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% include '/etc/passwd' %}", "fails"),
        ("", "cannot be empty"),
    ],
)
def test_what_a_template_may_not(trusting: TestClient, template: str, message: str) -> None:
    answer = trusting.post("/classify", json={"messages": MESSAGES, "chat_template": template})
    assert answer.status_code == 400 and message in answer.json()["error"]["message"], answer.text
    assert trusting.post("/classify", json={"messages": MESSAGES, "chat_template": "ok"}).status_code == 200

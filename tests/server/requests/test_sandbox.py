"""Chat templates of clients: only where they are trusted, and even there in a process of their own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from vllm_cls import LLM
from vllm_cls.errors import QueueFullError
from vllm_cls.server.errors import RequestError
from vllm_cls.server.requests import sandbox, template_worker

from ..conftest import client_of

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


SLOW = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


async def rendered(template: str, client: str = "a") -> str:
    return await sandbox.render(template, MESSAGES, {}, client)


def test_a_short_template_does_not_wait_for_slow_ones() -> None:
    """Those of the same client, which were all there before it."""
    done: list[str] = []

    async def one(template: str) -> None:
        try:
            done.append(await rendered(template))
        except RequestError as error:
            done.append(str(error))

    async def scenario() -> None:
        slow = [asyncio.ensure_future(one(SLOW)) for _ in range(8)]
        await asyncio.sleep(0)
        await one("short")
        for each in slow:
            each.cancel()
        await asyncio.gather(*slow, return_exceptions=True)

    asyncio.run(scenario())
    assert done[-1] == "short" and len(done) < 8


def test_a_client_has_so_many_templates_waiting() -> None:
    async def scenario() -> None:
        slow = [asyncio.ensure_future(rendered(SLOW)) for _ in range(sandbox.MOST + 10)]
        await asyncio.sleep(0)
        assert await rendered("short", "b") == "short"
        for each in slow:
            each.cancel()
        failed = await asyncio.gather(*slow, return_exceptions=True)
        assert {type(each) for each in failed} == {asyncio.CancelledError, QueueFullError}
        assert await rendered("short") == "short"  # what nobody waits for is not rendered

    asyncio.run(scenario())


def test_clients_take_turns() -> None:
    lane = sandbox._Lane()
    for client, number in (("a", 1), ("a", 2), ("a", 3), ("b", 1), ("c", 1), ("b", 2)):
        lane.put(sandbox._Job(client, {"number": number}))
    order = []
    while job := lane.take():
        order.append((job.client, job.work["number"]))
    assert order == [("a", 1), ("b", 1), ("c", 1), ("a", 2), ("b", 2), ("a", 3)]


@pytest.mark.parametrize("death", [lambda: os._exit(0), lambda: os.kill(os.getpid(), signal.SIGSEGV)])
def test_a_template_that_ends_its_process_ends_nothing_else(death: Callable[[], None]) -> None:
    def render(**job: Any) -> Any:
        return death() if job else (("good",), None)

    assert b"ended the process" in template_worker.by_a_child(render, {"a": 1}, 5)
    assert template_worker.by_a_child(render, {}, 5) == b'{"text": "good"}\n'


def test_a_renderer_that_is_gone_is_replaced() -> None:
    renderer = sandbox._Renderer()
    work = {"chat_template": "a", "conversations": [MESSAGES]}
    assert renderer.run(work, 5) == {"text": "a"}
    assert renderer._process is not None
    renderer._process.kill()
    assert "ended the process" in renderer.run(work, 5)["error"]
    assert renderer.run(work, 5) == {"text": "a"}
    renderer.close()


def test_a_tokenizer_without_a_template(llm: LLM) -> None:
    tokenizer: Any = llm.get_tokenizer()
    assert tokenizer.chat_template is None
    template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    ids = tokenizer.apply_chat_template(MESSAGES, chat_template=template, return_dict=False)
    with client_of(llm, trust_request_chat_template=True) as client:
        expected = client.post("/classify", json={"input": ids}).json()["data"]
        for path in ("/classify", "/pooling", "/invocations"):
            answer = client.post(path, json={"messages": MESSAGES, "chat_template": template})
            assert answer.status_code == 200, answer.text
            (row,) = answer.json()["data"]
            assert row.get("probs", row.get("data")) == pytest.approx(expected[0]["probs"], abs=1e-6)
            assert answer.json()["usage"]["prompt_tokens"] == len(
                ids
            )  # a template writes the special tokens that it wants
        tokens = client.post("/tokenize", json={"messages": MESSAGES, "chat_template": template}).json()["tokens"]
        without = client.post("/classify", json={"messages": MESSAGES, "chat_template_kwargs": {"a": 1}})
    assert tokens == ids
    assert without.status_code == 400 and without.json()["error"]["param"] == "chat_template"
    prompt = {"messages": MESSAGES, "chat_template_kwargs": {"chat_template": template}}
    assert llm.classify(prompt)[0].prompt_token_ids == ids


def test_a_model_without_a_tokenizer(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "get_tokenizer", lambda: None)
    with client_of(llm, trust_request_chat_template=True) as client:
        answer = client.post("/classify", json={"messages": MESSAGES, "chat_template": "a"})
    assert answer.status_code == 400 and "no tokenizer" in answer.json()["error"]["message"]

"""Several keys: the holder of one learns nothing of the texts of another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from vllm_cls import LLM, AsyncLLM
from vllm_cls.server import ServerSettings, create_app
from vllm_cls.server.observability.metrics import ServerMetrics

from ..test_busy import busy

KEYS, SCRAPER = ("a-key", "b-key"), "scraper"
P, Q = list(range(10, 107)), list(range(300, 397))  # two beginnings of 97 tokens

Ask = Any


@contextmanager
def asking(chatty: LLM) -> Iterator[Ask]:
    """Asks a server of two keys, whose model has kept nothing yet."""
    chatty.reset_prefix_cache()
    engine = AsyncLLM(chatty, telemetry=ServerMetrics())
    app = create_app(engine, ServerSettings(api_keys=KEYS, metrics_keys=(SCRAPER,)))
    with TestClient(app) as client:

        def ask(key: str, given: Any = None, path: str = "/classify", **body: Any) -> Any:
            headers = {"Authorization": f"Bearer {key}"}
            if given is None:
                return client.get(path, headers=headers)
            answer = client.post(path, json={"input": given, **body}, headers=headers)
            assert answer.status_code == 200, answer.text
            return answer.json()

        yield ask
    engine.close()


@pytest.fixture
def ask(chatty: LLM) -> Iterator[Ask]:
    with asking(chatty) as ask:
        yield ask


def lines(ask: Ask, key: str) -> dict[str, float]:
    """What /metrics tells the holder of a key, but times."""
    answer = ask(key, path="/metrics")
    assert answer.status_code == 200
    pairs = [line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in pairs if not re.search(r"seconds|process_|_created", name)}


def saved(ask: Ask) -> float:
    return lines(ask, SCRAPER)["vcls_prefix_tokens_saved_total"]


def test_a_beginning_that_another_key_has_sent(ask: Ask) -> None:
    ask(KEYS[0], [[*P, 200], [*P, 201, 202], [*P, 203]])
    by_a = saved(ask)
    assert by_a >= 2 * len(P)  # the beginning is kept
    before = lines(ask, KEYS[1])
    answer = ask(KEYS[1], [*P, 204])
    after = lines(ask, KEYS[1])
    assert saved(ask) == by_a
    assert answer["usage"]["prompt_tokens_details"] is None
    assert {name for name in after if after[name] != before.get(name)} <= {
        "vcls_prompts_total", 'vcls_http_requests_total{method="POST",route="/classify",status="200"}',
        'vcls_http_requests_total{method="GET",route="/metrics",status="200"}',
    }  # fmt: skip
    ask(KEYS[1], [*P, 205])  # by which it is seen to be a beginning in common, of one key
    ask(KEYS[1], [*P, 206])
    assert saved(ask) == by_a + len(P)
    ask(KEYS[0], [*P, 207])
    assert saved(ask) == by_a + 2 * len(P)


def test_what_a_key_reads_does_not_depend_on_the_texts_of_another(chatty: LLM) -> None:
    """The same numbers, whatever another key has asked before: how long it is, what it begins with, what it is found to be."""
    found = []
    for texts in ([[*P, 200], [*P, 201], [*P, 200]], [[*Q, 200], [*Q, 201] * 3, [5]]):
        with asking(chatty) as ask:
            ask(KEYS[0], texts)
            ask(KEYS[1], [*P, 204])
            found.append((lines(ask, KEYS[1]), ask(KEYS[1], path="/load").json()))
    assert found[0] == found[1]
    assert not [name for name in found[0][0] if re.search("token|predict|saved|batch|trunc", name)]


@pytest.mark.parametrize(("keys", "shared"), [(KEYS, 0), (KEYS[1:] * 2, len(P) + 1)])
def test_the_same_prompt_at_the_same_time(ask: Ask, chatty: LLM, keys: tuple[str, str], shared: int) -> None:
    """It runs once for each key; for one key, once."""
    with ThreadPoolExecutor(3) as pool:
        with busy(chatty):
            asked = []
            for number, key in enumerate((KEYS[0], *keys), 1):  # the first holds the device, the others wait together
                asked.append(pool.submit(ask, key, [*P, 200]))
                while ask(SCRAPER, path="/load").json() != {"server_load": number}:
                    assert not asked[-1].done(), asked[-1].exception()
        for each in asked:
            each.result(20)
    assert saved(ask) == shared


def test_salts_within_a_key(ask: Ask) -> None:
    for salt in (None, "a-key", "x"):
        before = saved(ask)
        for number in range(3):  # the second tells that there is a beginning in common
            ask(KEYS[0], [*P, 204 + number], **({"cache_salt": salt} if salt else {}))
            assert saved(ask) - before == (len(P) if number == 2 else 0)


def test_a_key_for_metrics_opens_these_alone(ask: Ask) -> None:
    assert [ask(SCRAPER, path=path).status_code for path in ("/metrics", "/load")] == [200, 200]
    for path in ("/v1/models", "/model", "/openapi.json", "/metrics/", "/nowhere"):
        assert ask(SCRAPER, path=path).status_code == 401
    assert {"vcls_prompt_tokens_total", "vcls_prefix_tokens_saved_total"} <= set(lines(ask, SCRAPER))


@pytest.mark.parametrize("keys", [(), ("one",)])
def test_where_there_is_one_key_or_none_its_holder_sees_all(chatty: LLM, keys: tuple[str, ...]) -> None:
    with TestClient(create_app(chatty, ServerSettings(api_keys=keys))) as client:
        answer = client.get("/metrics", headers={"Authorization": "Bearer one"})
    assert "vcls_prefix_tokens_saved_total" in answer.text and "vcls_queue_tokens" in answer.text

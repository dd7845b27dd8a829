"""The OpenAPI description is true: schemathesis asks what it says one may ask, and what it says one may not."""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis.engine import events, from_schema

from vllm_cls import LLM
from vllm_cls.result_fields import RESULT_FIELDS
from vllm_cls.server import ServerSettings, create_app

PAIRS = (("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items"))


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """What JSON schema cannot say: two lists are equally long, or the first has one; a text has tokens, and not too many."""
    if not isinstance(case.body, dict) or case.meta.generation.mode != schemathesis.GenerationMode.POSITIVE:
        return
    body = dict(case.body)
    for first, second in PAIRS:
        left, right = body.get(first), body.get(second)
        if isinstance(left, list) and len(left) > 1 and not (isinstance(right, list) and len(right) == len(left)):
            body[first] = left[:1]
    if body.get("add_special_tokens") is False:
        body["add_special_tokens"] = True
    if case.operation.path not in ("/tokenize", "/detokenize"):
        body["truncate_prompt_tokens"] = -1
    case.body = body


def deviations(schema: Any, max_examples: int) -> tuple[int, list[str]]:
    """How many requests schemathesis sent, in all its phases with all its checks, and what it found."""
    schema.config.generation.update(max_examples=max_examples, deterministic=True, database="none")
    requests, found = 0, []
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            requests += len(event.recorder.interactions)
            for number, checks in event.recorder.checks.items():
                for check in checks:
                    if check.failure_info is not None:
                        case = event.recorder.cases[number].value
                        sent = {k: v for k, v in case.body.items() if v} if isinstance(case.body, dict) else case.body
                        answer = event.recorder.interactions[number].response
                        told = answer.content[:300] if answer is not None else None
                        found.append(f"{event.label} {check.name}: {check.failure_info.failure} {sent} {told}"[:1500])
        elif isinstance(event, events.NonFatalError | events.FatalError):
            found.append(str(getattr(event, "value", None) or getattr(event, "exception", event)))
    return requests, found


def described(llm: LLM) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(llm, ServerSettings(max_inputs=16)))


def test_nothing_deviates(ranker: LLM) -> None:
    requests, found = deviations(described(ranker), max_examples=8)
    assert requests > 200
    assert not found, "\n\n".join(found[:5])


def test_conversations(chatty: LLM) -> None:
    requests, found = deviations(described(chatty).include(path=["/classify", "/tokenize"]), max_examples=5)
    assert requests > 50
    assert not found, "\n\n".join(found[:5])


def test_keys_are_described(ranker: LLM) -> None:
    app = create_app(ranker, ServerSettings(max_inputs=16, api_keys=("key",)))
    headers = {"Authorization": "Bearer key"}
    schema: Any = schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)
    schema.config.update(headers=headers)
    requests, found = deviations(schema.include(path=["/classify", "/v1/models", "/health"]), max_examples=3)
    assert requests > 20
    assert not found, "\n\n".join(found[:5])


def test_fields_of_results_are_described(ranker: LLM) -> None:
    schemas = create_app(ranker, ServerSettings(max_inputs=16)).openapi()["components"]["schemas"]
    meanings = {each.name: each.meaning for each in RESULT_FIELDS}
    for name in ("ClassificationData", "HeadAnswer", "PoolingData", "ScoreResponseData", "RerankResult"):
        found = schemas[name]["properties"]
        assert {field: each.get("description") for field, each in found.items()} == {
            each: meanings[each] for each in found
        }

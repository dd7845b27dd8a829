"""The OpenAPI description is true: schemathesis asks what it says one may ask, and what it says one may not."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from vllm_cls import LLM
from vllm_cls.server import ServerSettings, create_app


def described(llm: LLM) -> Any:
    """What schemathesis reads of an app; requests of 16 prompts at most keep it quick."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(llm, ServerSettings(max_inputs=16)))
    schema.config.generation.update(modes=list(schemathesis.GenerationMode))
    return schema


@pytest.fixture(scope="module")
def of_a_scorer(ranker: LLM) -> Any:
    return described(ranker)


api = schemathesis.pytest.from_fixture("of_a_scorer")


PAIRS = (("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items"))


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """JSON schema cannot say that two lists are equally long: a list of several meets one of as many, or is cut to one."""
    for first, second in PAIRS if isinstance(body, dict) else ():
        left, right = body.get(first), body.get(second)
        if isinstance(left, list) and len(left) > 1 and not (isinstance(right, list) and len(right) == len(left)):
            body = {**body, first: left[:1]}
    return body


@api.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_nothing_deviates(case: Any) -> None:
    case.call_and_validate()

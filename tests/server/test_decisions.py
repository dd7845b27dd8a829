"""/v1/systemone and /v1/decisions, asked by OpenAI's client, by ours and by hand."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.decide.chat_models import QUESTIONS, assert_same, chat_model
from tests.media.samples import encoded
from tests.models import vision
from vllm_cls import LLM, AsyncClient, Client
from vllm_cls.client import RejectedError
from vllm_cls.server import ServerSettings, create_app

from .served import served

openai = pytest.importorskip("openai")

STATE = {"message": "I was charged twice <|mark|>", "items": [1, None]}
CHOICES = [
    {"value": "true", "description": "the word"},
    {"value": True},
    {"value": False, "description": "not so"},
    {"value": "maybe"},
]
ASKED: list[dict[str, Any]] = [
    {"type": "predicate", "name": "refund", "instructions": "A refund is requested."},
    {"type": "choice", "instructions": [{"type": "input_text", "text": "Which?"}], "choices": CHOICES},
    {
        "type": "score",
        "name": "urgency",
        "instructions": [{"type": "input_text", "text": "How urgent?"}, {"type": "input_json", "data": {"unit": "days"}}],
        "levels": [{"label": "later"}, {"label": "soon", "description": "this week"}, {"label": "now"}],
    },
]  # fmt: skip
SYSTEM_ONE: dict[str, Any] = {
    "0": {"type": "noul", "instructions": "A refund is requested."},
    "1": {
        "type": "choice",
        "instructions": "Which?",
        "criteria": {'"true"': "the word", "true": None, "false": "not so", "maybe": None},
    },
    "2": {
        "type": "score",
        "instructions": ["How urgent?", {"unit": "days"}],
        "criteria": ["later", "soon: this week", "now"],
    },
}


@pytest.fixture(scope="module")
def decider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(str(chat_model("llama", tmp_path_factory.mktemp("decide") / "decider")), convert="decide") as llm:
        yield llm


@pytest.fixture(scope="module")
def app(decider: LLM) -> Iterator[TestClient]:
    with TestClient(create_app(decider, ServerSettings(max_inputs=400))) as client:
        yield client


@pytest.fixture(scope="module")
def url(decider: LLM) -> Iterator[str]:
    with served(decider) as found:
        yield found


def test_system_one(app: TestClient, decider: LLM) -> None:
    answer = app.post("/v1/systemone", json={"model": "decider", "state": STATE, "questions": QUESTIONS})
    assert answer.status_code == 200
    (expected,) = decider.decide({"state": STATE, "questions": QUESTIONS})
    assert set(answer.json()) == {"model", "answers", "usage"} and answer.json()["model"] == "decider"
    assert_same(answer.json()["answers"], dict(expected))
    assert answer.json()["usage"] == {"input_tokens": expected.num_prompt_tokens, "output_tokens": 0}


def test_both_clients(url: str, decider: LLM) -> None:
    async def ask() -> Any:
        async with AsyncClient(url) as client:
            return await client.decide(STATE, QUESTIONS)

    with Client(url) as client:
        found = client.decide(STATE, QUESTIONS, model="decider")
        with pytest.raises(RejectedError, match="Question 'q': `type` must be one of"):
            client.decide("x", {"q": {"type": "what"}})
    (expected,) = decider.decide({"state": STATE, "questions": QUESTIONS})
    assert_same(found.answers, dict(expected))
    assert found.usage.prompt_tokens == expected.num_prompt_tokens
    assert asyncio.run(ask()).answers == found.answers


def test_openai(url: str, decider: LLM) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        found = client.decisions.create(model="decider", input="I was charged twice. " * 9, questions=ASKED)
        alike = [True, "true", '"true"', "\\"]  # two of them would have one name in the prompt
        asked: Any = {"type": "choice", "instructions": "Which?", "choices": [{"value": each} for each in alike]}
        (answer,) = client.decisions.create(model="decider", input="x", questions=[asked]).answers
    assert [each.value for each in answer.probabilities] == alike
    (expected,) = decider.decide({"state": "I was charged twice. " * 9, "questions": SYSTEM_ONE})
    predicate, choice, score = found.answers
    assert (predicate.type, predicate.name) == ("predicate", "refund")
    assert predicate.probability == pytest.approx(expected["0"]["noul"], abs=1e-6)
    assert (choice.type, choice.name) == ("choice", None)
    assert [each.value for each in choice.probabilities] == ["true", True, False, "maybe"]
    assert [each.probability for each in choice.probabilities] == pytest.approx(
        list(expected["1"]["probabilities"].values()), abs=1e-6
    )
    best = max(choice.probabilities, key=lambda each: each.probability)
    assert choice.choice is best.value or choice.choice == best.value
    assert choice.confidence == pytest.approx(expected["1"]["confidence"], abs=1e-6)
    assert (score.type, score.name) == ("score", "urgency")
    assert [(each.label, each.value) for each in score.probabilities] == [("later", 0), ("soon", 1), ("now", 2)]
    assert score.score == pytest.approx(expected["2"]["score"], abs=1e-6)
    assert score.confidence == pytest.approx(expected["2"]["confidence"], abs=1e-6)
    assert found.model == "decider"
    assert found.usage.input_tokens == found.usage.total_tokens == expected.num_prompt_tokens
    assert found.usage.output_tokens == 0
    assert 0 < found.usage.input_tokens_details.cached_tokens <= found.usage.input_tokens


def test_openai_awaited_with_every_option(url: str) -> None:
    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            return await client.decisions.create(
                model="decider",
                input="x",
                questions=ASKED[:1] * 400,
                prompt_cache_key="a key @ of mine",
                prompt_cache_options={"mode": "explicit", "ttl": "30m"},
                safety_identifier="someone",
            )

    found = asyncio.run(ask())
    assert len(found.answers) == 400 and len({each.probability for each in found.answers}) == 1


CONVERSATION: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [
        {"type": "input_text", "text": "one", "prompt_cache_breakpoint": {"mode": "explicit"}},
        {"type": "input_text", "text": "two"},
    ]},
    {"type": "message", "role": "user", "content": [{"type": "input_json", "data": [{"a": 1}]}]},
    {"role": "assistant", "phase": "commentary", "content": [
        {"type": "output_text", "text": "yes"}, {"type": "refusal", "refusal": "no"},
    ]},
    {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"id": 3}', "status": "completed"},
    {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "found"}]},
    {"type": "custom_tool_call", "call_id": "c2", "name": "run", "input": "ls"},
    {"type": "custom_tool_call_output", "call_id": "c2", "output": "a.txt"},
]  # fmt: skip
AS_STATE = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "one\ntwo"},
    {"role": "user", "content": [{"a": 1}]},
    {"role": "assistant", "content": "yes\nno"},
    {"type": "function_call", "call_id": "c1", "name": "look", "arguments": {"id": 3}},
    {"type": "function_call_output", "call_id": "c1", "output": "found"},
    {"type": "custom_tool_call", "call_id": "c2", "name": "run", "input": "ls"},
    {"type": "custom_tool_call_output", "call_id": "c2", "output": "a.txt"},
]


@pytest.mark.parametrize(
    ("given", "state"),
    [(CONVERSATION, AS_STATE), (CONVERSATION[1:2], "one\ntwo"), (CONVERSATION[:1], AS_STATE[:1])],
    ids=["conversation", "one message", "one of the developer"],
)
def test_conversations(app: TestClient, decider: LLM, given: Any, state: Any) -> None:
    answer = app.post("/v1/decisions", json={"input": given, "questions": ASKED[:1]})
    assert answer.status_code == 200, answer.json()
    (expected,) = decider.decide({"state": state, "questions": {"0": SYSTEM_ONE["0"]}})
    assert answer.json()["answers"][0]["probability"] == pytest.approx(expected["0"]["noul"], abs=1e-6)


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
MANY = [{"value": str(index)} for index in range(27)]
OUTPUT = {"type": "function_call_output", "call_id": "c9", "output": "x"}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"questions": ASKED}, "input", "Field required"),
        ({"input": "x", "questions": []}, "questions", "at least 1"),
        ({"input": "x", "questions": ASKED[:1] * 401}, "questions", "at most 400"),
        ({"input": "x", "questions": [{"type": "what"}]}, "questions", "predicate"),
        ({"input": "x", "questions": [{**ASKED[1], "choices": CHOICES[:1]}]}, "questions", "at least 2"),
        ({"input": "x", "questions": [{**ASKED[1], "choices": CHOICES[1:2] * 2}]}, "questions", "question 0 has a choice twice"),
        ({"input": "x", "questions": [{**ASKED[1], "choices": [{"value": 1}, {"value": "1"}]}]}, "questions", "valid"),
        ({"input": "x", "questions": [{**ASKED[1], "choices": MANY}]}, "questions", "at most 26 options"),
        ({"input": [{"role": "user", "content": [IMAGE]}], "questions": ASKED}, "input", "part of type 'input_image'"),
        ({"input": "x", "questions": [{**ASKED[0], "instructions": [IMAGE]}]}, "questions", "this server reads texts"),
        ({"input": [OUTPUT], "questions": ASKED}, "input", "no call before it has"),
        ({"input": [{"role": "nobody", "content": "x"}], "questions": ASKED}, "input", "tag"),
        ({"input": "x", "questions": ASKED, "temperature": 1}, "temperature", "no field"),
        ({"input": "x" * 9000, "questions": ASKED}, "input_tokens", "maximum context length"),
    ],
)  # fmt: skip
def test_errors(app: TestClient, body: Any, param: str, message: str) -> None:
    answer = app.post("/v1/decisions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "BadRequestError", param), error
    assert message in error["message"]


def test_errors_of_system_one(app: TestClient) -> None:
    question = {"q": {"type": "noul"}}
    for body, param, message in (
        ({"state": "x", "questions": {"q": {"type": "choice"}}}, "questions", "Question 'q'"),
        (
            {"state": "x", "questions": question, "assets": {"i": {"data_base64": "AA"}}},
            "assets",
            "this server reads texts",
        ),
        ({"state": "x", "questions": question, "assets": {"i": {"url": "x"}}}, "assets", "is given as data_base64"),
        ({"state": 3, "questions": question}, "state", "valid"),
        (
            {"state": "x", "questions": {str(each): question["q"] for each in range(401)}},
            "questions",
            "more than the 400",
        ),
    ):
        answer = app.post("/v1/systemone", json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), error
        assert message in error["message"]
    assert app.post("/v1/systemone", json={"model": "other", "state": "x", "questions": question}).status_code == 404


def test_images(tmp_path: Path) -> None:
    """In the state, the instructions and a function's output, by either route, as `LLM.decide` reads them."""
    folder = vision.qwen2_5_vl(tmp_path / "seer")
    (folder / "decision.json").write_text(json.dumps({"labels": {"noul": ["Y", "N"]}}))
    pictures = [vision.picture(24, 16, 0), vision.picture(40, 32, 1)]
    data = [base64.b64encode(encoded(each)).decode() for each in pictures]
    first, second = (
        {"type": "input_image", "image_url": f"data:image/png;base64,{each}", "detail": "auto"} for each in data
    )
    question = {"type": "predicate", "instructions": [{"type": "input_text", "text": "Like this?"}, second]}
    said = {"role": "user", "content": [{"type": "input_text", "text": "See it"}, first, first]}
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": [second]}
    with LLM(str(folder)) as llm, TestClient(create_app(llm)) as client:
        assets = dict(zip("<>", pictures, strict=True))
        asked = {"state": "See it\n<\n<", "questions": {"0": {"type": "noul", "instructions": "Like this?\n>"}}}
        body = {"input": [said], "questions": [question]}
        answer = client.post("/v1/decisions", json=body)
        assert answer.status_code == 200, answer.text
        (expected,) = llm.decide({**asked, "assets": assets})
        assert answer.json()["answers"][0]["probability"] == pytest.approx(expected["0"]["noul"], abs=1e-6)
        assert answer.json()["usage"]["input_tokens"] == expected.num_prompt_tokens
        encoded_assets = {
            name: {"type": "image", "format": "png", "data_base64": each} for name, each in zip("<>", data, strict=True)
        }
        answer = client.post("/v1/systemone", json={**asked, "assets": encoded_assets})
        assert answer.status_code == 200, answer.text
        assert answer.json()["answers"]["0"]["noul"] == pytest.approx(expected["0"]["noul"], abs=1e-6)
        whole = client.post("/v1/decisions", json={"input": [said, call, output], "questions": [question]})
        assert whole.status_code == 200 and whole.json()["usage"]["input_tokens"] > expected.num_prompt_tokens
        for image, why in (("data:image/png;base64,AAAA", "input"), ("http://example.com/x.png", "allowed")):
            wrong = client.post(
                "/v1/decisions", json={**body, "input": [{"role": "user", "content": [{**first, "image_url": image}]}]}
            )
            assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "input", wrong.text
            assert why in wrong.json()["error"]["message"]
        wrong = client.post("/v1/systemone", json={**asked, "assets": {"<": {"data_base64": "AAAA"}}})
        assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "assets"


def test_a_model_that_was_not_opened_for_it(llm: LLM) -> None:
    with TestClient(create_app(llm)) as client:
        for path in ("/v1/systemone", "/v1/decisions"):
            answer = client.post(path, json={})
            assert answer.status_code == 404 and "--convert decide" in answer.json()["error"]["message"]


def test_openapi(app: TestClient) -> None:
    document = app.get("/openapi.json").json()
    assert document["components"]["schemas"]["SystemOneRequest"]["properties"]["questions"]["maxProperties"] == 400
    assert {"DecisionsRequest", "ChoiceQuestion", "FunctionCallOutput"} <= document["components"]["schemas"].keys()

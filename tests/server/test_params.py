"""`error.param` is the field that was wrong, as the request calls it: each field of each route."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.models import tiny
from vllm_cls import LLM, convert
from vllm_cls.server.protocol.classify import ClassifyChat, ClassifyInput
from vllm_cls.server.protocol.pooling import PoolingChat, PoolingInput
from vllm_cls.server.protocol.score import SCORE_FORMS, RerankRequest
from vllm_cls.server.protocol.tokenize import DetokenizeRequest, TokenizeChat, TokenizePrompt

from .conftest import client_of

MESSAGES = [{"role": "user", "content": "good"}]
LONG = "good " * 300
TOO_LONG = "a" * 100_000
FORMS: list[tuple[str, Any, dict[str, Any]]] = [
    ("/classify", ClassifyInput, {"input": "good"}),
    ("/classify", ClassifyChat, {"messages": MESSAGES}),
    ("/pooling", PoolingInput, {"input": "good"}),
    ("/pooling", PoolingChat, {"messages": MESSAGES}),
    ("/tokenize", TokenizePrompt, {"prompt": "good"}),
    ("/tokenize", TokenizeChat, {"messages": MESSAGES}),
    ("/detokenize", DetokenizeRequest, {"tokens": [5]}),
    ("/rerank", RerankRequest, {"query": "good", "documents": ["bad"]}),
    *(("/score", form, dict.fromkeys(form.pair(), "good")) for form in SCORE_FORMS),
]
RUN = [each for each in FORMS if "tokenize" not in each[0]]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A decoder with heads of three labels and of one, and a chat template."""
    import transformers

    from .conftest import TEMPLATE

    folder = tmp_path_factory.mktemp("named")
    model: Path = tiny.causal_lm("qwen2", folder / "lm", max_position_embeddings=256)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    for name, labels in (("stars", {"num_labels": 1}), ("topic", {"labels": ["a", "b", "c"]})):
        convert(str(model), folder / name, head="random", head_name=name, score_template="concat", **labels)
        model = folder / name
    with LLM(str(model), device="cpu") as llm, client_of(llm, max_inputs=8, max_request_tokens=1000) as client:
        yield client


def refused(client: TestClient, path: str, body: dict[str, Any], status: int = 400) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == status
    return error


@pytest.mark.parametrize(("path", "form", "body"), FORMS, ids=lambda each: getattr(each, "__name__", None))
def test_a_value_of_a_wrong_kind(asked: TestClient, path: str, form: Any, body: dict[str, Any]) -> None:
    # To /invocations, what is of /pooling alone decides the route.
    for each in (path,) if "tokenize" in path or path == "/pooling" else (path, "/invocations"):
        assert asked.post(each, json=body).status_code == 200
        for field in form.model_fields:
            error = refused(asked, each, {**body, field: {"no": {"such": 1}}})
            assert error["param"] == field, (each, field, error)
        error = refused(asked, each, {**body, "no_such": 1})
        assert error["param"] == "no_such" and "no_such" in error["message"]
        assert refused(asked, each, {**body, "model": "other"}, 404)["param"] == "model"


@pytest.mark.parametrize(("path", "form", "body"), RUN, ids=lambda each: getattr(each, "__name__", None))
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("truncate_prompt_tokens", 9999, "between 1 and 256"),
        ("truncate_prompt_tokens", 0, "cannot be empty"),
        ("truncate_prompt_tokens", -2, "greater than or equal to -1"),
        ("truncation_side", "middle", "'left' or 'right'"),
        ("head_name", "other", "the model's heads are stars, topic"),
        ("priority", 1 << 64, "less than"),
        ("cache_salt", "a@b", "match"),
        ("request_id", "é", "match"),
    ],
)
def test_a_value_that_no_request_may_have(
    asked: TestClient, path: str, form: Any, body: dict[str, Any], field: str, value: Any, message: str
) -> None:
    for each in (path, "/invocations"):
        error = refused(asked, each, {**body, field: value})
        assert error["param"] == field and message in error["message"], error


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        ("/classify", {"input": [999999]}, "input", "Token id 999999 is out of vocabulary"),
        ("/classify", {"input": [[5], [999999]]}, "input", "prompt 1: Token id 999999"),
        ("/pooling", {"input": [-1]}, "input", "out of vocabulary"),
        ("/invocations", {"input": [999999]}, "input", "out of vocabulary"),
        ("/detokenize", {"tokens": [999999]}, "tokens", "out of vocabulary"),
        ("/classify", {"input": ["a"] * 9}, "input", "9 are more than the 8"),
        ("/pooling", {"input": [[5]] * 9}, "input", "9 are more than the 8"),
        ("/classify", {"input": [[5] * 200] * 6}, "input", "1000 tokens that one request"),
        (
            "/classify",
            {"input": ["good " * 200] * 6, "truncate_prompt_tokens": -1},
            "input",
            "tokens are more than the 1000",
        ),
        ("/classify", {"input": TOO_LONG, "truncate_prompt_tokens": -1}, "input", "characters are read"),
        ("/classify", {"messages": [{"role": "user", "content": TOO_LONG}]}, "messages", "characters are read"),
        ("/pooling", {"messages": [{"role": "user", "content": TOO_LONG}]}, "messages", "characters are read"),
        ("/tokenize", {"prompt": TOO_LONG}, "prompt", "characters are read"),
        ("/tokenize", {"messages": [{"role": "user", "content": TOO_LONG}]}, "messages", "characters are read"),
        ("/detokenize", {"tokens": [5] * 2000}, "tokens", "1000 tokens that one request"),
        ("/classify", {"input": LONG}, "input_tokens", "maximum context length"),  # as vLLM has it
        ("/score", {"text_1": "a", "text_2": ["a"] * 9}, "text_2", "9 are more"),
        ("/score", {"queries": ["a"] * 9, "items": "a"}, "queries", "9 are more"),
        ("/score", {"data_1": TOO_LONG, "data_2": "a"}, "data_1", "characters are read"),
        ("/score", {"queries": "a", "documents": ["a", TOO_LONG]}, "documents", "characters are read"),
        ("/rerank", {"query": TOO_LONG, "documents": ["a"]}, "query", "characters are read"),
        ("/rerank", {"query": "a", "documents": ["a"] * 9}, "documents", "9 are more"),
        (
            "/rerank",
            {"query": "a", "documents": ["a"], "max_tokens_per_query": 256},
            "max_tokens_per_query",
            "less than 256",
        ),
        ("/score", {"text_1": "a", "text_2": "a", "max_tokens_per_doc": 256}, "max_tokens_per_doc", "less than 256"),
        ("/score", {"text_1": "a", "text_2": "a", "instruction": "x"}, "instruction", "no place for one"),
        ("/score", {"text_1": "a", "text_2": "a", "head_name": "topic"}, "head_name", "num_labels 1"),
        ("/rerank", {"query": "a", "documents": ["a"], "head_name": "topic"}, "head_name", "num_labels 1"),
        ("/pooling", {"input": "a", "task": "embed", "head_name": "topic"}, "head_name", "an embedding has no head"),
        ("/pooling", {"input": "a", "task": "nothing"}, "task", "Unsupported task"),
        ("/pooling", {"input": "a", "dimensions": 3}, "dimensions", "not supported"),
        ("/score", {"text_1": ["a"] * 2, "text_2": ["a"] * 3}, None, "1:1, 1:N or N:N"),  # of two fields
        ("/score", {}, None, "Give two sides"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_a_value_that_the_model_or_the_server_does_not_take(
    asked: TestClient, path: str, body: dict[str, Any], param: str | None, message: str
) -> None:
    error = refused(asked, path, body)
    assert error["param"] == param and message in error["message"], error


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": {"text": "a", "text_pair": LONG}, "truncate_prompt_tokens": 2}, "truncate_prompt_tokens"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages"),
        ({"messages": MESSAGES}, "messages"),  # there is no template
    ],
)
def test_of_a_model_of_pairs(scorer: TestClient, body: dict[str, Any], param: str) -> None:
    assert refused(scorer, "/classify", body)["param"] == param


def test_a_query_in_the_models_own_prompt(tmp_path: Path) -> None:
    """It is the first side that is wrong, whatever the request calls it."""
    template = "<|im_start|>system\nJudge the following pair of texts, please.\n{{ query }} {{ document }}"
    model = tiny.causal_lm("qwen2", tmp_path / "lm", max_position_embeddings=256)
    convert(str(model), tmp_path / "ranker", head="random", num_labels=1, score_template=template)
    query = template.partition("{{")[0] + "a"
    with LLM(str(tmp_path / "ranker"), device="cpu") as llm, client_of(llm) as client:
        for names in (("text_1", "text_2"), ("queries", "items"), ("data_1", "data_2")):
            error = refused(client, "/score", dict(zip(names, (query, "b"), strict=True)))
            assert error["param"] == names[0] and "own score template" in error["message"]
        assert refused(client, "/rerank", {"query": query, "documents": ["b"]})["param"] == "query"


def test_a_model_that_has_heads_by_adapters_alone(tmp_path: Path) -> None:
    model = tiny.base_model("bert", tmp_path / "base", architectures=["BertForSequenceClassification"], num_labels=3)
    with LLM(str(model), device="cpu", enable_lora=True, max_model_len=32) as llm, client_of(llm) as client:
        error = refused(client, "/classify", {"input": "good"})
    assert error["param"] == "model" and "whose adapter has one" in error["message"]

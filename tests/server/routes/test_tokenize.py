"""/tokenize and /detokenize: the tokens that the model would see."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from vllm_cls import LLM


@pytest.mark.parametrize("special", [True, False])
def test_tokens_are_those_of_classify(client: TestClient, llm: LLM, special: bool) -> None:
    body = {"prompt": "The film was good", "add_special_tokens": special, "return_token_strs": True}
    answer = client.post("/tokenize", json=body).json()
    (expected,) = llm.classify(body["prompt"], tokenization_kwargs={"add_special_tokens": special})
    assert answer["tokens"] == expected.prompt_token_ids and answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == 256
    assert answer["token_strs"][1] == ("the" if special else "film")
    assert client.post("/tokenize", json={"prompt": "a"}).json()["token_strs"] is None


def test_more_tokens_than_the_model_takes(client: TestClient) -> None:
    assert client.post("/tokenize", json={"prompt": "good " * 300}).json()["count"] == 302


def test_there_and_back(talker: TestClient) -> None:
    text = "The film — was “good”,\n中文 😀"
    tokens = talker.post("/tokenize", json={"prompt": text}).json()["tokens"]
    assert talker.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": text}
    assert talker.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("options", "rendered"),
    [({}, "<user>good\n<a>"), ({"add_generation_prompt": False}, "<user>good\n"),
     ({"add_generation_prompt": False, "continue_final_message": True}, "<user>good")],
)  # fmt: skip
def test_a_conversation(talker: TestClient, options: dict[str, Any], rendered: str) -> None:
    answer = talker.post("/tokenize", json={"messages": [{"role": "user", "content": "good"}], **options}).json()
    assert talker.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": rendered}


@pytest.mark.parametrize(
    ("path", "body", "param", "status"),
    [
        ("/tokenize", {}, "prompt", 400),
        ("/tokenize", {"prompt": 3}, "prompt", 400),
        ("/tokenize", {"prompt": "a", "model": "b"}, "model", 404),
        ("/tokenize", {"prompt": "a", "input": "b"}, "input", 400),
        ("/detokenize", {"tokens": [-1]}, "tokens", 400),
        ("/detokenize", {"tokens": [10**9]}, "tokens", 400),
        ("/detokenize", {"tokens": [10**30]}, "tokens", 400),
        ("/detokenize", {"tokens": "a"}, "tokens", 400),
        ("/detokenize", {"tokens": ["1"]}, "tokens", 400),
    ],
)
def test_bad_values(client: TestClient, path: str, body: dict[str, Any], param: str, status: int) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == status and answer.json()["error"]["param"] == param

"""/classify: every form of a prompt, numbers as `LLM` gives them, what an answer may hold on top of vLLM's."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from vllm_cls import LLM, PoolingParams

from ..conftest import LABELS, client_of


def ask(client: TestClient, path: str = "/classify", **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("good", ["good"]),
        (["good", "a boring end"], ["good", "a boring end"]),
        ([2, 10, 3], [[2, 10, 3]]),
        ([2.0, 10, 3], [[2, 10, 3]]),
        ([[2, 10, 3], [2, 3]], [[2, 10, 3], [2, 3]]),
        ({"text": "good"}, ["good"]),
        ({"text": "good", "text_pair": "bad"}, [("good", "bad")]),
        (["good", {"text": "good", "text_pair": "bad"}], ["good", ("good", "bad")]),
    ],
)
def test_numbers_are_those_of_the_llm(client: TestClient, llm: LLM, given: Any, prompts: list[Any]) -> None:
    answer, expected = ask(client, input=given), llm.classify(prompts)
    assert [each["index"] for each in answer["data"]] == list(range(len(prompts)))
    for row, output in zip(answer["data"], expected, strict=True):
        assert row["probs"] == pytest.approx(output.outputs.probs, abs=1e-6)
        assert (row["label"], row["num_classes"]) == (output.outputs.label, 3)
    tokens = sum(len(each.prompt_token_ids) for each in expected)
    assert answer["usage"] == {
        "prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None,
    }  # fmt: skip
    assert (answer["object"], answer["model"]) == ("list", "film-critic")
    assert answer["id"].startswith("classify-") and isinstance(answer["created"], int)
    assert set(answer["data"][0]) == {"index", "label", "probs", "num_classes"}


def test_logits_without_activation(client: TestClient, llm: LLM) -> None:
    (expected,) = llm.classify("good", pooling_params=PoolingParams(use_activation=False))
    (row,) = ask(client, input="good", use_activation=False)["data"]
    assert row["probs"] == pytest.approx(expected.outputs.probs, abs=1e-6)
    assert ask(client, input="good", use_activation=True)["data"] == ask(client, input="good")["data"]


def test_more_is_told_on_request(client: TestClient, llm: LLM) -> None:
    (output,) = llm.classify("good")
    (row,) = ask(client, input="good", top_k=2, scores=True, logits=True, truncated=True)["data"]
    assert row["scores"] == pytest.approx(output.outputs.scores, abs=1e-6)
    assert row["logits"] == pytest.approx(output.outputs.logits, abs=1e-6)
    assert [each["label"] for each in row["top_k"]] == sorted(row["scores"], key=lambda name: -row["scores"][name])[:2]
    assert row["truncated"] is False
    (row,) = ask(client, input="good", top_k=9)["data"]
    assert {each["label"] for each in row["top_k"]} == set(LABELS.values())


@pytest.mark.parametrize(("limit", "length"), [(-1, 256), (5, 5), (256, 256)])
def test_truncation(client: TestClient, llm: LLM, limit: int, length: int) -> None:
    text = "good " * 300 + "bad"
    for side in ("left", "right"):
        answer = ask(client, input=text, truncate_prompt_tokens=limit, truncation_side=side, truncated=True)
        kwargs = {"truncate_prompt_tokens": limit, "truncation_side": side}
        (expected,) = llm.classify(text, tokenization_kwargs=kwargs)
        assert answer["usage"]["prompt_tokens"] == len(expected.prompt_token_ids) == length
        assert answer["data"][0]["probs"] == pytest.approx(expected.outputs.probs, abs=1e-6)
        assert answer["data"][0]["truncated"] is True


def test_special_tokens_may_be_left_out(client: TestClient) -> None:
    with_them, without = ask(client, input="good"), ask(client, input="good", add_special_tokens=False)
    assert with_them["usage"]["prompt_tokens"] - without["usage"]["prompt_tokens"] == 2


def test_one_label_has_a_name_only_with_a_threshold(scorer: TestClient, ranker: LLM) -> None:
    (row,) = ask(scorer, input="good")["data"]
    assert row["label"] is None and row["num_classes"] == 1
    (prob,) = row["probs"]
    for threshold, label in ((prob - 1e-3, "LABEL_0"), (prob + 1e-3, None)):
        with client_of(ranker, threshold=threshold) as client:
            (row,) = ask(client, input="good")["data"]
            assert row["label"] == label


@pytest.mark.parametrize(
    ("options", "rendered"),
    [
        ({}, "<user>good\n"),
        ({"add_generation_prompt": True}, "<user>good\n<a>"),
        ({"continue_final_message": True}, "<user>good"),
    ],
)
def test_chat(talker: TestClient, chatty: LLM, options: dict[str, Any], rendered: str) -> None:
    contents: list[Any] = ["good", [{"type": "text", "text": "good"}]]
    for content in contents:
        answer = ask(talker, messages=[{"role": "user", "content": content}], **options)
        (expected,) = chatty.classify(rendered, tokenization_kwargs={"add_special_tokens": False})
        assert answer["usage"]["prompt_tokens"] == len(expected.prompt_token_ids)
        assert answer["data"][0]["probs"] == pytest.approx(expected.outputs.probs, abs=1e-6)


def test_parts_of_a_message_are_lines(talker: TestClient) -> None:
    parts = [{"type": "text", "text": "good"}, {"type": "text", "text": "bad"}]
    in_parts = ask(talker, messages=[{"role": "user", "content": parts}])
    assert in_parts["data"] == ask(talker, messages=[{"role": "user", "content": "good\nbad"}])["data"]
    nothing = ask(talker, messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": None}])
    assert nothing["data"] == ask(talker, messages=[{"role": "user", "content": "a"}, {"role": "assistant"}])["data"]


def test_without_a_chat_template(client: TestClient) -> None:
    answer = client.post("/classify", json={"messages": [{"role": "user", "content": "good"}]})
    assert answer.status_code == 400 and "no chat template" in answer.json()["error"]["message"]

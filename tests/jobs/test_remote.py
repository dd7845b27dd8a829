"""A job whose model is a server's gives the file that it gives with the model itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.jobs.fake import FakeLLM
from tests.jobs.files import jsonl, write
from vllm_cls import Client, ConfigError
from vllm_cls.client import ServerError
from vllm_cls.jobs import remote
from vllm_cls.jobs.classify import classify_file
from vllm_cls.jobs.remote import RemoteModel
from vllm_cls.jobs.score import score_file

Serve = Callable[..., Client]


class Served:
    """What a server would answer that runs the fake classifier; late, and not in the order of the requests."""

    def __init__(self, llm: FakeLLM, **described: Any) -> None:
        self.llm = llm
        self.model = {"id": "m", "task": "classify", "labels": list(llm.id2label.values())}
        self.model |= {"problem_type": llm.problem_type, "prompt_template": None, **described}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.refused = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=self.model)
        body = json.loads(request.content)
        self.asked.append((request.url.path, body))
        time.sleep(len(self.asked) % 3 / 100)
        if request.url.path == "/score" and "logits" in body:
            return httpx.Response(400, json={"error": {"message": "There is no field 'logits' here."}})
        if self.refused:
            return httpx.Response(401, json={"error": {"message": "no key"}})
        prompts = [{"messages": body["messages"]}] if "messages" in body else _prompts(body)
        truncate = body.get("truncate_prompt_tokens") == -1
        outputs = list(self.llm.classify_iter(prompts, use_activation=body.get("use_activation"), truncate=truncate))
        wrong = [each.error for each in outputs if each.error is not None]
        if wrong:
            return httpx.Response(400, json={"error": {"message": wrong[0]}})
        data = [
            {"index": i, "label": each.outputs.label, "probs": each.outputs.probs, "num_classes": each.outputs.num_classes,
             "logits": each.outputs.logits, "truncated": each.truncated, "score": each.outputs.probs[0]}
            for i, each in enumerate(outputs)
        ]  # fmt: skip
        answer = json.dumps({"id": "x", "model": "m", "data": data, "usage": {}}).replace("NaN", "null")
        return httpx.Response(200, text=answer)

    def client(self) -> Client:
        return Client("http://server", transport=httpx.MockTransport(self))


def _prompts(body: dict[str, Any]) -> list[dict[str, Any]]:
    if "text_1" in body:
        pairs = zip(body["text_1"], body["text_2"], strict=True)
        return [{"prompt": first, "text_pair": second} for first, second in pairs]
    return [{"prompt": each["text"] if isinstance(each, dict) else each} for each in body["input"]]


ROWS = [{"text": f"{'good' if i % 3 else 'bad'} {i}", "pair": f"p{i}", "id": i} for i in range(300)]


def test_the_same_file_as_with_the_model_itself(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "BOOM"}, {"text": ""}, {"id": 1}, {"text": "good " * 20}, {"text": "NAN"}]
    path = write(tmp_path / "in.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + "broken\n")
    llm = FakeLLM()
    options: dict[str, Any] = {"scores": True, "logits": True, "top_k": 2}
    here = classify_file(llm, path, tmp_path / "here.jsonl", **options)
    served = Served(llm)
    with served.client() as client:
        there = classify_file(client, path, tmp_path / "there.jsonl", **options)
    lines = (tmp_path / "there.jsonl").read_bytes().splitlines()
    assert lines[:300] == (tmp_path / "here.jsonl").read_bytes().splitlines()[:300]
    assert (there.rows, there.truncated) == (here.rows, here.truncated) == (306, 1)
    assert there.failed == here.failed == 5
    assert len(served.asked) < 300 / 32 + 20


def test_many_requests_are_in_flight_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(FakeLLM())
    most = running = 0

    def counted(request: httpx.Request) -> httpx.Response:
        nonlocal most, running
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        answer = served(request)
        running -= 1
        return answer

    monkeypatch.setattr(remote, "ROWS_OF_A_REQUEST", 5)
    taken = 0

    def prompts() -> Any:
        nonlocal taken
        for row in ROWS:
            taken += 1
            yield {"prompt": row["text"], "fields": row}

    model = RemoteModel(Client("http://server", transport=httpx.MockTransport(counted)))
    outputs = model.classify_iter(prompts())
    next(outputs)
    assert taken <= 5 * (remote.REQUESTS_IN_FLIGHT + 2)
    assert len(list(outputs)) == len(ROWS) - 1
    assert 1 < most <= remote.REQUESTS_IN_FLIGHT


def test_pairs_chats_and_options_reach_the_server(tmp_path: Path) -> None:
    served = Served(FakeLLM())
    path = jsonl(tmp_path / "in.jsonl", ROWS[:3])
    common = {"logits": True, "truncated": True}
    classify_file(served.client(), path, tmp_path / "o.jsonl", text_pair_field="pair", truncation_side="left")
    pairs = [{"text": row["text"], "text_pair": row["pair"]} for row in ROWS[:3]]
    expected = {"input": pairs, "truncate_prompt_tokens": -1, "truncation_side": "left", "use_activation": True}
    assert served.asked.pop() == ("/classify", expected | common)
    chats = jsonl(tmp_path / "chats.jsonl", [{"m": [{"role": "user", "content": text}]} for text in ("good", "bad")])
    model = RemoteModel(served.client(), "adapter")
    classify_file(model, chats, tmp_path / "chatted.jsonl", messages_field="m", long_text="error", use_activation=False)
    expected = {"messages": [{"role": "user", "content": "good"}], "model": "adapter", "use_activation": False}
    assert ("/classify", expected | common) in served.asked and len(served.asked) == 2
    labels = [json.loads(line)["label"] for line in (tmp_path / "chatted.jsonl").read_text().splitlines()]
    assert labels == ["positive", "negative"]


def test_scores(tmp_path: Path) -> None:
    served = Served(FakeLLM(labels=("yes",)), takes_instruction=True)
    rows = [{"query": "good" if i % 2 else "bad", "document": f"d{i}"} for i in range(40)]
    rows += [{"query": "good", "document": "x", "instruction": "of the row"}]
    path = jsonl(tmp_path / "in.jsonl", rows)
    report = score_file(served.client(), path, tmp_path / "o.jsonl", max_tokens_per_doc=3)
    assert (report.rows, report.failed) == (41, 0)
    scores = [json.loads(line)["score"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [score > 0.5 for score in scores] == [bool(i % 2) for i in range(40)] + [True]
    bodies = sorted((body for _, body in served.asked), key=lambda body: len(body["text_2"]))
    assert [len(body["text_2"]) for body in bodies] == [1, 8, 32]
    assert bodies[0]["instruction"] == "of the row" and "instruction" not in bodies[1]
    assert all(body["max_tokens_per_doc"] == 3 and "max_tokens_per_query" not in body for body in bodies)
    assert {path for path, _ in served.asked} == {"/score"}


@pytest.mark.parametrize(
    ("described", "match"),
    [
        ({"task": "token_classify"}, "classifies whole texts only"),
        ({"prompt_template": "{title}: {text}"}, "takes title"),
    ],
)
def test_models_that_a_server_cannot_run_for_a_job(described: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        RemoteModel(Served(FakeLLM(), **described).client())


def test_what_cannot_be(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"query": "a", "document": "b", "text": "c"}])
    with pytest.raises(ConfigError, match="num_labels 1"):
        score_file(Served(FakeLLM()).client(), path, tmp_path / "o.jsonl")
    with pytest.raises(ConfigError, match="no place for one"):
        score_file(Served(FakeLLM(labels=("yes",))).client(), path, tmp_path / "o.jsonl", instruction="i")
    with pytest.raises(ConfigError, match="dtype: options of LLM"):
        classify_file(Served(FakeLLM()).client(), path, tmp_path / "o.jsonl", dtype="float32")
    other = Client(
        "http://vllm", transport=httpx.MockTransport(lambda _: httpx.Response(404, json={"detail": "Not Found"}))
    )
    with pytest.raises(ConfigError, match="started with `vcls serve`"):
        classify_file(other, path, tmp_path / "o.jsonl")
    assert not (tmp_path / "o.jsonl").exists()


def test_an_error_that_is_no_rows_ends_the_job(tmp_path: Path) -> None:
    served = Served(FakeLLM())
    served.refused = True
    with pytest.raises(ServerError, match="no key"):
        classify_file(served.client(), jsonl(tmp_path / "in.jsonl", ROWS), tmp_path / "o.jsonl")
    assert not (tmp_path / "o.jsonl").exists()
    short = httpx.MockTransport(
        lambda r: httpx.Response(200, json=served.model if r.method == "GET" else {"id": "", "model": "", "data": []})
    )
    with pytest.raises(remote.JobError, match="answered 0 of 32 rows"):
        classify_file(Client("http://s", transport=short), jsonl(tmp_path / "in.jsonl", ROWS), tmp_path / "o.jsonl")

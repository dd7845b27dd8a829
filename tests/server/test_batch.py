"""`run_batch` and `vcls run-batch`: requests from a file, answered as the server answers them."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from fastapi import APIRouter
from starlette.testclient import TestClient

from tests.cli.conftest import run  # noqa: F401  # a fixture
from tests.models import tiny
from vllm_cls import LLM, AsyncLLM, ConfigError, JobError
from vllm_cls.jobs.report.progress import JobProgress
from vllm_cls.server import ServerSettings, batch, create_app, run_batch

from .test_plugins import install


def request(n: int, url: str = "/classify", **body: Any) -> dict[str, Any]:
    return {"custom_id": f"r{n}", "method": "POST", "url": url, "body": body}


def written(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in lines))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_those_of_the_server(llm: LLM, tmp_path: Path) -> None:
    texts = [f"The film {n} " + "good " * (n % 7) for n in range(40)]
    lines = [request(n, input=text, logits=True) for n, text in enumerate(texts)]
    lines += [
        request(40, "/pooling", input="x", task="classify"),
        {"custom_id": "r41", "method": "GET", "url": "/v1/models"},
    ]
    report = run_batch(llm, written(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl")
    answers = read(tmp_path / "out.jsonl")
    assert (report.rows, report.failed) == (42, 0) and not (tmp_path / "out.jsonl.parts").exists()
    assert [each["custom_id"] for each in answers] == [f"r{n}" for n in range(42)]
    assert len({each["id"] for each in answers}) == 42
    with TestClient(create_app(llm)) as client:
        for line, answer in zip(lines, answers, strict=True):
            direct = client.request(line["method"], line["url"], json=line.get("body"))
            response = answer["response"]
            assert response["status_code"] == direct.status_code == 200 and answer["error"] is None
            assert set(response["body"]) == set(direct.json()) and response["request_id"] == answer["id"]
            if line["url"] == "/classify":
                (found,), (expected,) = response["body"]["data"], direct.json()["data"]
                assert found["label"] == expected["label"]
                assert found["probs"] == pytest.approx(expected["probs"], abs=1e-5)


def test_what_fails_keeps_its_place(llm: LLM, tmp_path: Path) -> None:
    lines: list[Any] = [
        request(0, input=""), "no JSON\n", request(2, input="good"), "[1]\n", {"url": "/classify", "body": {}},
        request(5, "/nowhere"), request(6, "http://elsewhere/classify"), {**request(7), "method": "DELETE"},
        {**request(8), "body": [1]}, request(9, "/pooling", input="x", task="embed", encoding_format="bytes"),
    ]  # fmt: skip
    report = run_batch(llm, written(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl")
    answers = read(tmp_path / "out.jsonl")
    statuses = [each["response"] and each["response"]["status_code"] for each in answers]
    assert statuses == [400, None, 200, None, None, 404, None, None, None, None]
    assert [each["custom_id"] for each in answers] == ["r0", None, "r2", None, None, *(f"r{n}" for n in range(5, 10))]
    assert set(answers[0]["response"]["body"]["error"]) == {"message", "type", "param", "code"}
    told = [each["error"]["message"] for each in answers if each["error"]]
    for message, part in zip(
        told, ["not JSON", "a list", "custom_id", "url", "DELETE", "body", "octet-stream"], strict=True
    ):
        assert part in message
    message = answers[0]["response"]["body"]["error"]["message"]
    assert report.failed == 9 and report.failures[0].endswith(f"{message} (400)")
    assert "There is no route /nowhere. (…)" in report.causes and "…" not in report.causes
    with pytest.raises(JobError, match="more than 0 requests failed"):
        run_batch(llm, tmp_path / "in.jsonl", tmp_path / "other.jsonl", on_error="fail")


def test_what_no_client_could_send_fails_alone(llm: LLM, tmp_path: Path) -> None:
    lines = [
        request(0, input="x", threshold=float("nan")), request(1, input="\ud800"), request(2, "/\x00"), request(3, "/\ud800"),
        request(4, "/" + "a" * 70_000), request(5, input="good"),
    ]  # fmt: skip
    report = run_batch(llm, written(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl")
    answers = read(tmp_path / "out.jsonl")
    assert [each["response"] and each["response"]["status_code"] for each in answers] == [
        400,
        400,
        None,
        None,
        None,
        200,
    ]
    assert report.failed == 5 and all("url cannot be read" in each["error"]["message"] for each in answers[2:5])


def meeting(monkeypatch: pytest.MonkeyPatch, guests: int) -> list[int]:
    """Adds the route /meet, which answers nobody until so many are there; what it was asked."""
    asked: list[int] = []

    def routes(model: Any) -> APIRouter:
        router, all_there = APIRouter(), asyncio.Event()

        @router.post("/meet")
        async def meet(body: dict[str, int]) -> int:
            asked.append(body["number"])
            if len(asked) >= guests:
                all_there.set()
            try:
                await asyncio.wait_for(all_there.wait(), 10)
            finally:
                all_there.set()
            return body["number"]

        return router

    install(monkeypatch, routes)
    return asked


def test_requests_are_in_flight_together_and_stay_in_order(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    meeting(monkeypatch, batch.IN_FLIGHT)
    lines = [request(n, "/meet", number=n) for n in range(2 * batch.IN_FLIGHT)]
    small = ServerSettings(max_buffered_bytes=100)  # of a server: what waits here is no client's
    turns: list[Any] = []
    run_until_complete = asyncio.BaseEventLoop.run_until_complete

    def counted(loop: Any, future: Any) -> Any:
        turns.append(future)
        return run_until_complete(loop, future)

    monkeypatch.setattr(asyncio.BaseEventLoop, "run_until_complete", counted)
    report = run_batch(llm, written(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl", settings=small)
    assert report.failed == 0 and len(turns) < batch.IN_FLIGHT  # what is answered together costs one
    assert report.stats is not None and 0 < report.stats.reading < report.stats.seconds
    assert "float32 on cpu" in report.stats.execution
    assert [each["response"]["body"] for each in read(tmp_path / "out.jsonl")] == [*range(2 * batch.IN_FLIGHT)]


def test_a_job_that_ended_early_goes_on(llm: LLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = meeting(monkeypatch, 1)
    monkeypatch.setattr(batch, "PART", 4)
    source, out = (
        written(tmp_path / "in.jsonl", [request(n, "/meet", number=n) for n in range(10)]),
        tmp_path / "out.jsonl",
    )
    run_batch(llm, source, tmp_path / "whole.jsonl")
    asked.clear()

    def stop(told: JobProgress) -> None:
        assert told.counters() is not None
        if told.rows == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="8 finished rows are kept"):
        run_batch(llm, source, out, on_progress=stop)
    assert not out.exists()
    asked.clear()
    report = run_batch(llm, source, out)
    assert asked == [8, 9] and out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert report.notes == ["8 requests that an earlier run has finished are not run again"]
    with pytest.raises(JobError, match="--overwrite"):
        run_batch(llm, source, out)


def test_a_dead_engine_ends_the_job(llm: LLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(AsyncLLM, "is_alive", False)
    source = written(tmp_path / "in.jsonl", [request(0, input="good")])
    with pytest.raises(JobError, match="engine has died"):
        run_batch(llm, source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_files_of_another_kind(llm: LLM, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [request(0, input="good")])
    with pytest.raises(ConfigError, match="JSON lines"):
        run_batch(llm, source, tmp_path / "out.csv")
    (tmp_path / "in.csv").write_text("custom_id\na\n")
    with pytest.raises(ConfigError, match="JSON lines"):
        run_batch(llm, tmp_path / "in.csv", tmp_path / "out.jsonl")


def test_the_command(run: Callable[..., Result], tmp_path: Path) -> None:  # noqa: F811
    model = tiny.classifier("bert", tmp_path / "critic")
    with gzip.open(tmp_path / "in.jsonl.gz", "wt") as file:
        file.write(json.dumps(request(0, model="sentiment", input="good")) + "\n")
    done = run(
        "run-batch",
        model,
        "-i",
        tmp_path / "in.jsonl.gz",
        "-o",
        tmp_path / "o.jsonl",
        "--served-model-name",
        "sentiment",
        "--stats",
    )
    assert done.exit_code == 0 and "1 requests in" in done.stdout and " forwards, the device busy" in done.stdout
    (answer,) = read(tmp_path / "o.jsonl")
    assert answer["response"]["body"]["model"] == "sentiment"
    bad = run("run-batch", model, "-i", written(tmp_path / "bad.jsonl", [request(0, input=3)]))
    assert bad.exit_code == 3 and json.loads(bad.stdout)["response"]["status_code"] == 400
    assert "failed" in bad.stderr

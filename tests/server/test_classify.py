from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.models import tiny
from vllm_cls import AsyncLLM
from vllm_cls.server import create_app


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsyncLLM]:
    folder: Path = tiny.classifier("bert", tmp_path_factory.mktemp("server") / "bert")
    llm = AsyncLLM(str(folder), device="cpu")
    yield llm
    llm.close()


def test_classify(llm: AsyncLLM) -> None:
    client = TestClient(create_app(llm))
    answer = client.post("/classify", json={"input": ["good", "bad"]})
    assert answer.status_code == 200
    expected = [each.outputs.probs for each in llm.llm.classify(["good", "bad"])]
    assert [each["probs"] for each in answer.json()["data"]] == [pytest.approx(each) for each in expected]
    assert client.post("/classify", json={"inptu": "x"}).json()["error"]["param"] == "inptu"
    assert client.get("/health").status_code == 200
    assert client.get("/nowhere").json()["error"]["code"] == 404

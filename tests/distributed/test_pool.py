"""What a cluster's workers need without a cluster: parts in flight, shares, batches, and errors of the command."""

from __future__ import annotations

import importlib.util
import json
import socket
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pandas
import pyarrow as pa
import pytest
from click.testing import Result

from tests.cli.conftest import run  # noqa: F401  # a fixture
from tests.jobs.fake import FakeLLM
from tests.models import tiny
from vllm_cls import LLM, ConfigError, JobError
from vllm_cls.distributed import BatchClassifier, RayWorkers
from vllm_cls.distributed.cluster import Share, connected, share_of
from vllm_cls.jobs.classify import classify_file
from vllm_cls.jobs.options import JobOptions
from vllm_cls.jobs.pipeline.answers import RowWorker, WorkerPool
from vllm_cls.jobs.report.progress import JobProgress
from vllm_cls.jobs.resume import parts
from vllm_cls.jobs.resume.parts import Answered
from vllm_cls.jobs.rows import InputRow

Run = Callable[..., Result]


class Pool(WorkerPool):
    """Computes a part when it is given, as other processes would; `given` has the first row of each."""

    model = "a-model"
    counters = None

    def __init__(self) -> None:
        self.given: list[int] = []
        self.ahead = 2

    @contextmanager
    def at_work(self, options: JobOptions, llm_options: Mapping[str, Any]) -> Iterator[Pool]:
        self._worker = RowWorker(FakeLLM(), options)  # type: ignore[arg-type]
        self.plan, self.fingerprint = self._worker.plan, self._worker.fingerprint
        yield self

    def description(self) -> str:
        return "elsewhere"

    def compute(self, rows: Iterator[InputRow]) -> Generator[Answered, None, None]:
        found = list(self._worker.compute(rows))
        self.given.append(found[0].row.number)
        return (each for each in found)


def test_parts_in_flight_are_bounded_and_stay_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 4)
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"id": n, "text": "good" if n % 5 else ""}) + "\n" for n in range(30)))
    classify_file(FakeLLM(), source, tmp_path / "here.jsonl")
    pool, seen = Pool(), []

    def stop(told: JobProgress) -> None:
        seen.append((told.rows, len(pool.given)))
        if told.rows == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="8 finished rows"):
        classify_file(pool, source, out, on_progress=stop)
    assert seen[:2] == [(0, 0), (1, 3)] and seen[-1] == (9, 5)
    pool = Pool()
    classify_file(pool, source, out)
    assert pool.given == [9, 13, 17, 21, 25, 29]
    assert out.read_bytes() == (tmp_path / "here.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "wanted"),
    [
        ([{"CPU": 8}], None, "auto", Share(1, 8, 0)),
        ([{"CPU": 8}, {"CPU": 4}, {"memory": 1}], None, "auto", Share(2, 4, 0)),
        ([{"CPU": 8}], 3, "auto", Share(3, 2, 0)),
        ([{"CPU": 8}, {"CPU": 2}], 3, "auto", Share(3, 2, 0)),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 1}], None, "auto", Share(3, 1, 1)),
        ([{"CPU": 8, "GPU": 2}], 1, "auto", Share(1, 1, 1)),
        ([{"CPU": 8, "GPU": 2}], 4, "cpu", Share(4, 2, 0)),
    ],
)
def test_shares(nodes: list[dict[str, float]], workers: int | None, device: str, wanted: Share) -> None:
    assert share_of(nodes, workers, device) == wanted


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "message"),
    [
        ([{"CPU": 2}], 3, "auto", "3 workers with 1 CPU each do not fit: the cluster has 2 CPUs"),
        ([{"CPU": 0.9}], None, "auto", "1 worker with 1 CPU each do not fit: the cluster has 0 CPUs"),
        ([{"CPU": 2}], None, "cuda", "1 worker with a GPU and a CPU each do not fit: the cluster has 0 GPUs"),
        ([{"CPU": 8, "GPU": 1}], 2, "auto", "2 workers with a GPU and a CPU each do not fit: the cluster has 1 GPUs"),
    ],
)
def test_a_cluster_that_is_too_small(nodes: Any, workers: int | None, device: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        share_of(nodes, workers, device)


def test_without_ray(monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path) -> None:  # noqa: F811
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'vllm-cls\[ray\]'"):
        RayWorkers("a-model")
    (tmp_path / "in.txt").write_text("good\n")
    result = run("classify", "a-model", tmp_path / "in.txt", "--engine", "ray")
    assert result.exit_code == 1 and "vllm-cls[ray]" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a-model", "in.txt", "--num-workers", "2"], "--engine ray"),
        (["a-model", "in.txt", "--ray-address", "x:1"], "--engine ray"),
        (["in.txt", "--engine", "ray", "--server", "http://127.0.0.1:1"], "leave one out"),
    ],
)
def test_wrong_usage(run: Run, arguments: list[str], message: str) -> None:  # noqa: F811
    result = run("classify", *arguments)
    assert result.exit_code == 2 and message in result.stderr


def test_an_address_where_nothing_listens_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = mock.Mock()
    monkeypatch.setattr(pytest.importorskip("ray"), "init", begun)
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        for given in (address, "ray://" + address, "127.0.0.1:70000"):
            with pytest.raises(JobError, match=f"no Ray cluster answers at '{given}'"), connected(given):
                pass
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(JobError, match=f"no Ray cluster answers at '{address}'"), connected(None):
            pass
    assert not begun.called


def test_a_worker_there_must_be() -> None:
    with pytest.raises(ConfigError, match="num_workers=0"):
        RayWorkers("a-model", 0)


def test_batches_of_a_pipeline(tmp_path: Path) -> None:
    """A table, a frame and a dict of arrays, each back in its form."""
    model = tiny.classifier("bert", tmp_path / "critic")
    texts = ["good", None, "the film"]
    with LLM(str(model)) as llm:
        wanted = [None if text is None else llm.classify(text)[0].outputs for text in texts]
    classifier = BatchClassifier(model, top_k=1)
    table = pa.table({"text": texts, "label": [1, 2, 3]})
    arrays = {name: table.column(name).to_numpy() for name in table.column_names}
    for batch in (table, table.to_pandas(), arrays):
        found = classifier(batch)
        assert type(found) is type(batch)
        frame = (
            found.to_pandas()
            if isinstance(found, pa.Table)
            else pandas.DataFrame({k: list(v) for k, v in found.items()})
        )
        assert list(frame.columns[:2]) == ["text", "input_label"] and list(frame["input_label"]) == [1, 2, 3]
        assert list(frame.columns[-2:]) == ["truncated", "error"]
        for row, output in zip(frame.to_dict("records"), wanted, strict=True):
            if output is None:
                assert not isinstance(row["label"], str) and "null" in row["error"]
                continue
            assert row["label"] == output.label and not isinstance(row["error"], str)
            assert list(row["probs"]) == pytest.approx(output.probs, abs=1e-6)
    assert classifier(table).schema.field("probs").type == pa.list_(pa.float64())
    assert classifier(table.slice(1, 1)).schema == classifier(table).schema

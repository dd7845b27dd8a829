"""On a real Ray cluster of this machine: jobs, Ray Data and Ray Serve."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest

from tests.models import tiny
from vllm_cls import LLM, ConfigError, JobError, ModelError
from vllm_cls.distributed import BatchClassifier, RayWorkers
from vllm_cls.distributed.serving import serve_on_ray
from vllm_cls.jobs.classify import classify_file
from vllm_cls.jobs.report.progress import JobProgress
from vllm_cls.jobs.resume import parts
from vllm_cls.server import ServerSettings, open_app

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
ROWS = 600


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.classifier("bert", tmp_path_factory.mktemp("ray") / "critic", max_position_embeddings=64)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 32)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    texts = ["" if n % 50 == 7 else f"the film number {n} was " + "good bad " * (n % 9) for n in range(ROWS)]
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts))
    )
    return tmp_path / "in.jsonl"


def worker_processes() -> list[int]:
    """Ours, and of nobody else on this machine."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if b"ray::_Actor" in (folder / "cmdline").read_bytes() and descends(int(folder.name)):
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return found


def descends(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return False


def test_a_worker_that_is_killed_is_replaced(model: Path, rows: Path, tmp_path: Path) -> None:
    """No row is lost or doubled: the bytes are those of the same job here, where it was begun, and interrupted."""
    killed: list[int] = []

    def stop(told: JobProgress) -> None:
        if told.rows == 100:
            raise KeyboardInterrupt

    def kill(told: JobProgress) -> None:
        if told.rows == 150:
            killed.extend(worker_processes())
            os.kill(killed[0], signal.SIGKILL)

    with LLM(str(model), num_threads=1) as llm:
        local = classify_file(llm, rows, tmp_path / "here.jsonl")
    with pytest.raises(KeyboardInterrupt, match="96 finished rows"):
        classify_file(str(model), rows, tmp_path / "ray.jsonl", on_progress=stop, num_threads=1)
    report = classify_file(RayWorkers(model, 2), rows, tmp_path / "ray.jsonl", on_progress=kill, num_threads=1)
    assert len(killed) == 2 and killed[0] not in worker_processes()
    assert (report.rows, report.failed) == (local.rows, local.failed) == (ROWS, 12)
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
    assert any("96 rows that an earlier run has finished" in note for note in report.notes)


def test_no_room_is_said(model: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"3 workers with 1 CPU each do not fit: the cluster has 2 CPUs"):
        classify_file(RayWorkers(model, 3), rows, tmp_path / "out.jsonl")
    with pytest.raises(JobError, match="the cluster has 0 GPUs"):
        classify_file(RayWorkers(model, 1), rows, tmp_path / "out.jsonl", device="cuda")
    held = ray.util.placement_group([{"CPU": 1}])
    ray.get(held.ready(), timeout=20)
    try:
        with pytest.raises(JobError, match=r"no room for 2 workers with 1 CPU each within 1 s: free are 1 CPU"):
            classify_file(RayWorkers(model, 2, seconds_for_room=1), rows, tmp_path / "out.jsonl")
    finally:
        ray.util.remove_placement_group(held)


def test_an_error_of_a_worker_is_that_of_the_job(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty"):
        classify_file(RayWorkers(tmp_path / "empty", 1), rows, tmp_path / "out.jsonl")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ray.exceptions.ObjectStoreFullError("no room"), "the Ray cluster failed: ObjectStoreFullError: no room"),
        (ray.exceptions.OutOfMemoryError("killed"), r"a worker died, .*\(killed\); is its memory enough"),
    ],
)
def test_an_error_of_the_cluster_is_told(
    error: Exception, message: str, model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "get", mock.Mock(side_effect=error))
    with pytest.raises(JobError, match=message):
        classify_file(RayWorkers(model, 1), rows, tmp_path / "out.jsonl")


def test_a_pipeline_of_ray_data(model: Path) -> None:
    import ray.data

    texts = [f"the film {n} was good" for n in range(40)]
    found = (
        ray.data.from_items([{"text": text, "label": n} for n, text in enumerate(texts)])
        .map_batches(
            BatchClassifier,
            fn_constructor_kwargs={"model": str(model), "num_threads": 1, "device": "cpu"},
            concurrency=1,
            num_cpus=1,
            batch_size=16,
        )
        .take_all()
    )
    with LLM(str(model), num_threads=1) as llm:
        wanted = {text: output.outputs for text, output in zip(texts, llm.classify(texts), strict=True)}
    assert sorted(row["input_label"] for row in found) == [*range(40)]
    for row in found:
        assert row["label"] == wanted[row["text"]].label and row["error"] is None and row["truncated"] is False
        assert list(row["probs"]) == pytest.approx(wanted[row["text"]].probs, abs=1e-6)


def test_a_server_on_the_cluster(model: Path) -> None:
    settings = ServerSettings(served_model_names=("critic",), api_keys=("k",), root_path="/critic")

    def open_telling(model: str, **options: Any) -> Any:  # sent to the replicas as it is
        app = open_app(model, settings, **options)
        app.get("/process")(lambda: __import__("os").getpid())
        return app

    with (
        serve_on_ray(model, open_telling, num_replicas=2, port=8027, root_path="/critic"),
        httpx.Client(base_url="http://127.0.0.1:8027/critic", timeout=30) as client,
    ):
        for path in ("/critic", "critic"):
            with (
                pytest.raises((JobError, ConfigError), match="under /critic: end that one|must begin with a slash"),
                serve_on_ray(model, open_app, port=8027, root_path=path),
            ):
                pass
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda _: client.get("/process", headers={"Authorization": "Bearer k"}), range(64))
        assert len({each.json() for each in answers}) == 2  # both replicas answer
        assert client.get("/ready").status_code == 200
        assert client.post("/classify", json={"input": "good"}).status_code == 401
        answer = client.post(
            "/classify", json={"input": "good", "model": "critic"}, headers={"Authorization": "Bearer k"}
        )
        with LLM(str(model), num_threads=2) as llm:
            (output,) = llm.classify("good")
        assert answer.json()["data"][0]["probs"] == pytest.approx(output.outputs.probs, abs=1e-5)
        big = client.post("/classify", json={"input": "x" * (9 << 20)}, headers={"Authorization": "Bearer k"})
        assert big.status_code == 413
    with (  # Serve itself runs on
        pytest.raises(JobError, match=r"Ray Serve runs on this cluster already, with .*port 8027"),
        serve_on_ray(model, open_app, port=8028),
    ):
        pass


def test_a_port_that_another_has(model: Path) -> None:
    ray.serve.shutdown()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with (
            pytest.raises(JobError, match=r"Ray Serve does not start: .*bind"),
            serve_on_ray(model, open_app, port=other.getsockname()[1]),
        ):
            pass

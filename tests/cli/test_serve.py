"""`vcls serve`: its options reach the model and the server; the server itself is tested in tests/server."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from starlette.testclient import TestClient

import vllm_cls.async_llm
import vllm_cls.server
from tests.model.test_lora import train
from tests.models import tiny
from tests.server.certificates import Certificate, certificate  # noqa: F401  # a fixture
from vllm_cls import LLM, ModelError
from vllm_cls.server import ServerSettings
from vllm_cls.server.transport import lifecycle, listening

Run = Callable[..., Result]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command gives to the model, the app and the server, none of which runs."""
    seen: dict[str, Any] = {}

    def model(name: str, **options: Any) -> Any:
        seen.update(model=name, options=options)
        return SimpleNamespace(is_alive=True, close=lambda: seen.update(closed=True))

    def run(app: Any, settings: ServerSettings, listener: Any, is_alive: Any, tls: Any) -> int:
        seen.update(address=listener.getsockname(), tls=tls)
        listener.close()
        return 0

    monkeypatch.setattr(vllm_cls.async_llm, "AsyncLLM", model)
    monkeypatch.setattr(
        vllm_cls.server, "create_app", lambda llm, settings: seen.update(settings=settings), raising=False
    )
    monkeypatch.setattr(lifecycle, "run", run)
    return seen


def test_options_reach_the_model_and_the_server(run: Run, seen: dict[str, Any], tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages }}")
    keys = tmp_path / "keys"
    keys.write_text("scrape\n")
    result = run(
        "serve", "model", "--port", "0", "--served-model-name", "a,b", "--threshold", "0.3", "--root-path", "/x",
        "--metrics-key-file", keys,
        "--trust-request-chat-template", "--max-num-seqs", "3", "--max-queued-requests", "4", "--max-queued-tokens", "5",
        "--max-inputs", "6", "--api-key", "k", "--lora-modules", "c=d", "--lora-modules", "e=f", "--max-lora-rank", "7",
        "--allowed-media-domains", "a.test,b.test", "--allowed-media-domains", "c.test:8080",
        "--allowed-local-media-path", tmp_path, "--limit-mm-per-prompt", '{"image": 4}', "--trust-request-mm-kwargs",
        "--chat-template", template, "--score-template", r"{{ query }}\n{{ document }}", "--no-template", "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    settings: ServerSettings = seen["settings"]
    assert settings.served_model_names == ("a", "b") and settings.lora_modules == {"c": "d", "e": "f"}
    assert (settings.threshold, settings.root_path, settings.trust_request_chat_template) == (0.3, "/x", True)
    assert (settings.max_inputs, settings.api_keys, settings.metrics_keys) == (6, ("k",), ("scrape",))
    assert settings.allowed_media_domains == ("a.test", "b.test", "c.test:8080")
    assert settings.allowed_local_media_path == str(tmp_path) and settings.limit_mm_per_prompt == {"image": 4}
    assert settings.trust_request_mm_kwargs and "limit_mm_per_prompt" not in seen["options"]
    expected = {
        "max_num_seqs": 3,
        "max_queued_requests": 4,
        "max_queued_tokens": 5,
        "enable_lora": True,
        "max_loras": 2,
        "max_lora_rank": 7,
        "chat_template": "{{ messages }}",
        "score_template": "{{ query }}\n{{ document }}",
        "use_template": False,
        "device": "cpu",
    }
    assert seen["model"] == "model" and {name: seen["options"][name] for name in expected} == expected
    host, port = seen["address"]
    assert host == "127.0.0.1" and port > 0
    assert f"serving model at http://127.0.0.1:{port}" in result.stderr and seen["closed"]


def test_adapters_are_merged_or_served_by_name(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = tiny.classifier("bert", tmp_path / "base")
    first, second = (train(base, tmp_path / f"{n}", ["query", "value"], n, seed=n) for n in (2, 4))
    asked: dict[str, Any] = {}

    def answered(app: Any, settings: ServerSettings, listener: Any, is_alive: Any, tls: Any) -> int:
        listener.close()
        with TestClient(app, base_url="http://127.0.0.1") as client:
            for name in asked:
                (found,) = client.post("/classify", json={"input": "The film", **name_of(name)}).json()["data"]
                asked[name] = found["probs"]
        return 0

    def name_of(name: str) -> dict[str, str]:
        return {} if name == "own" else {"model": name}

    def wanted(**options: Any) -> Any:
        with LLM(str(base), **options) as llm:
            return pytest.approx(llm.classify("The film")[0].outputs.probs, abs=1e-5)

    monkeypatch.setattr(lifecycle, "run", answered)
    asked["own"] = None
    run("serve", base, "--port", "0", "--lora", first)
    assert len(asked["own"]) == 2 and asked["own"] == wanted(lora=str(first))
    asked |= {"own": None, "two": None, "four": None}
    run("serve", base, "--port", "0", "--lora-modules", f"two={first}", "--lora-modules", f"four={second}")
    assert asked["own"] == wanted()
    assert (asked["two"], asked["four"]) == (wanted(lora=str(first)), wanted(lora=str(second)))


def test_a_unix_socket(run: Run, seen: dict[str, Any], tmp_path: Path) -> None:
    result = run("serve", "model", "--uds", tmp_path / "s")
    assert result.exit_code == 0 and seen["address"] == str(tmp_path / "s")
    assert "enable_lora" not in seen["options"]
    with socket.socket(socket.AF_UNIX) as running:
        running.bind(str(tmp_path / "taken"))
        running.listen()
        taken = run("serve", "model", "--uds", tmp_path / "taken")
    assert taken.exit_code == 1 and "--uds" in taken.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lora-modules", "a"], "NAME=PATH"),
        (["--lora-modules", "a=b", "--lora-modules", "a=c"], "'a' twice"),
        (["--threshold", "2"], "0<=x<=1"),
        (["--port", "70000"], "65535"),
        (["--ssl-certfile", "/no/such"], "/no/such"),
    ],
)
def test_wrong_usage(run: Run, seen: dict[str, Any], arguments: list[str], message: str) -> None:
    result = run("serve", "model", *arguments)
    assert result.exit_code == 2 and message in result.stderr


def test_the_help_is_in_groups(run: Run) -> None:
    shown = run("serve", "--help").output
    places = [shown.index(f"\n{title}:\n") for title in ("Server", "Guards", "Queue", "Adapters", "Options")]
    assert places == sorted(places)
    assert "vcls serve my-classifier --port 9000" in shown
    assert shown.index("--host") < places[1] < shown.index("--api-key") < places[2]


def test_keys_for_metrics_need_keys(run: Run, seen: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("scrape")
    result = run("serve", "model", "--port", "0", "--metrics-key-file", tmp_path / "keys")
    assert result.exit_code != 0 and "--api-key-file" in result.stderr and "settings" not in seen


def test_a_model_that_cannot_be_opened_leaves_no_socket_open(
    run: Run, seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    listeners: list[socket.socket] = []
    listen = listening.listen

    def kept(host: str, port: int) -> socket.socket:
        listeners.append(listen(host, port))
        return listeners[-1]

    def model(name: str, **options: Any) -> Any:
        raise ModelError(f"{name} cannot be opened.")

    monkeypatch.setattr(listening, "listen", kept)
    monkeypatch.setattr(vllm_cls.async_llm, "AsyncLLM", model)
    result = run("serve", "model", "--port", "0")
    assert result.exit_code == 1 and "model cannot be opened" in result.stderr
    assert [each.fileno() for each in listeners] == [-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--allowed-local-media-path", "/no/such"], "there is no folder '/no/such'"),
        (["--limit-mm-per-prompt", "image=4"], "is not JSON"),
    ],
)
def test_wrong_options_of_media(run: Run, seen: dict[str, Any], arguments: list[str], message: str) -> None:
    result = run("serve", "model", "--port", "0", *arguments)
    assert result.exit_code == 2 and message in result.stderr


def test_https(run: Run, seen: dict[str, Any], certificate: Certificate) -> None:  # noqa: F811
    result = run("serve", "model", "--port", "0", "--ssl-certfile", certificate.cert, "--ssl-keyfile", certificate.key)
    assert result.exit_code == 0 and seen["tls"] is not None
    assert f"serving model at https://127.0.0.1:{seen['address'][1]}" in result.stderr
    half = run("serve", "model", "--port", "0", "--ssl-keyfile", certificate.key)
    assert half.exit_code == 1 and "--ssl-certfile" in half.stderr


def test_replicas_on_a_cluster(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    @contextmanager
    def serve_on_ray(model: str, open_app: Any, **options: Any) -> Iterator[None]:
        asked.update(model=model, settings=open_app.keywords["settings"], options=options)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            yield
        finally:
            asked.update(ended=True)

    monkeypatch.setattr("vllm_cls.distributed.serving.serve_on_ray", serve_on_ray)
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        result = run("serve", "model", "--engine", "ray", "--num-replicas", "3", "--port", "9", "--api-key", "k")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert result.exit_code == 0 and "serving model at http://127.0.0.1:9" in result.stderr and asked["ended"]
    assert asked["settings"].api_keys == ("k",)
    wanted = {"num_replicas": 3, "address": None, "host": "127.0.0.1", "port": 9, "max_num_seqs": 256}
    assert {name: asked["options"][name] for name in wanted} == wanted
    for arguments in (["--num-replicas", "2"], ["--engine", "ray", "--uds", "s"]):
        assert run("serve", "model", *arguments).exit_code == 2

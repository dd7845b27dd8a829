"""Keys and hosts: closed unless open, whatever a request looks like."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from vllm_cls.errors import ConfigError
from vllm_cls.server.middleware.auth import OPEN_PATHS, collect_keys, host_name, names_for
from vllm_cls.server.settings import ServerSettings

from ..bare import app_with, ask, message_of

KEYS = ServerSettings(api_keys=("first-key", "second-key"))


def bearer(key: str, scheme: str = "Bearer") -> dict[str, str]:
    return {"Authorization": f"{scheme} {key}"}


def test_any_key_opens_and_nothing_else_does() -> None:
    app = app_with(KEYS)
    for key in KEYS.api_keys:
        assert ask(app, "GET", "/items/1", headers=bearer(key)).status_code == 200
    assert ask(app, "GET", "/items/1", headers=bearer("first-key", "bearer")).status_code == 200
    for headers in ({}, bearer(""), bearer("first-ke"), bearer("first-key2"), bearer("first-key", "Basic")):
        answer = ask(app, "GET", "/items/1", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert "Authorization: Bearer" in message_of(answer)
    twice = [("Authorization", "Bearer first-key"), ("Authorization", "Bearer nothing")]
    assert ask(app, "GET", "/items/1", headers=twice).status_code == 401


def test_bytes_beyond_ascii_are_no_key() -> None:
    assert ask(app_with(KEYS), "GET", "/items/1", headers={"Authorization": b"Bearer \xff\xfe"}).status_code == 401


def test_without_keys_all_is_open() -> None:
    assert ask(app_with(), "GET", "/items/1").status_code == 200


@pytest.mark.parametrize(
    "path", ["/health/", "//health", "/health/../items/1", "/HEALTH", "/health%2f..%2fitems/1", "/health;x", "/nowhere"]
)
def test_only_the_exact_open_paths_are_open(path: str) -> None:
    assert ask(app_with(KEYS), "GET", f"http://localhost{path}").status_code == 401


async def _chunks() -> AsyncIterator[bytes]:
    yield b" "


def test_open_paths_take_no_body_without_a_key() -> None:
    """Else strangers could fill the memory that all bodies share, and keep those with keys out."""
    app = app_with(KEYS)
    for method in ("GET", "POST"):
        assert ask(app, method, "/health", content=b" ").status_code == 401
        assert ask(app, method, "/health", content=_chunks()).status_code == 401  # in chunks
        assert ask(app, method, "/health", content=b"", headers={"Content-Length": "0"}).status_code != 401
    assert ask(app, "POST", "/health", content=b"1", headers=bearer("first-key")).status_code != 401


def test_the_open_paths_are_those_of_the_contract() -> None:
    assert sorted(OPEN_PATHS) == ["/", "/health", "/ping", "/ready"]
    assert ask(app_with(KEYS), "GET", "/health").status_code == 200
    assert ask(app_with(KEYS), "GET", "/%68ealth").status_code == 200  # decoded: it is that route


def test_what_is_added_later_is_guarded_too(tmp_path: Path) -> None:
    """Routers, mounts, files and sockets of others, which know nothing of keys."""
    app = app_with(KEYS)
    (tmp_path / "file.txt").write_text("secret")
    router = APIRouter()
    router.add_api_route("/theirs", lambda: "secret")
    app.include_router(router)
    app.mount("/files", StaticFiles(directory=tmp_path))
    app.mount("/sub", FastAPI(routes=[Mount("/health", app=FastAPI())]))

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    paths = ["/theirs", "/files/file.txt", "/sub/docs", "/sub/health", "/sub/health/docs", "/docs", "/openapi.json"]
    for path in paths:
        assert ask(app, "GET", path).status_code == 401, path
    assert ask(app, "GET", "/theirs", headers=bearer("first-key")).status_code == 200
    client = TestClient(app, base_url="http://localhost")
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/socket"):
        pass
    with client.websocket_connect("/socket", headers=bearer("first-key")):
        pass


def test_a_mounted_app_decides_on_its_own_paths() -> None:
    outer = FastAPI()
    outer.mount("/cls", app_with(KEYS))
    assert ask(outer, "GET", "/cls/health").status_code == 200
    assert ask(outer, "GET", "/cls/items/1").status_code == 401
    assert ask(outer, "GET", "/cls/items/1", headers=bearer("first-key")).status_code == 200


def test_a_host_that_is_not_ours() -> None:
    app = app_with(ServerSettings(allowed_hosts=names_for("127.0.0.1")))
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000"):
        assert ask(app, "GET", "/health", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "evil@localhost", ""):
        answer = ask(app, "GET", "/health", headers={"Host": host})
        assert answer.status_code == 400, host
        assert "--allowed-host" in message_of(answer)
    assert names_for("0.0.0.0") == ()
    assert ask(app_with(), "GET", "/health", headers={"Host": "any.example"}).status_code == 200


@pytest.mark.parametrize(("value", "name"), [("a:1", "a"), ("[::1]:80", "::1"), ("[::1]", "::1"), (None, "")])
def test_host_name(value: str | None, name: str) -> None:
    assert host_name(value) == name


def test_pages_of_other_origins_may_not_read_unless_allowed() -> None:
    page = {"Origin": "https://page.example"}
    assert "access-control-allow-origin" not in ask(app_with(), "GET", "/health", headers=page).headers
    app = app_with(ServerSettings(cors_origins=("https://page.example",), api_keys=("key",)))
    answer = ask(app, "GET", "/items/1", headers=page)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, "https://page.example")
    preflight = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert ask(app, "OPTIONS", "/size", headers=preflight).status_code == 200
    other = ask(app, "OPTIONS", "/size", headers={**preflight, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_keys_are_collected(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\none\n\ntwo\n")
    assert collect_keys(["zero", "one"], file, {"VCLS_API_KEY": "three"}) == ("zero", "one", "three", "two")
    assert collect_keys([], None, {}) == ()


@pytest.mark.parametrize(
    ("given", "text", "environment"),
    [([""], None, {}), (["a b"], None, {}), (["é"], None, {}), ([], "# none\n", {}), ([], None, {"VCLS_API_KEY": ""})],
)
def test_a_bad_key_never_starts_an_open_server(
    given: list[str], text: str | None, environment: dict[str, Any], tmp_path: Path
) -> None:
    file = None
    if text is not None:
        file = tmp_path / "keys"
        file.write_text(text)
    with pytest.raises(ConfigError, match="key"):
        collect_keys(given, file, environment)

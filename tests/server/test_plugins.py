"""Routes of a third party stand beside our own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter
from starlette.testclient import TestClient

import vllm_cls.server.app
from vllm_cls import LLM, PluginError, hookimpl
from vllm_cls.registry import PluginInfo, Registry
from vllm_cls.server import create_app


def install(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    module = SimpleNamespace(vcls_server_routes=hookimpl(function))
    registry = Registry([PluginInfo("theirs", "a-distribution", "1.0", "module", module)])
    monkeypatch.setattr(vllm_cls.server.app, "registry", lambda: registry)


def test_a_route_of_a_plugin(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def routes(model: Any) -> APIRouter:
        router = APIRouter()

        @router.get("/labels")
        async def labels() -> list[str]:
            return list(model.llm.llm.id2label.values())

        return router

    install(monkeypatch, routes)
    with TestClient(create_app(llm)) as client:
        assert client.get("/labels").json() == ["bad", "good", "so-so"]
        assert "/labels" in client.get("/openapi.json").json()["paths"]
        assert client.post("/classify", json={"input": "good"}).status_code == 200


def test_a_plugin_without_routes_for_this_model(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda model: None)
    create_app(llm)


def test_a_plugin_that_fails_is_named(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def routes(model: Any) -> APIRouter:
        raise RuntimeError("broken")

    install(monkeypatch, routes)
    with pytest.raises(PluginError, match="'theirs' failed in vcls_server_routes"):
        create_app(llm)


def test_what_a_plugins_route_does_not_take_has_the_one_form_of_errors(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def routes(model: Any) -> APIRouter:
        router = APIRouter()

        @router.get("/count")
        async def count(number: int) -> int:
            return number

        return router

    install(monkeypatch, routes)
    with TestClient(create_app(llm)) as client:
        assert client.get("/count", params={"number": 3}).json() == 3
        answer = client.get("/count", params={"number": "secret"})
        assert answer.status_code == 400 and "secret" not in answer.text
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["param"] == "number"

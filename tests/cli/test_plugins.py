from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

import vllm_cls.registry
from vllm_cls.architecture import Architecture
from vllm_cls.cli import main
from vllm_cls.hookspecs import hookimpl
from vllm_cls.registry import PluginInfo, Registry

Run = Callable[..., Result]


def plugin(**hooks: Callable[..., Any]) -> types.ModuleType:
    module = types.ModuleType("made_here")
    for name, function in hooks.items():
        function.__name__ = name
        setattr(module, name, hookimpl(function))
    return module


class Toy(Architecture):
    name = "toy"


GOOD = PluginInfo(
    "good",
    "vcls-good",
    "1.2",
    "good",
    plugin(vcls_architectures=lambda: [Toy()], vcls_readers=lambda: {"orc": open, "avro": open}),
)
QUIET = PluginInfo("quiet", "vcls-quiet", "0.1", "quiet", plugin())
WRITER = PluginInfo("writer", "vcls-writer", "0.1", "writer", plugin(vcls_write_checkpoint=lambda plan: None))
UNLOADED = PluginInfo("unloaded", "vcls-unloaded", "0.1", "unloaded.module", error="ImportError: no")
FAILING = PluginInfo("failing", "vcls-failing", "3", "failing", plugin(vcls_activations=lambda: 1 / 0))


def install(monkeypatch: pytest.MonkeyPatch, *plugins: PluginInfo) -> None:
    found = Registry(plugins)
    monkeypatch.setattr(vllm_cls.registry, "registry", lambda: found)


def test_list_shows_what_each_registers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, GOOD, QUIET, WRITER, UNLOADED, FAILING)
    result = run("plugins", "list")
    assert result.exit_code == 0
    table, commands = result.stdout.strip().split("\n\n")
    assert [line.split(maxsplit=3) for line in table.splitlines()] == [
        ["plugin", "from", "registers"],
        ["good", "vcls-good", "1.2", "architectures: toy; readers: orc, avro"],
        ["quiet", "vcls-quiet", "0.1", "nothing"],
        ["writer", "vcls-writer", "0.1", "write checkpoint"],
        ["unloaded", "vcls-unloaded", "0.1", "BROKEN"],
        ["failing", "vcls-failing", "3", "BROKEN"],
    ]
    assert ["classify", "vllm-cls"] in [line.split() for line in commands.splitlines()]


def test_check_is_content_with_plugins_that_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, GOOD, QUIET, WRITER)
    result = run("plugins", "check")
    assert (result.exit_code, result.stdout) == (0, "all plugins and commands load\n")


def test_check_names_every_broken_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, GOOD, UNLOADED, FAILING)
    result = run("plugins", "check")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "broken: unloaded (vcls-unloaded 0.1, unloaded.module): ImportError: no",
        "broken: failing (vcls-failing 3, failing): vcls_activations failed: ZeroDivisionError: division by zero",
    ]


def test_check_names_a_head_that_is_a_function(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    old = PluginInfo("old", "vcls-old", "1", "old", plugin(vcls_head_sources=lambda: {"mine": print}))
    install(monkeypatch, old)
    result = run("plugins", "check")
    assert result.exit_code == 1
    assert "broken: old (vcls-old 1, old): it gives the head 'mine' as a builtin_function_or_method" in result.stderr


def test_check_loads_the_commands_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from .test_main import entry

    install(monkeypatch, GOOD)
    own = main.entries()
    monkeypatch.setattr(
        main, "entries", lambda: {**own, "broken": [entry("broken", "no_such_module:x", "vcls-broken")]}
    )
    result = run("plugins", "check")
    assert result.exit_code == 1
    assert "broken: the command 'broken' of vcls-broken" in result.stderr

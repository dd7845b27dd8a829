"""Plugins: found through entry points, the most specific wins, broken ones harm nobody."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import vllm_cls
import vllm_cls.adapters
import vllm_cls.cli
import vllm_cls.plugins
from vllm_cls import Architecture, ModelError, PluginError, hookimpl
from vllm_cls.registry import HOOKS, PluginInfo, Registry, discover

from .test_public_names import imports


def plugin(name: str, *architectures: Architecture, **hooks: Any) -> PluginInfo:
    module = SimpleNamespace(vcls_architectures=hookimpl(lambda: list(architectures)), **hooks)
    return PluginInfo(name, "a-distribution", "1.0", "module", module)


def architecture(name: str, **attributes: Any) -> Architecture:
    made = Architecture()
    for key, value in {"name": name, **attributes}.items():
        setattr(made, key, value)
    return made


def test_built_in_plugins_come_through_entry_points() -> None:
    found = {info.name: info for info in discover()}
    assert {"ernie", "gpt2", "qwen2", "qwen2_5_vl", "encoders", "generic"} <= set(found)
    ours = {info.name for info in found.values() if info.distribution == "vllm-cls"}
    declared = [*entry_points(group="vllm_cls"), *entry_points(group="vllm_cls.heads")]
    assert ours == {each.name for each in declared if each.dist and each.dist.name == "vllm-cls"}
    assert [found[name].error for name in ours] == [None] * len(ours)


def test_the_core_imports_no_plugin() -> None:
    root = Path(vllm_cls.__file__).parent
    files = list(root.rglob("*.py"))
    assert len(files) > 100
    for path in files:
        package = ".".join(path.relative_to(root.parent).parent.parts)
        imported = {whole for _, whole in imports(ast.parse(path.read_text(encoding="utf-8")), package)}
        wrong = [each for each in imported if re.match(r"vllm_cls\.(plugins|adapters|cli)\b", each)]
        assert not wrong, path


def test_the_most_specific_wins() -> None:
    generic = architecture("generic", generic=True)
    by_type = architecture("by_type", model_types=("bert",))
    by_class = architecture("by_class", class_names=("OwnForSequenceClassification",))
    registry = Registry([plugin("a", generic), plugin("b", by_type), plugin("c", by_class)])
    assert registry.find("gpt2").name == "generic"
    assert registry.find("bert").name == "by_type"
    assert registry.find("bert", ["OwnForSequenceClassification"]).name == "by_class"
    assert registry.find("bert", plugin="a").name == "generic"


def test_a_tie_names_both_and_a_name_decides() -> None:
    one, two = architecture("one", model_types=("bert",)), architecture("two", model_types=("bert",))
    registry = Registry([plugin("first", one), plugin("second", two)])
    with pytest.raises(
        PluginError, match="'first' .* and 'second' .*--plugin NAME|'second' .* and 'first' .*--plugin NAME"
    ):
        registry.find("bert")
    assert registry.find("bert", plugin="second").name == "two"
    with pytest.raises(PluginError, match="no plugin is called 'frist'.*Did you mean 'first'"):
        registry.find("bert", plugin="frist")
    with pytest.raises(ModelError, match="plugin 'first' does not take"):
        registry.find("gpt2", plugin="first")


def test_nothing_matches() -> None:
    with pytest.raises(ModelError, match="no installed plugin takes model_type 'x'"):
        Registry([]).find("x")


def test_a_broken_plugin_is_named_and_skipped() -> None:
    broken = PluginInfo("broken", "d", "1", "m", error="ImportError: no")
    misspelt = plugin("misspelt")
    misspelt.plugin.vcls_no_such_hook = hookimpl(lambda: None)
    registry = Registry([broken, misspelt, plugin("good", architecture("good", generic=True))])
    errors = {info.name: info.error for info in registry.plugins}
    assert errors["broken"] == "ImportError: no"
    assert "vcls_no_such_hook" in str(errors["misspelt"])
    assert errors["good"] is None
    assert registry.find("bert").name == "good"


@pytest.mark.parametrize(("old", "new"), [("position_ids", "numbering"), ("pooled_tokens", "pooled_count")])
def test_a_method_that_is_called_no_longer_is_refused(old: str, new: str) -> None:
    with pytest.raises(PluginError, match=f"Mine.{old} is of an earlier version; write {new}"):
        type("Mine", (Architecture,), {old: lambda self, config, input_ids: [0]})
    with pytest.raises(PluginError, match=f"Mine.{old} is of an earlier version"):
        type("Mine", (type("Theirs", (), {old: len}), Architecture), {})


def test_a_plugin_that_fails_when_asked_is_named() -> None:
    def fails() -> list[Architecture]:
        raise ValueError("no")

    failing = PluginInfo("failing", "d", "1", "m", SimpleNamespace(vcls_architectures=hookimpl(fails)))
    with pytest.raises(PluginError, match="'failing' failed in .*VCLS_PLUGINS"):
        Registry([failing]).find("bert")


def failing(error: Exception) -> Any:
    def fails() -> Any:
        raise error

    return hookimpl(fails)


def test_an_exception_in_any_hook_names_the_plugin_and_the_hook() -> None:
    for name in HOOKS:
        hooks = {name: failing(ValueError("no"))}
        registry = Registry([PluginInfo("theirs", "d", "1", "m", SimpleNamespace(**hooks))])
        with pytest.raises(PluginError, match=rf"plugin 'theirs' failed in {name}: ValueError\('no'\)"):
            registry.call(name)


def test_what_a_plugin_itself_refuses_passes_as_it_is() -> None:
    error = ModelError("its config lacks a width")
    with pytest.raises(ModelError) as raised:
        Registry([plugin("theirs", vcls_model_card=failing(error))]).call("vcls_model_card", values={})
    assert raised.value is error


def test_a_fault_of_a_built_in_plugin_is_told_as_ours() -> None:
    error = OSError("the disk is full")
    ours = PluginInfo("checkpoint", "vllm-cls", "1", "m", SimpleNamespace(vcls_write_checkpoint=failing(error)))
    with pytest.raises(OSError) as raised:
        Registry([ours]).call("vcls_write_checkpoint", plan=None)
    assert raised.value is error


def test_a_hook_that_takes_one_answer_asks_until_there_is_one() -> None:
    asked: list[str] = []

    def card(name: str, answer: str | None, **options: bool) -> PluginInfo:
        def vcls_model_card(values: dict[str, Any]) -> str | None:
            asked.append(f"{name} {values['name']}")
            return answer

        return plugin(name, vcls_model_card=hookimpl(**options)(vcls_model_card))

    built_in, first, second = card("built-in", "plain", trylast=True), card("first", "own"), card("second", None)
    assert Registry([first, built_in, second]).call("vcls_model_card", values={"name": "x"}) == "own"
    assert asked == ["second x", "first x"]
    with pytest.raises(PluginError, match=r"no plugin answers vcls_model_card; loaded are second\. .*VCLS_PLUGINS"):
        Registry([second]).call("vcls_model_card", values={"name": "x"})


def test_every_answer_of_a_hook_that_takes_several() -> None:
    """In pluggy's order, in which of two things of one name a third party's comes first; an empty one counts, None does not."""

    def routes(name: str, answer: Any, **options: bool) -> PluginInfo:
        return plugin(name, vcls_server_routes=hookimpl(**options)(lambda model: answer))

    registry = Registry([routes("a", 1), routes("b", None), routes("c", 3, trylast=True), routes("d", 0)])
    assert registry.call("vcls_server_routes", model=None) == [0, 1, 3]
    assert registry.hooks_of("b") == ["vcls_architectures", "vcls_server_routes"]


def test_a_wrapper_is_no_answer() -> None:
    def vcls_model_card(values: Any) -> Any:
        return (yield)

    registry = Registry([plugin("wrapping", vcls_model_card=hookimpl(wrapper=True)(vcls_model_card))])
    assert registry.plugins[0].error == "vcls_model_card is a wrapper of pluggy's; a hook here gives an answer, or None"
    assert registry.hooks_of("wrapping") == []


def test_what_is_no_mapping_names_the_plugin() -> None:
    registry = Registry([plugin("theirs", vcls_readers=hookimpl(lambda: ["orc"]))])
    with pytest.raises(PluginError, match="'theirs' answers vcls_readers with a list, and has to give a mapping"):
        registry.collect("vcls_readers")


def test_two_plugins_with_one_name_for_a_head() -> None:
    sources = hookimpl(lambda: {"magic": None})
    registry = Registry(
        [plugin("a", vcls_head_sources=sources), plugin("b", vcls_head_sources=hookimpl(lambda: {"magic": 1}))]
    )
    with pytest.raises(PluginError, match="both register 'magic'"):
        registry.collect("vcls_head_sources")


def trees(*packages: ModuleType) -> Iterator[tuple[Path, ast.Module]]:
    for package in packages:
        for path in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def is_private(name: str | None) -> bool:
    return name is not None and any(part.startswith("_") and part[:2] != "__" for part in name.split("."))


def test_built_in_plugins_use_the_cores_public_names_alone() -> None:
    """As a third party's have to: no import of an underscore name, and no attribute that the core calls so."""
    in_the_core = {
        name
        for _, tree in trees(vllm_cls)
        for node in ast.walk(tree)
        for name in (getattr(node, "name", None), getattr(node, "attr", None), getattr(node, "id", None))
        if isinstance(name, str) and is_private(name) and not isinstance(getattr(node, "ctx", None), ast.Load)
        if ast.unparse(getattr(node, "value", ast.Name("self"))) == "self"  # not what it sets on others' objects
    }
    assert "_implementations" in in_the_core and "_HEADS" in in_the_core
    used = []
    for path, tree in trees(vllm_cls.adapters, vllm_cls.plugins):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(each.name for each in node.names)]
            elif isinstance(node, ast.Attribute) and node.attr in in_the_core:
                names = [] if ast.unparse(node.value) in ("self", "cls", "super()") else [node.attr]
            else:
                continue
            used += [f"{path.name}:{node.lineno} {name}" for name in names if is_private(name)]
    assert used == []


def test_only_the_registry_calls_hooks() -> None:
    importing = {
        path.name
        for path, tree in trees(vllm_cls, vllm_cls.adapters, vllm_cls.plugins, vllm_cls.cli)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and "pluggy" in (each.name for each in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == "pluggy")
        or (isinstance(node, ast.Attribute) and node.attr in ("hook", "subset_hook_caller", "get_hookimpls"))
    }
    assert importing == {"hookspecs.py", "registry.py"}


def test_an_environment_variable_limits_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCLS_PLUGINS", "gpt2, generic")
    assert {info.name for info in discover()} == {"gpt2", "generic"}


def test_public_names_exist() -> None:
    for name in vllm_cls.__all__:
        assert getattr(vllm_cls, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vllm_cls.nothing  # noqa: B018

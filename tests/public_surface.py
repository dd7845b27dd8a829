"""What users hold on to: Python's names, hooks, commands, routes. tests/public_surface.json keeps it.

    python -m tests.public_surface     # writes that file anew

Of Python there are names, parameters and defaults, without annotations: types may get better names.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import transformers
from starlette.routing import BaseRoute, Route

from tests.models import tiny
from vllm_cls import LLM, hookspecs
from vllm_cls.cli.main import vcls
from vllm_cls.server import create_app

FILE = Path(__file__).parent / "public_surface.json"
PACKAGES = ("vllm_cls", "vllm_cls.adapters", "vllm_cls.client", "vllm_cls.distributed", "vllm_cls.server")
ALONE = {
    inspect.Parameter.POSITIONAL_ONLY: ", by position alone",
    inspect.Parameter.KEYWORD_ONLY: ", by name alone",
}

Surface = dict[str, list[str]]
"""Lines by what they are about, such as the parameters of a method."""


def python() -> Surface:
    """What packages export, with the parameters of what can be called and the members of classes."""
    found: Surface = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        found[package] = sorted(module.__all__)
        for name in found[package]:
            thing = getattr(module, name)
            if not is_ours(thing):
                continue
            found[f"{package}.{name}"] = parameters(thing)
            for member, value in members(thing) if inspect.isclass(thing) else ():
                found[f"{package}.{name}.{member}"] = parameters(value) if callable(value) else ["(property)"]
    return found


def is_ours(thing: Any) -> bool:
    return callable(thing) and str(getattr(thing, "__module__", "")).partition(".")[0] == "vllm_cls"


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that we gave a class."""
    names = {name for each in cls.__mro__ if is_ours(each) for name in vars(each) if not name.startswith("_")}
    for name in sorted(names):
        value = inspect.getattr_static(cls, name)
        if isinstance(value, property | classmethod | staticmethod) or inspect.isfunction(value):
            yield name, getattr(cls, name)


def parameters(thing: Callable[..., Any]) -> list[str]:
    """Those of a signature, each with its default and whether it goes by position or name alone; "await" of a coroutine."""
    given = inspect.signature(thing).parameters.values()
    await_it = ["await"] if inspect.iscoroutinefunction(thing) else []
    return await_it + [parameter(each) for each in given if each.name != "self"]


def parameter(given: inspect.Parameter) -> str:
    text = str(given.replace(annotation=given.empty, default=given.empty))
    if given.default is not given.empty:
        text += f" = {given.default.__name__ if inspect.isclass(given.default) else repr(given.default)}"
    return text + ALONE.get(given.kind, "")


def hooks() -> Surface:
    """The parameters of each hook."""
    named = {name: each for name, each in vars(hookspecs).items() if name.startswith("vcls_")}
    return {name: parameters(each) for name, each in sorted(named.items())}


def commands() -> Surface:
    """The arguments and options of our commands."""
    entries = importlib.metadata.entry_points(group="vllm_cls.commands")
    ours = {each.name: each.load() for each in entries if each.dist is not None and each.dist.name == "vllm-cls"}
    found = {"vcls": [*options(vcls), "/".join(vcls.context_settings["help_option_names"])]}
    for name, each in sorted(ours.items()):
        found |= command(f"vcls {name}", each)
    return found


def command(path: str, what: click.Command) -> Surface:
    found = {path: options(what)}
    for name, each in sorted(what.commands.items()) if isinstance(what, click.Group) and path != "vcls" else ():
        found |= command(f"{path} {name}", each)
    return found


def options(what: click.Command) -> list[str]:
    """Without --help: click makes it once, by the settings of the first context that a process has."""
    with click.Context(what) as context:
        own = [each for each in what.get_params(context) if each is not what.get_help_option(context)]
        return [option(each, context) for each in own]


def option(param: click.Parameter, context: click.Context) -> str:
    """Its names, what it takes, and what it is where it is not given."""
    told = param.to_info_dict()
    words = ["/".join(param.opts + param.secondary_opts)]
    if not told.get("is_flag"):
        words.append(param.make_metavar(context))
    words += [word for word in ("required", "multiple", "hidden") if told.get(word)]
    default = told["default"]
    return " ".join(words) + ("" if default is None else f" = {default!r}")


def routes() -> Surface:
    """The fields of the requests and answers of each route, of a server whose model has them all."""
    with tempfile.TemporaryDirectory() as folder:
        path = tiny.classifier("bert", Path(folder), num_labels=1)
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        tokenizer.save_pretrained(path)
        with LLM(str(path), device="cpu") as llm:
            app = create_app(llm)
            described = app.openapi()
    found: Surface = {}
    for route in leaves(app.routes):
        for method in route.methods or ():
            operation = described["paths"].get(route.path, {}).get(method.lower(), {})
            found[f"{method} {route.path}"] = fields_of(operation, described["components"]["schemas"])
    return dict(sorted(found.items(), key=lambda item: item[0].split()[::-1]))


def leaves(found: Iterable[BaseRoute]) -> Iterator[Route]:
    """The routes themselves; FastAPI may keep them in the routers that were included."""
    for each in found:
        router = getattr(each, "original_router", None)
        if router is not None:
            yield from leaves(router.routes)
        else:
            assert isinstance(each, Route), each
            yield each


def fields_of(operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> list[str]:
    """`request.input`, `answer.data[].label`, and the like: one may be in several forms of a body."""
    asked = {f"{each['in']}.{each['name']}" for each in operation.get("parameters", ())}
    parts = {"request": operation.get("requestBody", {}), "answer": operation.get("responses", {}).get("200", {})}
    for name, part in parts.items():
        for kind, content in part.get("content", {}).items():
            asked |= {name if kind == "application/json" else f"{name}: {kind}"}
            asked |= set(names_in(content.get("schema", {}), name, schemas, ()))
    return sorted(asked)


def names_in(schema: Any, path: str, schemas: Mapping[str, Any], within: tuple[str, ...]) -> Iterator[str]:
    """The paths of the fields of a JSON schema."""
    reference = schema.get("$ref", "").rpartition("/")[2] if isinstance(schema, Mapping) else ""
    if reference and reference not in within:
        yield from names_in(schemas[reference], path, schemas, (*within, reference))
    if not isinstance(schema, Mapping):
        return
    for name, each in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from names_in(each, f"{path}.{name}", schemas, within)
    for each in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from names_in(each, path, schemas, within)
    yield from names_in(schema.get("items"), f"{path}[]", schemas, within)
    yield from names_in(schema.get("additionalProperties"), f"{path}[*]", schemas, within)


PARTS: dict[str, Callable[[], Surface]] = {"python": python, "hooks": hooks, "commands": commands, "routes": routes}


def recorded() -> dict[str, Surface]:
    """What the file has, by part."""
    found: dict[str, Surface] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def write() -> None:
    """Record what there is now, a line for each thing."""
    parts = []
    for name, make in PARTS.items():
        lines = [f"  {json.dumps(what)}: {json.dumps(told, ensure_ascii=False)}" for what, told in make().items()]
        parts.append(f' "{name}": {{\n' + ",\n".join(lines) + "\n }")
    FILE.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write()

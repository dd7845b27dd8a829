"""The classes and the pages that name fields of results name those of the table, with its types."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import pytest
import torch
from pydantic import TypeAdapter
from typing_extensions import get_type_hints, is_typeddict

from vllm_cls import outputs
from vllm_cls.calls.scoring import RankedDocument
from vllm_cls.client.results import Classification, PairScore, PooledResult, Ranked
from vllm_cls.result_fields import (
    ALWAYS,
    ANY_ROW,
    CLASSIFY,
    ON_REQUEST,
    POOLING,
    RERANK,
    RESULT_FIELDS,
    SCORE,
    LabelScore,
    ResultField,
    StepScore,
    fields_on_request,
)
from vllm_cls.server.protocol.classify import ClassificationData, ClassifyRequest, HeadAnswer
from vllm_cls.server.protocol.pooling import PoolingData, PoolingRequest
from vllm_cls.server.protocol.score import RerankRequest, RerankResult, ScoreRequest, ScoreResponseData

DOCS = Path(__file__).parent.parent / "docs"
FIELDS = {each.name: each for each in RESULT_FIELDS}
PYTHON = [kind for kind in vars(outputs).values() if dataclasses.is_dataclass(kind) and kind is not outputs.Span]
ENTRIES = {CLASSIFY: ClassificationData, POOLING: PoolingData, SCORE: ScoreResponseData, RERANK: RerankResult}
REQUESTS = {CLASSIFY: ClassifyRequest, POOLING: PoolingRequest, SCORE: ScoreRequest, RERANK: RerankRequest}
CLIENT = {CLASSIFY: Classification, POOLING: PooledResult, SCORE: PairScore, RERANK: Ranked}
OTHER_TYPES = {
    ("PoolingOutput", "data"): torch.Tensor,
    ("PooledResult", "data"): list[Any],  # JSON alone
    ("RankedDocument", "document"): str | Mapping[str, Any],  # as it was given, with images too
}


def shape(kind: Any) -> Any:
    """A type in which all objects are the same: how detailed their keys are said differs."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is dict or is_typeddict(kind) or dataclasses.is_dataclass(kind) or (origin is dict and Any in arguments):
        return "object"
    if origin in (UnionType, list, dict, tuple):
        return (
            (UnionType, frozenset(map(shape, arguments))) if origin is UnionType else (origin, *map(shape, arguments))
        )
    return kind


def hints(kind: type) -> dict[str, Any]:
    """Its fields and properties, with their types, without those of the classes below it."""
    known = get_type_hints(kind, localns={"torch": torch})
    properties = {
        name: get_type_hints(each.fget)["return"] for name, each in vars(kind).items() if type(each) is property
    }
    return {name: known[name] for name in vars(kind).get("__annotations__", {})} | properties


def check_types(kind: type, found: Mapping[str, Any], optional: frozenset[str] = frozenset()) -> None:
    for name, each in found.items():
        wanted = OTHER_TYPES.get((kind.__name__, name), FIELDS[name].type)
        wanted = wanted | None if name in optional else wanted
        assert shape(each) == shape(wanted), f"{kind.__name__}.{name}"


def required(kind: Any) -> set[str]:
    """The keys that a typed dict always has, as OpenAPI tells them."""
    return set(TypeAdapter(kind).json_schema()["required"])


@pytest.mark.parametrize("kind", [*PYTHON, RankedDocument], ids=lambda kind: kind.__name__)
def test_what_python_gives(kind: type) -> None:
    found = hints(kind)
    found.pop("outputs", None)  # which holds the others
    assert found.keys() == {each.name for each in RESULT_FIELDS if kind.__name__ in each.python}
    check_types(kind, found)


def test_the_classes_that_fields_name_exist() -> None:
    known = {kind.__name__ for kind in [*PYTHON, RankedDocument]}
    assert {name for each in RESULT_FIELDS for name in each.python} <= known
    assert len(FIELDS) == len(RESULT_FIELDS)
    assert all(each.python or each.rows or each.http for each in RESULT_FIELDS)


@pytest.mark.parametrize("route", ENTRIES)
def test_what_the_server_answers(route: str) -> None:
    kind: Any = ENTRIES[route]
    found = get_type_hints(kind)
    assert found.keys() == {each.name for each in RESULT_FIELDS if route in each.http}
    for name, each in found.items():
        assert shape(each) == shape(FIELDS[name].type), name
    assert required(kind) == {name for name in found if FIELDS[name].http[route] == ALWAYS}
    assert fields_on_request(route) <= REQUESTS[route].model_fields.keys()


def test_what_the_server_answers_of_each_head() -> None:
    known = {each.name for each in RESULT_FIELDS if CLASSIFY in each.http}
    assert get_type_hints(HeadAnswer).keys() == known - {"index", "truncated", "heads"}
    assert required(HeadAnswer) == required(ClassificationData) - {"index"}


@pytest.mark.parametrize("route", CLIENT)
def test_what_the_client_gives(route: str) -> None:
    kind: Any = CLIENT[route]
    found = hints(kind)
    if route == RERANK:
        assert found.pop("text") == str | None  # of the document
    optional = {each.name for each in dataclasses.fields(kind) if each.default is None} - {"text"}
    assert optional == fields_on_request(route) & found.keys()
    left_out = {RERANK: {"document"}, POOLING: {"offsets"}}.get(route, set()) | {"object"}
    assert found.keys() == {each.name for each in RESULT_FIELDS if route in each.http} - left_out
    check_types(kind, found, frozenset(optional))


def type_name(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return " or ".join("null" if each is NoneType else type_name(each) for each in arguments)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(type_name, arguments))}]"
    return str(kind.__name__)


def code(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def table_line(each: ResultField) -> str:
    """The line of docs/outputs.md about a field."""

    def places(of: Mapping[str, str]) -> str:
        groups = {when: ", ".join(name for name in of if of[name] == when) for when in dict.fromkeys(of.values())}
        return "; ".join(names if when == ALWAYS else f"{names} ({when})" for when, names in groups.items())

    return (
        f"| `{each.name}` | {type_name(each.type)} | {each.meaning} | {code(each.python)} | {places(each.rows)} "
        f"| {places(each.http)} |".replace("|  |", "| |").replace("|  |", "| |")
    )


def parts(kind: Any) -> str:
    return f"- `{kind.__name__}`: {code(get_type_hints(kind))}"


def test_the_page_has_every_field() -> None:
    page = (DOCS / "outputs.md").read_text(encoding="utf-8").splitlines()
    wanted = [table_line(each) for each in RESULT_FIELDS]
    found = [line for line in page if line.startswith("| `")]
    assert found == wanted, "the table of docs/outputs.md should be\n" + "\n".join(wanted)
    for kind in (LabelScore, outputs.Span, StepScore):
        assert any(line.startswith(parts(kind)) for line in page), f"docs/outputs.md lacks {parts(kind)}"


def columns_by_kind() -> Iterator[tuple[str, set[str]]]:
    for kind in dict.fromkeys(kind for each in RESULT_FIELDS for kind in each.rows if kind != ANY_ROW):
        yield kind, {each.name for each in RESULT_FIELDS if each.rows.get(kind, ON_REQUEST) != ON_REQUEST}


@pytest.mark.parametrize(("kind", "names"), [each for each in columns_by_kind() if each[0] != "pair"])
def test_the_page_of_files_says_what_a_row_has(kind: str, names: set[str]) -> None:
    page = (DOCS / "classify.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^\| {re.escape(kind)} \|.*$", page, re.MULTILINE)
    assert {name for name in re.findall(r"`([^`]+)`", line) if not name.startswith("--")} == names

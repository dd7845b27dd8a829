"""Values that a JSON file should not have, one at a time in the place of each of its fields."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

Case = tuple[str, Any]
"""What was changed, and what the file then says."""

ANY: dict[str, Any] = {
    "null": None, "true": True, "false": False, "negative": -1, "zero": 0, "one": 1, "very negative": -(10**15),
    "huge": 10**12, "huge float": 1e30, "half": 0.5, "text": "x", "no text": "", "no list": [], "no object": {},
    "list of null": [None], "nested": {"a": {"b": [1]}}, "mixed list": [1, "a"],
}  # fmt: skip


def changed(content: Mapping[str, Any], more: tuple[str, ...] = ()) -> Iterator[Case]:
    """Each change of one field: left out, of another type, out of every range, and next to what it was.

    Args:
        more: fields that the file lacks and could have.
    """
    for path in [*_paths(content), *((name,) for name in more if name not in content)]:
        *above, name = path
        told = ".".join(map(str, path))
        holder = _at(content, above)
        present = name in holder if isinstance(holder, Mapping) else True
        values = {**ANY, **(_near(holder[name]) if present else {})}
        for kind, value in values.items():
            if not present or value != holder[name] or type(value) is not type(holder[name]):
                yield f"{told}: {kind}", _with(content, above, name, value)
        if present:
            missing = copy.deepcopy(dict(content))
            del _at(missing, above)[name]
            yield f"{told}: missing", missing


def _near(value: Any) -> dict[str, Any]:
    """Values beside one, and of it in another form."""
    if isinstance(value, bool) or value is None:
        return {}
    if isinstance(value, int):
        return {"as text": str(value), "one more": value + 1, "one less": value - 1, "in a list": [value], "600": 600}
    if isinstance(value, str):
        return {"upper case": value.upper(), "longer": f"{value}x", "in a list": [value]}
    if isinstance(value, list) and value:
        return {"its first": value[0], "twice": value * 2, "shorter": value[:-1]}
    if isinstance(value, dict) and value:
        first = next(iter(value))
        odd = {kind: {**value, first: each} for kind, each in (("null", None), ("number", -1), ("list", [1]))}
        return {
            "without its first": {name: each for name, each in value.items() if name != first},
            "alike": dict.fromkeys(value, value[first]),
            "another key": {**value, "x": value[first]},
            **{f"first a {kind}": each for kind, each in odd.items()},
        }
    return {}


def _paths(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field, those of objects within, but for the added tokens of a tokenizer, which are all alike."""
    items = content.items() if isinstance(content, Mapping) else enumerate(content)
    for name, value in items:
        yield (*above, name)
        if name in ("added_tokens_decoder", "weight_map", "id2label", "label2id"):
            continue
        if isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(each, Mapping) for each in value)):
            yield from _paths(value, (*above, name))


def _at(content: Any, path: list[Any]) -> Any:
    for name in path:
        content = content[name]
    return content


def _with(content: Mapping[str, Any], above: list[Any], name: Any, value: Any) -> Any:
    made = copy.deepcopy(content)
    _at(made, above)[name] = value
    return made

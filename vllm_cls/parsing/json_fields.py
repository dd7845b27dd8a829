"""Schemas of the JSON files of a model, for the fields that this package reads itself.

transformers checks the fields that it reads; see `transformers_calls`. A field that is null is one that is not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ModelError, VclsError, shown

MAX_LABELS, MAX_LAYERS = 1_000_000, 1_000
"""More than any model has; transformers makes an object for each before it looks at the weights."""
_LAYERS = re.compile(r"(?<!per_)layer")  # a number of them, not a size per layer (Gemma 4)


@dataclass(frozen=True)
class FieldKind:
    """The type of a field: its description, and a predicate."""

    words: str
    holds: Callable[[Any], bool]


Schema = Mapping[str, Any]
"""Field → its `FieldKind`, the schema of the object that it holds, or a list with that of the objects it lists.

A name that ends in "!" is of a field that has to be there.
"""


class ClosedSchema(dict[str, Any]):
    """A schema that lists all fields of an object; others are refused."""


def _is_count(value: Any, most: float = float("inf")) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _are_texts(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(each, str) for each in values)


def _names_indices(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    named = all(isinstance(label, (str, int, float)) for label in value.values())
    return named and all(str(index).strip().lstrip("-").isdecimal() for index in value)


TEXT = FieldKind("a string", lambda value: isinstance(value, str))
FLAG = FieldKind("true or false", lambda value: isinstance(value, bool))
COUNT = FieldKind("a whole number above 0", _is_count)
NUMBER = FieldKind("a number", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool))
TEXTS = FieldKind("a list of strings", _are_texts)
OBJECT = FieldKind("an object", lambda value: isinstance(value, Mapping))
NUMBERS_BY_NAME = FieldKind(
    "an object of numbers", lambda value: isinstance(value, Mapping) and all(map(NUMBER.holds, value.values()))
)
TEXT_OR_TEXTS = FieldKind("a string or a list of them", lambda value: isinstance(value, str) or _are_texts(value))
TEXT_OR_OBJECT = FieldKind("a string or an object", lambda value: isinstance(value, (str, Mapping)))
LABELS = FieldKind("an object of names by their indices", _names_indices)
LABEL_COUNT = FieldKind(f"a whole number from 1 to {MAX_LABELS}", lambda value: _is_count(value, MAX_LABELS))

_LINEAR = ClosedSchema({"num_rows": COUNT, "bias": FLAG, "softcap": NUMBER, "combine": FLAG, "offset": FLAG})
_TOKEN_IDS = FieldKind(
    "a list of lists of lists of token ids, one a label",
    lambda value: (
        isinstance(value, list)
        and all(isinstance(label, list) and all(isinstance(ids, list) and ids for ids in label) for label in value)
        and all(isinstance(each, int) and each >= 0 for label in value for ids in label for each in ids)
    ),
)
_NUMBERS = FieldKind("a list of numbers", lambda value: isinstance(value, list) and all(map(NUMBER.holds, value)))
_SEQUENCES = ClosedSchema({
    "texts!": _TOKEN_IDS, "weight": TEXT, "bias": TEXT, "lm_scale": NUMBER, "softcap": NUMBER, "scale": NUMBER,
    "offset!": _NUMBERS,
})  # fmt: skip
_ROPE = FieldKind("an object", lambda value: not value or isinstance(value, Mapping))
_ACTIVATIONS: Schema = {"sentence_transformers": {"activation_fn": TEXT}, "sbert_ce_default_activation_function": TEXT}
_NAMED_HEAD = ClosedSchema({
    "name!": TEXT, "method!": TEXT, "labels!": TEXTS, "problem_type": TEXT, "activation": _ACTIVATIONS, "linear": _LINEAR,
    "sequences": _SEQUENCES, "own": FLAG, "description": TEXT,
})  # fmt: skip
_OWN = {
    "pooling": TEXT, "head": _LINEAR, "head_method": TEXT, "pooler_config": OBJECT, "prompt_template": TEXT,
    "chat_template_prompt": FLAG, "max_model_len": COUNT, "score_template": TEXT_OR_OBJECT, "query_prefix": TEXT,
    "heads": [_NAMED_HEAD], "lm_head": OBJECT, "sequences": _SEQUENCES, "backbone_of": TEXT,
}  # fmt: skip
CONFIG: Schema = {
    "model_type": TEXT, "architectures": TEXTS, "auto_map": OBJECT, "num_labels": LABEL_COUNT, "id2label": LABELS,
    "problem_type": TEXT, "vcls": _OWN, "head_dtype": TEXT, "classifier_from_token": TEXTS,
    "is_original_qwen3_reranker": FLAG, "use_sep_token": FLAG, "use_pad_token": FLAG,
    **_ACTIVATIONS,
}  # fmt: skip
# What transformers reads, and takes to be of this kind before it says anything; code of a checkpoint's own may read more.
_READ_BY_TRANSFORMERS = {
    "dtype": TEXT_OR_OBJECT, "torch_dtype": TEXT_OR_OBJECT, "attn_implementation": TEXT_OR_OBJECT,
    "_attn_implementation": TEXT_OR_OBJECT, "quantization_config": OBJECT, "layer_types": TEXTS, "rope_parameters": _ROPE,
    "rope_scaling": _ROPE, "output_hidden_states": FLAG, "output_attentions": FLAG, "chunk_size_feed_forward": NUMBER,
    "per_layer_config": OBJECT,
}  # fmt: skip
_MODULE = {
    "pooling_mode": TEXT_OR_TEXTS, "activation_function": TEXT, "in_features": COUNT, "out_features": COUNT, "bias": FLAG,
    "include_prompt": FLAG,
}  # fmt: skip
_TRANSFORMER = {
    "do_lower_case": FLAG, "modality_config": OBJECT, "processing_kwargs": OBJECT, "model_args": OBJECT,
    "model_kwargs": OBJECT, "tokenizer_args": OBJECT, "processor_kwargs": OBJECT, "config_args": OBJECT,
    "config_kwargs": OBJECT,
}  # fmt: skip
_ADAPTER = {
    "peft_type": TEXT, "task_type": TEXT, "r": COUNT, "lora_alpha": NUMBER, "rank_pattern": NUMBERS_BY_NAME,
    "alpha_pattern": NUMBERS_BY_NAME,
    "use_rslora": FLAG, "bias": TEXT, "target_modules": TEXT_OR_TEXTS, "modules_to_save": TEXTS,
}  # fmt: skip
FILES: Mapping[str, Any] = {
    "config.json": CONFIG,
    "modules.json": [{"type!": TEXT, "path!": TEXT}],
    "config_sentence_transformers.json": {
        "model_type": TEXT, "activation_fn": TEXT, "prompts": OBJECT, "default_prompt_name": TEXT,
    },
    "adapter_config.json": _ADAPTER,
}  # fmt: skip


def check_file(where: str, name: str, content: Any, *, replaced: Collection[str] = ()) -> None:
    """Raise `ModelError` if a field of a model's JSON file has a value of the wrong type.

    Args:
        where: what the user called the model.
        name: of the file, within its folder.
        content: as it was read.
        replaced: fields of it that are not looked at.
    """
    if replaced and isinstance(content, Mapping):
        content = {field: value for field, value in content.items() if field not in replaced}
    if name in FILES:
        schema = FILES[name]
    elif name.endswith("/config.json"):  # of a module of Sentence Transformers
        schema = _MODULE
    elif name.startswith("sentence_") and name.endswith("_config.json"):
        schema = _TRANSFORMER
    else:
        return
    check_fields(content, schema, f"{where}: {name}", ModelError)
    if name == "config.json":
        if not content.get("auto_map"):
            check_fields(content, _READ_BY_TRANSFORMERS, f"{where}: {name}", ModelError)
        _check_layers(content, f"{where}: {name}")


def check_fields(content: Any, schema: Any, where: str, error: type[VclsError]) -> None:
    """Raise `error` if an object, or a list of objects, has a field of another kind than its schema says."""
    for path, value, words in _wrong(content, schema, ""):
        raise error(f"{where}: {path + ' ' if path else ''}is {shown(value)}, and has to be {words}; correct it.")


def _wrong(content: Any, schema: Any, path: str) -> Iterator[tuple[str, Any, str]]:
    """(path, value, expected type) of each wrong field."""
    if isinstance(schema, FieldKind):
        if not schema.holds(content):
            yield path, content, schema.words
    elif isinstance(schema, Sequence):
        if not isinstance(content, list) or not all(isinstance(each, Mapping) for each in content):
            yield path, content, "a list of objects"
            return
        for index, each in enumerate(content):
            yield from _wrong(each, schema[0], f"{path}[{index}]")
    elif not isinstance(content, Mapping):
        yield path, content, "an object"
    else:
        before = f"{path}." if path else ""
        for key, inner in schema.items():
            name = key.removesuffix("!")
            if content.get(name) is not None:
                yield from _wrong(content[name], inner, f"{before}{name}")
            elif name != key:
                yield f"{before}{name}", None, inner.words
        for name in (
            sorted(content.keys() - {key.removesuffix("!") for key in schema})
            if isinstance(schema, ClosedSchema)
            else ()
        ):
            yield f"{before}{name}", content[name], "left out: there is no such field"


def _check_layers(content: Mapping[str, Any], where: str) -> None:
    for name, value in content.items():
        if isinstance(value, Mapping):
            _check_layers(value, f"{where}: {name}")
        elif _LAYERS.search(name) and isinstance(value, int) and value > MAX_LAYERS:
            raise ModelError(f"{where}: {name} is {value}, more layers than any model has; correct it.")

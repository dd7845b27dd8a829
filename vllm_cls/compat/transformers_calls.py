"""Calls into transformers whose exceptions become a `ModelError` about the model's files."""

from __future__ import annotations

import copy
import re
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import ModelError, VclsError, shown

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


# How many tensors, and numbers in one, a class may have in any case, and for each tensor, and byte, of its files.
_FEW_TENSORS, _SMALL_TENSOR = 5_000, 10**8
_TENSORS_EACH, _NUMBERS_A_BYTE = 16, 4
# What no model has, whatever its files.
_MANY_TENSORS, _LARGE_TENSOR = 200_000, 10**11
_MANY = "tensors"
_SIZES = ("size", "layers", "heads", "layer", "head", "dim", "embeddings", "positions", "n_embd", "d_model", "groups")


@contextmanager
def model_errors(what: str, config: Any = None, *, advice: str = "") -> Iterator[None]:
    """Turn exceptions of transformers into a `ModelError`; those raised in our own code are not changed.

    Args:
        what: cannot be done, with the model's name.
        config: the model's, whose fields the error may come from.
        advice: what can be done, in a sentence.
    """
    try:
        yield
    except (VclsError, MemoryError):
        raise
    except BaseException as error:
        panics = type(error).__name__ == "PanicException"  # of Rust's, which is no Exception
        if not (isinstance(error, Exception) or panics) or _is_ours(error):
            raise
        raise ModelError(f"{what} ({reason(error)}){hints(config, reason(error))}. {advice}".rstrip()) from error


def _is_ours(error: BaseException) -> bool:
    """Whether it was raised in code of this package."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] == __name__.partition(".")[0]


def on_meta(model_class: type[PreTrainedModel], config: PreTrainedConfig, **parts: Any) -> PreTrainedModel:
    """A model on the meta device, from a copy of a config.

    Args:
        parts: what its class takes ready-made.

    Raises:
        ModelError: no model can be built from the config.
    """
    import torch

    with (
        without_memory(f"{model_class.__name__} cannot be made from the model's config.json", config),
        torch.device("meta"),
    ):
        return model_class(copy.deepcopy(config), **parts)


@contextmanager
def without_memory(what: str, config: PreTrainedConfig) -> Iterator[None]:
    """As `model_errors`, for building on the meta device, with limits that only absurd configs exceed."""
    message = "config.json asks for {}, which no model has"
    with model_errors(what, config), _bounded(_LARGE_TENSOR, _MANY_TENSORS, message, config):
        yield


def reason(error: BaseException) -> str:
    """Another library's error in one line; with its class name where the message alone says little."""
    text = " ".join(str(error).split())[:300].rstrip(".")
    is_informative = isinstance(error, (ValueError, OSError, ImportError, RuntimeError)) or text.startswith(
        "Validation error"
    )
    return text if is_informative and text else f"{type(error).__name__}: {text}" if text else type(error).__name__


def hints(config: Any, error_text: str) -> str:
    """`suspicious` fields, to append to an error message; empty where there are none."""
    found = list(suspicious(config, error_text))[:4] if config is not None else []
    return f"; {'; '.join(found)}" if found else ""


def suspicious(config: Any, error_text: str) -> Iterator[str]:
    """Fields of config.json that may have caused an error: values that it mentions, and impossible ones.

    transformers accepts some of the latter, so this only explains a failure.

    Args:
        config: transformers' config, or what the file says.
        error_text: the message of the error.
    """
    for prefix, fields, defaults in _fields(config):
        for name, value in sorted(fields.items()):
            found = _implausible(name, value, defaults.get(name), fields.get("vocab_size"), error_text)
            if found is not None:
                yield f"{prefix}{name} {found}"
        hidden, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
        if type(hidden) is int and type(heads) is int and heads > 0 and hidden % heads:
            yield f"{prefix}hidden_size {hidden} is no multiple of num_attention_heads {heads}"


def _implausible(name: str, value: Any, default: Any, vocabulary: Any, error_text: str) -> str | None:
    """What is implausible about a field, to follow its name; None where nothing is."""
    described = f"is {shown(value)}"
    if value is None:
        return "is null" if "None" in error_text and default is not None else None
    if name.endswith("_token_id") and type(vocabulary) is int and type(value) is int and not 0 <= value < vocabulary:
        return f"{described}, outside the vocabulary of {vocabulary}"
    no_size = type(value) is int and name.endswith(_SIZES) and (value < 1 or (value > 99 and _MANY in error_text))
    return described if no_size or (value != default and _mentions(value, error_text)) else None


def _mentions(value: Any, error_text: str) -> bool:
    """Whether a message contains a value: a number by itself, a string in quotes."""
    if isinstance(value, str):
        return repr(value) in error_text
    return (
        type(value) in (int, float)
        and re.search(rf"(?<![\w.'-]){re.escape(str(value))}(?![\w.'])", error_text) is not None
    )


def _fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """(path, fields, their defaults) of a config and of those within it."""
    fields = dict(config) if isinstance(config, Mapping) else vars(config)
    known = getattr(type(config), "__dataclass_fields__", {})
    yield prefix, fields, {name: each.default for name, each in known.items()}
    for name, value in fields.items():
        if name.endswith(("_config", "rope_parameters", "rope_scaling")) and (
            isinstance(value, Mapping) or hasattr(value, "sub_configs")
        ):
            yield from _fields(value, f"{prefix}{name}.")


def no_larger_than(name: str, num_bytes: int, num_tensors: int, config: Any) -> AbstractContextManager[None]:
    """While a model is built in this thread, raise once it is much larger than its files.

    Args:
        name: the model's.
        num_bytes: of its weights.

    Raises:
        ModelError: it has a tensor, or so many of them, that nothing in the files could fill.
    """
    return _bounded(
        max(_SMALL_TENSOR, _NUMBERS_A_BYTE * num_bytes),
        max(_FEW_TENSORS, _TENSORS_EACH * num_tensors) if num_tensors else _MANY_TENSORS,
        f"{name}: config.json asks for {{}}, and the weights are {num_bytes} bytes in {num_tensors} tensors",
        config,
    )


@contextmanager
def _bounded(largest: int, most: int, message: str, config: Any) -> Iterator[None]:
    """Refuse a model as it is built, in this thread.

    Args:
        largest: numbers in a tensor.
        most: tensors.
        message: with a place for what is too much.
    """
    from torch.nn.modules import module as torch_module

    thread, count = threading.get_ident(), 0

    def check(module: Any, name: str, tensor: Any) -> None:
        nonlocal count
        if tensor is None or threading.get_ident() != thread:
            return
        count += 1
        if tensor.numel() > largest:
            described = f"a {name} of {tuple(tensor.shape)} in its {type(module).__name__}"
        elif count > most:
            described = f"more than {most} {_MANY}"
        else:
            return
        raise ModelError(
            f"{message.format(described)}; correct its sizes, or fetch the model again{hints(config, described)}."
        )

    hooks = [
        torch_module.register_module_parameter_registration_hook(check),
        torch_module.register_module_buffer_registration_hook(check),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

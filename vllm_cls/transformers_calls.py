"""Calls into transformers: whatever fails there is told as what it is, a fault of the model's files."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from .errors import ModelError, VclsError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from .checkpoint import Checkpoint

# How many tensors, and numbers in one, a class may have in any case, and for each tensor, and byte, of its files.
_FEW_TENSORS, _SMALL_TENSOR = 5_000, 10**8
_TENSORS_EACH, _NUMBERS_A_BYTE = 16, 4
# What no model has, whatever its files.
_MANY_TENSORS, _LARGE_TENSOR = 200_000, 10**11
_POSITIVE = (
    "size",
    "layers",
    "heads",
    "layer",
    "head",
    "dim",
    "embeddings",
    "positions",
    "n_embd",
    "d_model",
    "groups",
)


@contextmanager
def model_errors(what: str, config: Any = None, *, advice: str = "") -> Iterator[None]:
    """Turn what transformers raises into a `ModelError`; within it, nothing of ours is to run.

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
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # as tokenizers' has it
            raise
        suspects = "; ".join(suspicious(config)) if config is not None else ""
        raise ModelError(f"{what} ({reason(error)}){'; ' + suspects if suspects else ''}. {advice}".rstrip()) from error


def on_meta(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model without memory, of a copy of a config.

    Raises:
        ModelError: the config describes none.
    """
    import torch

    with (
        without_memory(f"{model_class.__name__} cannot be made from the model's config.json", config),
        torch.device("meta"),
    ):
        return model_class(copy.deepcopy(config))


@contextmanager
def without_memory(what: str, config: PreTrainedConfig) -> Iterator[None]:
    """As `model_errors`, where a model is built that takes no memory, and so is refused only where it would never end."""
    message = "config.json asks for {}, which no model has"
    with model_errors(what, config), _bounded(_LARGE_TENSOR, _MANY_TENSORS, message):
        yield


def reason(error: BaseException) -> str:
    """What another library's error says, in a line; with its name, where that is half of what it says."""
    text = " ".join(str(error).split())[:300].rstrip(".")
    speaks = isinstance(error, (ValueError, OSError, ImportError, RuntimeError)) or text.startswith("Validation error")
    return text if speaks and text else f"{type(error).__name__}: {text}" if text else type(error).__name__


def suspicious(config: Any) -> Iterator[str]:
    """Fields of config.json with values that no model works with, in words.

    transformers takes some of them; so this explains a failure, and is none.
    """
    for prefix, each in _configs(config):
        defaults = _defaults(type(each))
        vocabulary = getattr(each, "vocab_size", None)
        for name, value in sorted(vars(each).items()):
            outside = isinstance(vocabulary, int) and isinstance(value, int) and not 0 <= value < vocabulary
            if name.endswith("_token_id") and outside:
                yield f"{prefix}{name} is {value}, outside the vocabulary of {vocabulary}"
            elif value is None and type(defaults.get(name)) in (int, float, str):
                yield f"{prefix}{name} is null"
            elif name.endswith(_POSITIVE) and type(value) is int and value < 1:
                yield f"{prefix}{name} is {value}"
        hidden, heads = getattr(each, "hidden_size", None), getattr(each, "num_attention_heads", None)
        if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 and hidden % heads:
            yield f"{prefix}hidden_size {hidden} is no multiple of num_attention_heads {heads}"


def _configs(config: Any) -> Iterator[tuple[str, Any]]:
    yield "", config
    for name in getattr(config, "sub_configs", {}):
        inner = getattr(config, name, None)
        if inner is not None:
            yield f"{name}.", inner


def _defaults(config_class: Any) -> dict[str, Any]:
    """The values that a config class gives its fields."""
    fields = getattr(config_class, "__dataclass_fields__", {})
    return {name: each.default for name, each in fields.items()}


def no_larger_than(checkpoint: Checkpoint) -> AbstractContextManager[None]:
    """Refuse a model as it is built, in this thread, once it is much larger than its files.

    Raises:
        ModelError: it has a tensor, or so many of them, that nothing in the files could fill.
    """
    size, count = checkpoint.num_bytes, len(checkpoint.locations)
    return _bounded(
        max(_SMALL_TENSOR, _NUMBERS_A_BYTE * size),
        max(_FEW_TENSORS, _TENSORS_EACH * count) if count else _MANY_TENSORS,
        f"{checkpoint.name}: config.json asks for {{}}, and the weights are {size} bytes in {count} tensors",
    )


@contextmanager
def _bounded(largest: int, most: int, message: str) -> Iterator[None]:
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
            told = f"a {name} of {tuple(tensor.shape)} in its {type(module).__name__}"
        elif count > most:
            told = f"more than {most} tensors"
        else:
            return
        raise ModelError(f"{message.format(told)}; correct its sizes, or fetch the model again.")

    hooks = [
        torch_module.register_module_parameter_registration_hook(check),
        torch_module.register_module_buffer_registration_hook(check),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

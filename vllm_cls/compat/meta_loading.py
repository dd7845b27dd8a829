"""Loads tensors with transformers' own loader on the meta device, which checks names, shapes and types without memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .stand_ins import standing_in
from .transformers_calls import without_memory
from .transformers_logging import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

_REFUSED = (
    "transformers cannot put these weights into a {}: tensors that it joins into one may be incomplete, or the config may not "
    "describe them"
)


def load_on_meta(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load tensors into a model that has no memory.

    Args:
        tensors: by their names on disk; only their shapes and types matter.

    Returns:
        The model, and what loading says: `missing_keys`, `unexpected_keys`, `mismatched_keys`.

    Raises:
        ModelError: the model cannot be made, or the tensors not be joined into its parameters.
    """
    on_meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    with without_memory(_REFUSED.format(model_class.__name__), config), quiet(), _in_this_thread(), standing_in():
        loaded: tuple[PreTrainedModel, dict[str, Any]] = model_class.from_pretrained(
            None,
            config=config,
            state_dict=on_meta,
            dtype=dtype,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they come back in the info, where they can be named
        )
    return loaded


@contextlib.contextmanager
def _in_this_thread() -> Iterator[None]:
    """Without transformers' pool of loading threads: it keeps two kilobytes a tensor, and there is nothing to read."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before

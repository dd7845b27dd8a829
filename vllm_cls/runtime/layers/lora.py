"""LoRA adapters while a batch runs: each linear layer adds, to the rows of each adapter, that adapter's low-rank part.

Hu et al., LoRA (arXiv:2106.09685); several adapters in one batch as in Punica (arXiv:2310.18547) and vLLM. What an
adapter adds comes behind a layer's own product, so it works with joined projections and with int8 as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..context import current


def let_adapt(layers: Mapping[str, nn.Module]) -> None:
    """Make linear layers, given by their paths in the classifier, add what adapters say; in place."""
    for path, layer in layers.items():
        layer.register_forward_hook(functools.partial(_add, path))


def _add(path: str, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
    """A forward hook: the output with what each adapter adds to its rows, in place."""
    if current.adapters is None or output.stride(-1) == 0:  # queries that nobody asks for: one zero, expanded
        return None
    x, pieces = args[0], current.adapters.of_row(current.row)
    if len(pieces) > 1 and (x.ndim != 3 or x.shape[:2] != (1, pieces[-1][1].stop)):
        # The engine runs each sequence by itself then.
        raise RuntimeError(f"{path} reads other rows than the batch's; adapters cannot be told apart in it")
    rows, outputs = x.reshape(-1, x.shape[-1]), output.view(-1, output.shape[-1])
    for adapter, piece in pieces:
        if adapter is not None and path in adapter.low_rank:
            a, b, scale = adapter.low_rank[path]
            outputs[piece].addmm_(rows[piece] @ a, b, alpha=scale)
    return None

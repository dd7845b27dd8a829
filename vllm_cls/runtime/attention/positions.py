"""Learned and sinusoidal positions that a model numbers through: within a packed row they begin anew at each text.

Decoders of BART's kin take no position ids. They count the row's tokens and give the numbers to a module of their own,
which is where the row's positions go instead.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ..context import current


def restart_positions(backbone: nn.Module) -> None:
    """Let the position modules of a backbone follow the row that runs, and nothing change without one."""
    for module in backbone.modules():
        names = inspect.signature(module.forward).parameters
        if {"past_key_values_length", "position_ids"} <= set(names) and not any(module.children()):
            module.register_forward_pre_hook(_of_the_row, with_kwargs=True)


def _of_the_row(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any] | None:
    row = current.row
    given = kwargs.get("position_ids")
    if row is None or row.positions is None or (given is not None and given.ndim != 1):
        return None  # the model itself passes down what the runner gave it
    return args[:2], {**kwargs, "position_ids": row.positions}

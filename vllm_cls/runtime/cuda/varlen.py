"""Attention over a whole row in one kernel: flash attention over sequences of different lengths."""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..batch import to_device
from ..mask import PackedMask
from ..row import KeyValues, PackedRow, SequenceSpan, VarlenLayout
from .windows import FULL, Window, window_of

_MAX_HEAD_DIM = 256
_FIRST_CAPABILITY = (8, 0)  # flash attention needs Ampere or later


def plan_of(spans: Sequence[SequenceSpan], device: torch.device) -> VarlenLayout:
    """The plan of spans whose queries lie one behind the other in the row."""
    queries, keys = [0], [0]
    for span in spans:
        if span.queries.start != queries[-1]:
            raise ValueError("spans have to lie one behind the other")
        queries.append(queries[-1] + span.num_queries)
        keys.append(keys[-1] + span.num_keys)
    ends = to_device(torch.tensor([queries, keys], dtype=torch.int32), device)
    pasts, order = _order(spans, device)
    return VarlenLayout(
        ends[0],
        ends[1],
        max(span.num_queries for span in spans),
        max(span.num_keys for span in spans),
        all(span.offset + span.num_queries == span.num_keys for span in spans),
        pasts,
        order,
    )


def _order(spans: Sequence[SequenceSpan], device: torch.device) -> tuple[tuple[KeyValues, ...], torch.Tensor | None]:
    starts: dict[int, int] = {}
    pasts: list[KeyValues] = []
    end = spans[-1].keys.stop
    pieces = []
    in_place = all(one.keys.stop == other.keys.start for one, other in itertools.pairwise(spans))
    for span in spans:
        if span.past is not None:
            if id(span.past) not in starts:
                starts[id(span.past)] = end
                pasts.append(span.past)
                end += span.past.num_tokens
            start = starts[id(span.past)]
            pieces.append(torch.arange(start, start + span.past.num_tokens))
        pieces.append(torch.arange(span.keys.start, span.keys.stop))
    return tuple(pasts), None if in_place and not pasts else to_device(torch.cat(pieces), device)


class Varlen:
    """A kernel over sequences of different lengths.

    Args:
        name: shown by `vcls inspect`.
        function: `(query, key, value, plan, window, scaling, softcap)` → `(num_queries, heads, head_dim)`, of
            `(num_queries, heads, head_dim)` and twice `(num_keys, key_value_heads, head_dim)`.
        softcaps: it takes a soft cap.
        dtypes: of its inputs.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., torch.Tensor],
        *,
        softcaps: bool = False,
        dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float16),
    ) -> None:
        self.name = name
        self.softcaps = softcaps
        self.dtypes = tuple(dtypes)
        self._function = function

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        spans: Sequence[SequenceSpan],
        mask: PackedMask,
        scaling: float | None,
        softcap: float | None,
        row: PackedRow,
    ) -> torch.Tensor | None:
        """As `kernels.attend`; None where this kernel cannot, and each sequence has to run by itself."""
        if not self._takes(query, value, softcap):
            return None
        pooled = row.last_keys is not None
        if pooled not in row.plans:
            row.plans[pooled] = plan_of(spans, query.device)
        plan = row.plans[pooled]
        window = window_of(mask, plan.max_keys)
        if window is None or not (window == FULL or plan.aligned):
            return None
        inputs = [
            query[0].transpose(0, 1),
            plan.keys_of(key, row.layer, 0),
            plan.keys_of(value, row.layer, 1),
        ]
        inputs = [each if each.stride(-1) == 1 else each.contiguous() for each in inputs]
        return self._function(*inputs, plan, window, scaling, softcap)[None]

    def _takes(self, query: torch.Tensor, value: torch.Tensor, softcap: float | None) -> bool:
        width = query.shape[-1]
        fits = value.shape[-1] == width and width % 8 == 0 and width <= _MAX_HEAD_DIM
        return fits and query.dtype in self.dtypes and (softcap is None or self.softcaps)


def kernels_for(device: torch.device, dtype: torch.dtype) -> list[Varlen]:
    """The kernels that may run on a device in a dtype, the preferred first; the self-check has the last word."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return []
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < _FIRST_CAPABILITY:
        return []
    found = []
    for module, name, make in (
        ("flash_attn", "flash_attn_varlen_func", _flash_attn),
        ("torch.nn.attention.varlen", "varlen_attn", _torch_varlen),
    ):
        try:
            found.append(make(getattr(importlib.import_module(module), name)))
        except (ImportError, AttributeError, OSError):  # not installed, or built for another torch
            continue
    return found


def _torch_varlen(function: Callable[..., Any]) -> Varlen:
    # One split: else the order of sums, and so a result's rounding, depends on the longest sequence of the batch.
    options = (
        {"num_splits": 1} if "num_splits" in inspect.signature(function).parameters and not torch.version.hip else {}
    )
    return Varlen("torch varlen", functools.partial(_run_torch_varlen, function, options))


def _run_torch_varlen(
    function: Callable[..., Any],
    options: dict[str, int],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: VarlenLayout,
    window: Window,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    output: torch.Tensor = function(
        query, key, value, plan.cu_queries, plan.cu_keys, plan.max_queries, plan.max_keys,
        scale=scaling, window_size=window, enable_gqa=query.shape[1] != key.shape[1], **options,
    )  # fmt: skip
    return output


def _flash_attn(function: Callable[..., Any]) -> Varlen:
    return Varlen("flash-attn", functools.partial(_run_flash_attn, function), softcaps=True)


def _run_flash_attn(
    function: Callable[..., Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: VarlenLayout,
    window: Window,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    options = {} if softcap is None else {"softcap": softcap}
    output: torch.Tensor = function(
        query, key, value, plan.cu_queries, plan.cu_keys, plan.max_queries, plan.max_keys,
        softmax_scale=scaling, causal=window[1] == 0, window_size=window, **options,
    )  # fmt: skip
    return output

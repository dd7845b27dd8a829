"""Attention over a packed row: each sequence attends within itself, and to what was computed before it.

Registered with transformers' attention and mask interfaces under one name, so every architecture that
uses those runs without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from ...errors import ModelError
from ..context import current
from ..mask import SEES_ALL, PackedMask
from ..row import PackedRow, SequenceSpan, StopAfterKeyValues
from . import sdpa

NAME = "vcls_packed"


class NotPackable(RuntimeError):
    """The model asks its attention for something that a packed row cannot give."""


def packed_mask(*args: Any, mask_function: Callable[..., Any] = causal_mask_function, **kwargs: Any) -> PackedMask:
    """Mask interface: keep the function, since only our attention knows the sequences."""
    if mask_function is causal_mask_function:
        return PackedMask(causal_mask_function)
    if mask_function is bidirectional_mask_function:
        return SEES_ALL
    return PackedMask(mask_function, by_row=current.row is not None and current.row.masks_by_row)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: PackedMask | torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention interface over `(1, heads, num_queries, head_dim)` → `(1, num_queries, heads, head_dim)`.

    Raises:
        NotPackable: the model passes a mask of its own or a position bias.
        ModelError: the model is called by somebody else than its runner.
        StopAfterKeyValues: the last layer's keys and values are there, and only pooled positions are wanted of it.
    """
    row = current.row
    if row is None:
        raise ModelError(
            "this model runs packed rows for an LLM. To call it yourself, first call its "
            "set_attn_implementation('sdpa'), or take a model of your own from load_classifier."
        )
    for name in ("position_bias", "cache"):
        if kwargs.get(name) is not None:
            raise NotPackable(f"its attention passes {name}")
    if attention_mask is None:
        causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
        attention_mask = PackedMask(causal_mask_function) if causal else SEES_ALL
    elif not isinstance(attention_mask, PackedMask):
        if not _masks_nothing(attention_mask):
            raise NotPackable("its attention gets a mask that the model built itself")
        attention_mask = SEES_ALL
    spans = _spans_now(row, query, key, value)
    key, value = row.last_keys or (key, value)
    if row.causal:
        row.causal = attention_mask.is_causal(max(span.num_keys for span in spans), query.device)
    output = attend(query, key, value, spans, attention_mask, scaling, softcap, row, s_aux)
    row.layer += 1
    return output, None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Sequence[SequenceSpan],
    mask: PackedMask,
    scaling: float | None,
    softcap: float | None,
    row: PackedRow,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `sdpa.attend`, by the row's kernel where that can."""
    if row.kernel is not None and sinks is None:
        whole = row.kernel.attend(query, key, value, spans, mask, scaling, softcap, row)
        if whole is not None:
            return whole
    return sdpa.attend(query, key, value, spans, mask, scaling, softcap, row, sinks)


def _masks_nothing(mask: torch.Tensor) -> bool:
    """Whether it is what a model makes of the row's mask of ones by itself: zero for every key, the same of all queries."""
    return mask.ndim == 4 and mask.shape[-2] == 1 and not bool(mask.any())


def _spans_now(row: PackedRow, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Sequence[SequenceSpan]:
    """The spans of this call, once the keys and values that are wanted later have been kept."""
    if row.last_keys is not None:
        return row.pooled_spans
    length = row.spans[-1].queries.stop
    if key.shape[0] != 1 or key.shape[2] != length or query.shape[2] not in (length, 0):
        raise NotPackable("its attention reshapes the sequence")
    for span in row.spans:
        if span.keep is not None:
            span.keep.append(*sdpa.with_past(key, value, span, row.layer))
    if row.wants_keys_only:
        row.last_keys, row.wants_keys_only = (key, value), False
        raise StopAfterKeyValues
    return row.spans


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, packed_mask)

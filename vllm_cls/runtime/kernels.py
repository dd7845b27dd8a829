"""Attention over the spans of a row: one kernel for all where a GPU has it, else SDPA span by span.

On a CPU the loop over spans is as fast as anything (measured).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from .mask import PackedMask
from .row import Row, Span


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Sequence[Span],
    mask: PackedMask,
    scaling: float | None,
    softcap: float | None,
    row: Row,
) -> torch.Tensor:
    """Each span's queries over its keys.

    Args:
        query: `(1, heads, num_queries, head_dim)`.
        key: `(1, key_value_heads, num_tokens, head_dim)`; value likewise, its width may differ.
        row: says which layer runs, and which kernel.

    Returns:
        `(1, num_queries, heads, value_dim)`.
    """
    if row.kernel is not None:
        whole = row.kernel.attend(query, key, value, spans, mask, scaling, softcap, row)
        if whole is not None:
            return whole
    if row.static:
        raise RuntimeError("a recorded forward needs a kernel over the whole row")
    output = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    for span in spans:
        q = query[:, :, span.queries]
        k, v = with_past(key, value, span, row.layer)
        seen, causal = mask.of(span.offset, span.num_queries, span.num_keys, query.device)
        if softcap is None:
            gqa = query.shape[1] != key.shape[1]
            part = scaled_dot_product_attention(q, k, v, seen, is_causal=causal, scale=scaling, enable_gqa=gqa)
        else:
            part = _softcapped(q, k, v, seen, causal, scaling, softcap)
        output[:, span.queries] = part.transpose(1, 2)
    return output


def with_past(key: torch.Tensor, value: torch.Tensor, span: Span, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a span's whole prompt, each `(1, key_value_heads, num_keys, head_dim)`."""
    k, v = key[:, :, span.keys], value[:, :, span.keys]
    if span.past is None:
        return k, v
    past_key, past_value = span.past.layers[layer]
    return torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)


def _softcapped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """Attention whose scores are soft-capped (Gemma 2), which torch's fused kernels do not offer."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    if causal:
        mask = torch.ones_like(scores[:1, :1], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value

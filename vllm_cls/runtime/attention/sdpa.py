"""Attention over the spans of a row by torch, span by span: what runs where no kernel takes the whole row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..mask import MOST_SCORES, PackedMask
from ..row import PackedRow, SequenceSpan


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
    """Each span's queries over its keys.

    Args:
        query: `(1, heads, num_queries, head_dim)`.
        key: `(1, key_value_heads, num_tokens, head_dim)`; value likewise, its width may differ.
        row: says which layer runs.
        sinks: `(heads,)`, the score of a key without a value that every query sees (gpt-oss), or None.

    Returns:
        `(1, num_queries, heads, value_dim)`.
    """
    if row.static:
        raise RuntimeError("a recorded forward needs a kernel over the whole row")
    output = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    for span in spans:
        q = query[:, :, span.queries]
        k, v = with_past(key, value, span, row.layer)
        first, fused = span.queries.start, softcap is None and sinks is None
        for part in mask.parts(
            span.offset, span.num_queries, span.num_keys, query.device, span.start,
            most=MOST_SCORES if fused else MOST_SCORES // query.shape[1], fused=fused,
        ):  # fmt: skip
            some = (q[:, :, part.queries], k[:, :, part.keys], v[:, :, part.keys])
            if fused:
                gqa = query.shape[1] != key.shape[1]
                states = scaled_dot_product_attention(
                    *some, part.table, is_causal=part.causal, scale=scaling, enable_gqa=gqa
                )
            else:
                states = _by_scores(*some, part.table, part.causal, scaling, softcap, sinks)
            output[:, first + part.queries.start : first + part.queries.stop] = states.transpose(1, 2)
    return output


def with_past(
    key: torch.Tensor, value: torch.Tensor, span: SequenceSpan, layer: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a span's whole prompt, each `(1, key_value_heads, num_keys, head_dim)`."""
    k, v = key[:, :, span.keys], value[:, :, span.keys]
    if span.past is None:
        return k, v
    past_key, past_value = span.past.layers[layer]
    return torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)


def _by_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention with soft-capped scores (Gemma 2) or sinks (gpt-oss), which torch's fused kernels do not offer."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if causal:
        mask = torch.ones_like(scores[:1, :1], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return weights[..., : key.shape[2]] @ value

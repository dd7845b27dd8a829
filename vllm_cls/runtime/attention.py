"""Attention over a packed row: each sequence attends within itself.

Registered with transformers' attention and mask interfaces under one name, so every architecture
that uses those runs without padding. Where a sequence begins and ends is kept beside the model, in a
context local to the thread: some models do not pass such arguments down to their attention.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

NAME = "vcls_packed"
_local = threading.local()


class NotPackable(Exception):
    """The model asks its attention for something that a packed row cannot give."""


@contextmanager
def packing(lengths: Sequence[int]) -> Iterator[None]:
    """Within it, this thread's forwards see a row that holds sequences of these lengths."""
    _local.bounds = []
    start = 0
    for length in lengths:
        _local.bounds.append((start, start + length))
        start += length
    try:
        yield
    finally:
        del _local.bounds


class PackedMask:
    """What the mask interface answers: the model's mask function, evaluated for each sequence by itself.

    Args:
        mask_function: transformers' `(batch, head, query index, key index) -> bool`, or None for "see all".
    """

    def __init__(self, mask_function: Callable[..., Any]) -> None:
        self.causal = mask_function is causal_mask_function
        self._function = None if mask_function is bidirectional_mask_function else mask_function
        self._by_length: dict[int, tuple[torch.Tensor | None, bool]] = {}

    def of(self, length: int, device: torch.device) -> tuple[torch.Tensor | None, bool]:
        """`(mask (1, 1, length, length) or None, is_causal)` for one sequence of this length."""
        if self.causal or self._function is None:
            return None, self.causal
        if length not in self._by_length:
            self._by_length[length] = self._evaluate(length, device)
        return self._by_length[length]

    def _evaluate(self, length: int, device: torch.device) -> tuple[torch.Tensor | None, bool]:
        assert self._function is not None
        index = torch.arange(length, device=device)
        zero = index.new_zeros(1, 1, 1, 1)
        mask = self._function(zero, zero, index.view(1, 1, -1, 1), index.view(1, 1, 1, -1))
        mask = torch.as_tensor(mask, device=device).expand(1, 1, length, length)
        if bool(mask.all()):  # a window wider than the sequence: let the fast kernel have it
            return None, False
        if torch.equal(mask[0, 0], torch.ones_like(mask[0, 0]).tril()):
            return None, True
        return mask, False


def packed_mask(*args: Any, mask_function: Callable[..., Any] = causal_mask_function, **kwargs: Any) -> PackedMask:
    """Mask interface: keep the function, since only our attention knows the sequences."""
    return PackedMask(mask_function)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: PackedMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention interface over `(1, heads, num_tokens, head_dim)` → `(1, num_tokens, heads, head_dim)`.

    Raises:
        NotPackable: the model passes a mask of its own, a position bias or attention sinks.
    """
    for name in ("position_bias", "s_aux", "cache"):
        if kwargs.get(name) is not None:
            raise NotPackable(f"its attention passes {name}")
    if attention_mask is not None and not isinstance(attention_mask, PackedMask):
        raise NotPackable("its attention gets a mask that the model built itself")
    if query.shape[0] != 1 or query.shape[2] != _local.bounds[-1][1] or key.shape[2] != query.shape[2]:
        raise NotPackable("its attention reshapes the sequence")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    output = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    for start, end in _local.bounds:
        q, k, v = query[:, :, start:end], key[:, :, start:end], value[:, :, start:end]
        mask, causal = (None, is_causal) if attention_mask is None else attention_mask.of(end - start, query.device)
        if softcap is None:
            part = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scaling)
        else:
            part = _softcapped_attention(q, k, v, mask, causal, scaling, softcap)
        output[:, start:end] = part.transpose(1, 2)
    return output, None


def _softcapped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """Attention whose scores are soft-capped (Gemma 2), which torch's fused kernels do not offer."""
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    if causal:
        mask = torch.ones_like(scores[:1, :1], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, packed_mask)

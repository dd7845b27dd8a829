"""float32 attention of all sequences of a row in one call, for a thread that has a processor to itself.

torch's fused attention is made for long sequences: of 40 tokens, most of its time goes into starting (measured: this
is 1.7 to 3 times as fast there, and as fast at 512).
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import threading
from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..mask import PackedMask
from ..row import PackedRow, SequenceSpan, SpanStructs, spans_of
from .compiler import library, log_absence

_FLAGS = ("-fno-signed-zeros", "-ffp-contract=fast")
# Longer keys leave the cache, where torch's blocks win.
_MOST_KEYS = 4096
# The C runs on one thread; with more of them torch's catches up.
_MOST_THREADS = 2
_ALL = -1  # every key is seen
NAME = "C, all sequences at once"


_lock = threading.Lock()
if hasattr(os, "register_at_fork"):  # a child would wait for ever for a thread that it does not have
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def prepare() -> None:
    """Begin to compile, in a thread: a model that loads meanwhile finds it done."""
    threading.Thread(target=compiled, name="vllm_cls_compiler", daemon=True).start()


def compiled() -> ctypes.CDLL | None:
    """The library, or None where it cannot be made here."""
    with _lock:  # the first one waits for it, not every one makes it
        return _compiled()


@functools.cache
def _compiled() -> ctypes.CDLL | None:
    made = library("attention", _FLAGS)
    if made is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        made.attend.argtypes = [
            *[pointer] * 5, *[number] * 6, ctypes.c_char_p, ctypes.c_float
        ]  # fmt: skip
        made.attend.restype = ctypes.c_int
        if not _is_right(made):
            log_absence("attention", "what the compiler made gives other numbers than torch")
            return None
    return made


def _is_right(made: ctypes.CDLL) -> bool:
    """Whether the library agrees with torch: the check of a model may run with more threads, and so without it."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 21, 24, generator=generator, dtype=torch.float32, device="cpu") for _ in range(3))
    spans, offsets = spans_of([4, 17]), [0, _ALL]
    ours = _call(made, q, k, v, SpanStructs(spans, offsets), 1.0, layer=0)
    for span, offset in zip(spans, offsets, strict=True):
        query, key, value = (each[:, :, span.queries] for each in (q, k, v))
        expected = scaled_dot_product_attention(query, key, value, is_causal=offset != _ALL, scale=1.0)
        if not torch.allclose(ours[:, span.queries], expected.transpose(1, 2), atol=1e-5, rtol=1e-5):
            return False
    return True


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Sequence[SequenceSpan],
    mask: PackedMask,
    scaling: float | None,
    row: PackedRow,
) -> torch.Tensor | None:
    """As `runtime.kernels.attend`; None where torch has to do it.

    Raises:
        MemoryError: there is none for one head's scores.
    """
    offsets = _offsets(spans, mask, query.device) if _suits(query, key, value, spans) else None
    if offsets is None:
        return None
    row.suits_c = True
    made = compiled() if torch.get_num_threads() <= _MOST_THREADS else None
    if made is None:
        return None
    if spans is row.spans:  # the next layer reads the same
        described = row.described.get(offsets)
        if described is None:
            described = row.described[offsets] = SpanStructs(spans, offsets)
    else:
        described = SpanStructs(spans, offsets)
    if described.most_keys > _MOST_KEYS:
        return None
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    return _call(made, query, key, value, described, scale, row.layer)


def _call(
    made: ctypes.CDLL,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    described: SpanStructs,
    scale: float,
    layer: int,
) -> torch.Tensor:
    _, heads, num_queries, d = query.shape
    dv = value.shape[3]
    output = query.new_empty(1, num_queries, heads, dv)  # whatever torch's default dtype is now
    strides = struct.pack("6q", *(each.stride(axis) for each in (query, key, value) for axis in (1, 2)))
    failed = made.attend(
        query.data_ptr(), key.data_ptr(), value.data_ptr(), output.data_ptr(), *described.of(layer),
        described.most_keys, heads, heads // key.shape[1], d, dv, strides, scale,
    )  # fmt: skip
    if failed:
        raise MemoryError("attention finds no memory for the scores of one head")
    return output


def _suits(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: Sequence[SequenceSpan]) -> bool:
    tensors = (query, key, value)
    return (
        not torch.is_grad_enabled()
        and all(each.dtype == torch.float32 and each.device.type == "cpu" for each in tensors)
        and all(each.stride(3) == 1 for each in tensors)
        and _fit(query, key, value, spans[-1])
    )


def _fit(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, last: SequenceSpan) -> bool:
    """Whether they have the shapes that the C reads: it checks nothing."""
    return (
        query.shape[0] == 1
        and key.shape[:3] == value.shape[:3]
        and query.shape[3] == key.shape[3]
        and query.shape[1] % key.shape[1] == 0
        and last.queries.stop <= query.shape[2]
        and last.keys.stop <= key.shape[2]
    )


def _offsets(spans: Sequence[SequenceSpan], mask: PackedMask, device: torch.device) -> tuple[int, ...] | None:
    """Where each sequence's first query is among the keys that it sees one after the other, or −1 where it sees all."""
    if mask.sees_all:
        return (_ALL,) * len(spans)
    if mask.plain_causal:
        return tuple(span.offset for span in spans)
    seen = [mask.of(span.offset, span.num_queries, span.num_keys, device) for span in spans]
    if any(table is not None for table, _ in seen):
        return None
    return tuple(0 if causal else _ALL for _, causal in seen)

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
from array import array
from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..mask import PackedMask
from ..row import KeyValues, PackedRow, SequenceSpan
from .compiler import library, log_absence

_FLAGS = ("-fno-signed-zeros", "-ffp-contract=fast")
# Longer keys leave the cache, where torch's blocks win.
_MOST_KEYS = 4096
# The C runs on one thread; with more of them torch's catches up.
_MOST_THREADS = 2
_ALL = -1  # every key is seen
name = "C, all sequences at once"

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
    spans = [SequenceSpan(rows, rows) for rows in (slice(0, 4), slice(4, 21))]
    offsets = [0, _ALL]
    ours = _call(q, k, v, SpanStructs(made, spans, offsets), 1.0, layer=0)
    for span, offset in zip(spans, offsets, strict=True):
        query, key, value = (each[:, :, span.queries] for each in (q, k, v))
        expected = scaled_dot_product_attention(query, key, value, is_causal=offset != _ALL, scale=1.0)
        if not torch.allclose(ours[:, span.queries], expected.transpose(1, 2), atol=1e-5, rtol=1e-5):
            return False
    return True


class SpanStructs:
    """Spans as the C file reads them: its structs `span`, one behind the other.

    Args:
        made: the library that reads them.
        offsets: what `_offsets` gave for them.
    """

    def __init__(self, made: ctypes.CDLL, spans: Sequence[SequenceSpan], offsets: Sequence[int]) -> None:
        self.library, self.most_keys, self.count = made, 0, len(spans)
        self._numbers = array("q")
        # What comes before several is looked up once a layer; each with the places of its addresses.
        self.pasts: dict[int, tuple[KeyValues, list[int]]] = {}
        for span, offset in zip(spans, offsets, strict=True):
            num_queries, own, past = span.queries.stop - span.queries.start, span.keys.stop - span.keys.start, 0
            if span.past is not None:
                past = span.past.num_tokens
                places = self.pasts.setdefault(id(span.past), (span.past, []))[1]
                places.append(len(self._numbers) + 6)
            self._numbers.extend(
                (span.queries.start, num_queries, span.keys.start, own, offset, past, 0, 0, 0, 0, 0, 0)
            )
            self.most_keys = max(self.most_keys, own + past)
        self.address = self._numbers.buffer_info()[0]

    def point_to(self, layer: int) -> None:
        """Have the structs say where what comes before lies in a layer."""
        for past, places in self.pasts.values():
            key, value = past.layers[layer]  # which may be the beginning of a longer one: a view
            strides = (each.stride(axis) for each in (key, value) for axis in (1, 2))
            found = array("q", (key.data_ptr(), value.data_ptr(), *strides))
            for place in places:
                self._numbers[place : place + 6] = found


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Sequence[SequenceSpan],
    mask: PackedMask,
    scaling: float | None,
    softcap: float | None,
    row: PackedRow,
) -> torch.Tensor | None:
    """As `sdpa.attend`; None where torch has to do it.

    Raises:
        MemoryError: there is none for one head's scores.
    """
    if softcap is not None or not _takes(query, key, value, spans[-1]):
        return None
    if spans is row.spans and mask in row.described:  # the next layer reads the same
        described: SpanStructs | None = row.described[mask]
    else:
        described = _described(spans, mask, row, query.device)
        if spans is row.spans:
            row.described[mask] = described
    if described is None:
        return None
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    return _call(query, key, value, described, scale, row.layer)


def _takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, last: SequenceSpan) -> bool:
    """Whether they are what the C reads: it checks nothing."""
    shape, keys, values = query.shape, key.shape, value.shape
    return (
        query.dtype == key.dtype == value.dtype == torch.float32
        and query.device.type == key.device.type == value.device.type == "cpu"
        and query.stride(3) == key.stride(3) == value.stride(3) == 1
        and not torch.is_grad_enabled()
        and shape[0] == 1
        and keys[:3] == values[:3]
        and shape[3] == keys[3]
        and shape[1] % keys[1] == 0
        and last.queries.stop <= shape[2]
        and last.keys.stop <= keys[2]
    )


def _described(
    spans: Sequence[SequenceSpan], mask: PackedMask, row: PackedRow, device: torch.device
) -> SpanStructs | None:
    """The spans for the C; None where it cannot be had, or where torch is as fast."""
    offsets = _offsets(spans, mask, device)
    if offsets is None:
        return None
    row.suits_c = True
    made = compiled() if torch.get_num_threads() <= _MOST_THREADS else None
    described = None if made is None else SpanStructs(made, spans, offsets)
    return None if described is None or described.most_keys > _MOST_KEYS else described


def _offsets(spans: Sequence[SequenceSpan], mask: PackedMask, device: torch.device) -> Sequence[int] | None:
    """Where each sequence's first query is among the keys that it sees one after the other, or −1 where it sees all."""
    if mask.sees_all:
        return [_ALL] * len(spans)
    if mask.plain_causal:
        return [span.offset for span in spans]
    if max(span.num_keys for span in spans) > _MOST_KEYS:  # whose tables would be large
        return None
    seen = [mask.seen(span.offset, span.num_queries, span.num_keys, device, span.start) for span in spans]
    if any(table is not None for table, _ in seen):
        return None
    return [0 if causal else _ALL for _, causal in seen]


def _call(
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
    strides = struct.pack(
        "6q", query.stride(1), query.stride(2), key.stride(1), key.stride(2), value.stride(1), value.stride(2)
    )
    if described.pasts:
        described.point_to(layer)
    failed = described.library.attend(
        query.data_ptr(), key.data_ptr(), value.data_ptr(), output.data_ptr(), described.address, described.count,
        described.most_keys, heads, heads // key.shape[1], d, dv, strides, scale,
    )  # fmt: skip
    if failed:
        raise MemoryError("attention finds no memory for the scores of one head")
    return output

"""Integer products in C, which give float32 at once: bias, scales and a GELU are no passes of their own."""

from __future__ import annotations

import ctypes
import functools
import struct

import torch
from torch.nn import functional as F

from .compiler import library

# Products and sums are rounded one by one (no contraction), as torch's passes round them.
_FLAGS = ("-ffp-contract=off", "-pthread")
# Multiply-adds that are worth a thread more.
WORTH_A_THREAD = 1 << 24


@functools.cache
def compiled() -> ctypes.CDLL | None:
    """The library, or None where it cannot be made here or has nothing for this processor."""
    made = library("int8_product", _FLAGS)
    if made is not None:
        made.panel_width.restype = ctypes.c_int64
        made.multiply.argtypes, made.multiply.restype = [ctypes.c_char_p, ctypes.c_int64], None
    return made if made is not None and made.panel_width() else None


def takes(inputs: int) -> bool:
    """Whether there are such products here for rows of so many numbers, which are read four at a time."""
    return inputs % 4 == 0 and compiled() is not None


class Int8Panels:
    """The product of rows of 8 bits with an integer weight. Safe to call from several threads.

    Args:
        integers: `(out, in)`, int8.
        weight_scale, sums, bias: `(out,)`, float32; the sums of the integers, times their scale.
        gelu: apply the exact one to the result.
    """

    kernel = "C"

    def __init__(
        self,
        integers: torch.Tensor,
        weight_scale: torch.Tensor,
        sums: torch.Tensor,
        bias: torch.Tensor,
        gelu: bool = False,
    ) -> None:
        made = compiled()
        assert made is not None
        self._multiply, panel = made.multiply, made.panel_width()
        self._out, self._in = integers.shape
        beyond = -self._out % panel
        panels = F.pad(integers, (0, 0, 0, beyond)).view(-1, panel, self._in // 4, 4)
        start = integers.sum(1, dtype=torch.int32).mul_(-128)
        self._constants = (panels.transpose(1, 2).contiguous(),) + tuple(
            F.pad(each, (0, beyond)).contiguous() for each in (start, weight_scale, sums, bias)
        )
        self._gelu = int(gelu)

    def __call__(self, q: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """`((q − 128 − offset) @ integers.T · weight_scale) · scale + bias`, `(rows, out)`, float32.

        Args:
            q: `(rows, in)`, uint8, contiguous.
            scale, offset: `(rows, 1)`, float32.
        """
        y = scale.new_empty(len(q), self._out)
        threads = 1 + min(torch.get_num_threads() - 1, q.numel() * self._out // WORTH_A_THREAD)
        pointers = (each.data_ptr() for each in (q, *self._constants, scale, offset, y))
        self._multiply(struct.pack("9P4q", *pointers, len(q), self._in, self._out, self._gelu), threads)
        return y

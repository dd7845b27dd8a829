"""Encodes tensors as bytes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

from ..errors import RequestError

if TYPE_CHECKING:
    import torch

EmbedDtype = Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]
Endianness = Literal["native", "big", "little"]

_TORCH_NAMES = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}


def to_bytes(tensor: torch.Tensor, dtype: EmbedDtype | None = None, endianness: Endianness | None = None) -> bytes:
    """The numbers of a tensor, row by row; float32 in the machine's own order unless something else is said.

    Raises:
        RequestError: one is too large for the dtype.
    """
    import torch

    dtype, endianness = dtype or "float32", endianness or "native"
    numbers = tensor.detach().cpu().to(getattr(torch, _TORCH_NAMES.get(dtype, dtype))).contiguous()
    if not bool(torch.isfinite(numbers.to(torch.float32)).all()):
        raise RequestError(f"A number of the answer does not fit {dtype}; use float32.", "embed_dtype")
    rows = numbers.reshape(-1, 1).view(torch.uint8)
    if endianness not in ("native", sys.byteorder):
        rows = rows.flip(1)
    return rows.numpy().tobytes()

"""float32 products in C, with a weight that was laid out once and a GELU that follows.

A BLAS that multiplies arbitrary matrices lays the weight out at each call, and a GELU behind it is another pass.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch.nn import functional as F

from .compiler import library, log_absence

FLAGS = ("-ffp-contract=fast", "-pthread")
# By torch's `approximate` of the GELU that follows; None where none follows.
_GELUS = {None: 0, "none": 1, "tanh": 2}
# Multiply-adds that are worth a thread more: what starting one takes, ten times over.
WORTH_A_THREAD = 1 << 23


@functools.cache
def compiled() -> ctypes.CDLL | None:
    """The library, or None where it cannot be made here."""
    made = library("product", FLAGS)
    if made is not None:
        made.multiply.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 5
        made.multiply.restype = None
        made.panel_width.restype = ctypes.c_int64
        if not _is_right(made):
            log_absence("product", "what the compiler made gives other numbers than torch")
            return None
    return made


def panel_linear(
    weight: torch.Tensor, bias: torch.Tensor | None, gelu: str | None = None
) -> Callable[..., torch.Tensor]:
    """The product `x (…, in)` → `(…, out)` in C, float32, without gradients. Safe to call from several threads.

    Args:
        weight: `(out, in)`; changes to it after this are not seen.
        bias: `(out,)` or None.
        gelu: "none" (exact) or "tanh", torch's `approximate` of the GELU that follows; None where none follows.

    Raises:
        RuntimeError: `compiled` gives None here.
    """
    made = compiled()
    if made is None:
        raise RuntimeError("there are no products in C here")
    return PanelProduct(made, weight, bias, gelu)


class PanelProduct:
    """See `panel_linear`."""

    kernel = "C"

    def __init__(
        self, made: ctypes.CDLL, weight: torch.Tensor, bias: torch.Tensor | None, gelu: str | None = None
    ) -> None:
        panel = made.panel_width()
        self._out, self._in = weight.shape
        wide = F.pad(weight.detach(), (0, 0, 0, -self._out % panel)).view(-1, panel, self._in)
        self._weight = wide.transpose(1, 2).contiguous()
        self._bias = None if bias is None else bias.detach().contiguous()
        self._gelu, self._multiply = _GELUS[gelu], made.multiply

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self._in).float().contiguous()  # the C checks nothing, and autocast may give others
        y = rows.new_empty(len(rows), self._out)
        threads = 1 + min(torch.get_num_threads() - 1, y.numel() * self._in // WORTH_A_THREAD)
        bias = None if self._bias is None else self._bias.data_ptr()
        self._multiply(
            rows.data_ptr(), self._weight.data_ptr(), bias, y.data_ptr(), *rows.shape, self._out, self._gelu, threads
        )
        return y.view(*x.shape[:-1], self._out)


def _is_right(made: ctypes.CDLL) -> bool:
    """Whether the library agrees with torch, with whole tiles and panels and with parts of them."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")
        for shape in ((13, 600), (101, 600), (101,))
    )
    expected = F.linear(x, weight, bias)
    return all(
        torch.allclose(
            PanelProduct(made, weight, bias, gelu)(x),
            expected if gelu is None else F.gelu(expected, approximate=gelu),
            atol=1e-3,
            rtol=1e-5,
        )
        for gelu in _GELUS
    )

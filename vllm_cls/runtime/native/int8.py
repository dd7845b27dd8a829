"""float32 rows ↔ integers with a scale a row: some lines of C where a compiler is found, else torch, same numbers.

A row never sees another, so a token's result cannot depend on what shares its batch. torch.compile was measured too:
11 s at every start with its cache warm, 60 µs a call, and slower loops.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch.nn import functional as F

from .compiler import library

ZERO = 128  # what the integer product subtracts from its 8-bit inputs

# Products and sums are rounded one by one (no contraction), as torch's passes round them.
_FLAGS = ("-ffp-contract=off", "-ffinite-math-only", "-fno-signed-zeros")
# The C runs on one thread; with more of them torch's passes catch up.
_MOST_THREADS = 4
# Blocks of a rotation: as int8.c knows them.
_MOST_ROTATED, _FEWEST_ROTATED = 128, 16


def rotated_block(width: int) -> int:
    """How many numbers of a row of `width` are rotated together: a power of two that divides it; 1 rotates nothing."""
    block = min(width & -width, _MOST_ROTATED)
    return block if block >= _FEWEST_ROTATED else 1


def rotated(x: torch.Tensor, block: int) -> torch.Tensor:
    """The Hadamard transform of each `block` numbers of rows `(rows, width)`, without its factor `1 / sqrt(block)`.

    A number that is large among its neighbours is spread over them, so that a row's scale is finer for all (QuaRot,
    arXiv:2404.00456, per block). Done twice, it gives `block · x`.
    """
    for step in (1 << exponent for exponent in range(block.bit_length() - 1)):
        first, second = x.view(len(x), -1, 2, step).unbind(2)
        x = torch.stack([first + second, first - second], 2).view(len(x), -1)
    return x


class EagerKernels:
    """The two steps as passes of torch."""

    def quantize(
        self, x: torch.Tensor, factor: torch.Tensor, block: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows of `rotated(x · factor)` as integers, each `≈ scale · (q − 128 − offset)`.

        Zero has an integer of its own. A row that holds NaN or infinity gets the scale NaN.

        Args:
            x: `(rows, width)`, float32, contiguous.
            factor: `(width,)`.
            block: see `rotated`.

        Returns:
            q `(rows, width)` uint8, scale `(rows, 1)`, offset `(rows, 1)`, a whole number in float32.
        """
        scaled = rotated(x * factor, block)
        low = scaled.amin(1, keepdim=True).clamp_max_(0.0)
        high = scaled.amax(1, keepdim=True).clamp_min_(0.0)
        step = high.sub_(low).div_(torch.tensor(255.0)).clamp_min_(1e-30)
        inverse = step.reciprocal()
        zero = low.neg_().mul_(inverse).round_()
        q = scaled.mul_(inverse).round_().add_(zero).clamp_(0.0, 255.0).to(torch.uint8)
        return q, torch.where(step.isfinite(), step, torch.nan), zero.sub_(ZERO)

    def dequantize(
        self,
        y: torch.Tensor,
        scale: torch.Tensor,
        offset: torch.Tensor,
        sums: torch.Tensor,
        bias: torch.Tensor,
        gelu: bool = False,
    ) -> torch.Tensor:
        """`(y − offset · sums) · scale + bias`, in place: `y` `(rows, width)`, `sums` and `bias` `(width,)`.

        Args:
            gelu: apply it to the result; in C, to within 1e-6.
        """
        y = y.sub_(offset * sums).mul_(scale).add_(bias)
        return F.gelu(y) if gelu else y


class CompiledKernels:
    """The two steps in C, one pass each; see `EagerKernels`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._quantize, self._back = library.quantize, (library.dequantize, library.dequantize_gelu)
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._quantize.argtypes = [pointer, pointer, number, number, number, pointer, pointer, pointer, pointer]
        for each in self._back:
            each.argtypes = [pointer, number, number, pointer, pointer, pointer, pointer]
        for each in (self._quantize, *self._back):
            each.restype = None

    def quantize(
        self, x: torch.Tensor, factor: torch.Tensor, block: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows, width = x.shape
        q = x.new_empty(rows, width, dtype=torch.uint8)
        row, scale, offset = x.new_empty(width), x.new_empty(rows, 1), x.new_empty(rows, 1)
        pointers = (each.data_ptr() for each in (row, q, scale, offset))
        self._quantize(x.data_ptr(), factor.data_ptr(), rows, width, block, *pointers)
        return q, scale, offset

    def dequantize(
        self,
        y: torch.Tensor,
        scale: torch.Tensor,
        offset: torch.Tensor,
        sums: torch.Tensor,
        bias: torch.Tensor,
        gelu: bool = False,
    ) -> torch.Tensor:
        pointers = (each.data_ptr() for each in (scale, offset, sums, bias))
        self._back[gelu](y.data_ptr(), *y.shape, *pointers)
        return y


_EAGER = EagerKernels()


@functools.cache
def compiled() -> CompiledKernels | None:
    """The kernels in C, or None where they cannot be made here."""
    made = library("int8", _FLAGS)
    return CompiledKernels(made) if made is not None else None


def kernels() -> EagerKernels | CompiledKernels:
    """The faster kernels for this thread."""
    if torch.get_num_threads() > _MOST_THREADS:
        return _EAGER
    return compiled() or _EAGER

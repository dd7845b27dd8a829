"""float32 rows ↔ integers with a scale a row: a few lines of C where a compiler is found, else torch, same numbers.

A row never sees another, so a token's result cannot depend on what shares its batch. The C is compiled when
it is first needed (0.2 s) and kept nowhere. torch.compile was measured too: 11 s at every start with its cache
warm, 60 µs a call, and slower loops.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

ZERO = 128  # what the integer product subtracts from its 8-bit inputs

_SOURCE = r"""
#include <math.h>
#include <stdint.h>
#include <string.h>

void quantize(const float *restrict x, const float *restrict factor, int64_t rows, int64_t width,
              uint8_t *restrict q, float *restrict scale, float *restrict offset) {
  for (int64_t r = 0; r < rows; ++r, x += width, q += width) {
    float low = 0.0f, high = 0.0f;
    int32_t bad = 0;
    for (int64_t i = 0; i < width; ++i) {
      float v = x[i] * factor[i];
      int32_t bits;
      memcpy(&bits, &v, 4);
      bad |= (bits & 0x7f800000) == 0x7f800000;
      low = v < low ? v : low;
      high = v > high ? v : high;
    }
    float step = (high - low) / 255.0f;
    step = step > 1e-30f ? step : 1e-30f;
    float inverse = 1.0f / step;
    float zero = rintf(-low * inverse);
    for (int64_t i = 0; i < width; ++i) {
      float v = rintf(x[i] * factor[i] * inverse) + zero;
      v = v > 0.0f ? v : 0.0f;
      v = v < 255.0f ? v : 255.0f;
      q[i] = (uint8_t)(int32_t)v;
    }
    scale[r] = step;
    offset[r] = zero - 128.0f;
    if (bad) {
      const int32_t nan = 0x7fc00000;
      memcpy(scale + r, &nan, 4);
    }
  }
}

void dequantize(float *restrict y, int64_t rows, int64_t width, const float *restrict scale,
                const float *restrict offset, const float *restrict sums, const float *restrict bias) {
  for (int64_t r = 0; r < rows; ++r, y += width) {
    float s = scale[r], o = offset[r];
    for (int64_t i = 0; i < width; ++i) y[i] = (y[i] - o * sums[i]) * s + bias[i];
  }
}
"""
# Products and sums are rounded one by one (no contraction), as torch's passes round them.
_FLAGS = (
    "-O3 -march=native -shared -fPIC -ffp-contract=off -fno-math-errno -fno-trapping-math -ffinite-math-only "
    "-fno-signed-zeros"
).split()
# The C runs on one thread; with more of them torch's passes catch up.
_MOST_THREADS = 4


class EagerKernels:
    """The two steps as passes of torch."""

    def quantize(self, x: torch.Tensor, factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows of `x · factor` as integers: `x · factor ≈ scale · (q − 128 − offset)`.

        Zero has an integer of its own. A row that holds NaN or infinity gets the scale NaN.

        Args:
            x: `(rows, width)`, float32, contiguous.
            factor: `(width,)`.

        Returns:
            q `(rows, width)` uint8, scale `(rows, 1)`, offset `(rows, 1)`, a whole number in float32.
        """
        scaled = x * factor
        low = scaled.amin(1, keepdim=True).clamp_max_(0.0)
        high = scaled.amax(1, keepdim=True).clamp_min_(0.0)
        step = high.sub_(low).div_(torch.tensor(255.0)).clamp_min_(1e-30)
        inverse = step.reciprocal()
        zero = low.neg_().mul_(inverse).round_()
        q = scaled.mul_(inverse).round_().add_(zero).clamp_(0.0, 255.0).to(torch.uint8)
        return q, torch.where(step.isfinite(), step, torch.nan), zero.sub_(ZERO)

    def dequantize(
        self, y: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, sums: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """`(y − offset · sums) · scale + bias`, in place: `y` `(rows, width)`, `sums` and `bias` `(width,)`."""
        return y.sub_(offset * sums).mul_(scale).add_(bias)


class CompiledKernels:
    """The two steps in C, one pass each; see `EagerKernels`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._quantize, self._dequantize = library.quantize, library.dequantize
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._quantize.argtypes = [pointer, pointer, number, number, pointer, pointer, pointer]
        self._dequantize.argtypes = [pointer, number, number, pointer, pointer, pointer, pointer]
        self._quantize.restype = self._dequantize.restype = None

    def quantize(self, x: torch.Tensor, factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows, width = x.shape
        q = torch.empty(rows, width, dtype=torch.uint8)
        scale, offset = torch.empty(rows, 1), torch.empty(rows, 1)
        self._quantize(x.data_ptr(), factor.data_ptr(), rows, width, q.data_ptr(), scale.data_ptr(), offset.data_ptr())
        return q, scale, offset

    def dequantize(
        self, y: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, sums: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        pointers = (each.data_ptr() for each in (scale, offset, sums, bias))
        self._dequantize(y.data_ptr(), *y.shape, *pointers)
        return y


_EAGER = EagerKernels()


@functools.cache
def compiled() -> CompiledKernels | None:
    """The kernels in C, or None where they cannot be made here."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        _log_absence("there is no C compiler")
        return None
    try:
        with tempfile.TemporaryDirectory(prefix="vllm_cls_", ignore_cleanup_errors=True) as folder:
            source, library = Path(folder, "int8.c"), Path(folder, "int8.so")
            source.write_text(_SOURCE, encoding="utf-8")
            command = [compiler, *_FLAGS, str(source), "-o", str(library)]
            subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=60)
            return CompiledKernels(ctypes.CDLL(str(library)))
    except subprocess.CalledProcessError as failure:
        _log_absence(f"{compiler} fails: {failure.stderr.strip()[:200]}")
    except (OSError, subprocess.TimeoutExpired) as failure:
        _log_absence(f"{type(failure).__name__}: {failure}")
    return None


def kernels() -> EagerKernels | CompiledKernels:
    """The faster kernels for this thread."""
    if torch.get_num_threads() > _MOST_THREADS:
        return _EAGER
    return compiled() or _EAGER


def _log_absence(reason: str) -> None:
    logging.getLogger("vllm_cls").info("int8 runs without compiled kernels, which are faster: %s", reason)

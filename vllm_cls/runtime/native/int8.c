// float32 rows to integers with a scale a row, and back. See int8.py.
#include <math.h>
#include <stdint.h>
#include <string.h>

// Where a product and a sum may be one rounding: exact in rotations, and a GELU is no exact number anyway.
#if defined(__GNUC__) && !defined(__clang__)
#define FUSED __attribute__((optimize("fp-contract=fast")))
#else
#define FUSED
#endif
#include "gelu.h"

#define UNROLL _Pragma("GCC unroll 16")
#define MOST_ROTATED 128
#define FEWEST_ROTATED 16

#ifdef __AVX512F__
#define LANES 16
#define PLACES(STEP)                                                                                                  \
  0 ^ STEP, 1 ^ STEP, 2 ^ STEP, 3 ^ STEP, 4 ^ STEP, 5 ^ STEP, 6 ^ STEP, 7 ^ STEP, 8 ^ STEP, 9 ^ STEP, 10 ^ STEP,      \
      11 ^ STEP, 12 ^ STEP, 13 ^ STEP, 14 ^ STEP, 15 ^ STEP
#else
#define LANES 8
#define PLACES(STEP) 0 ^ STEP, 1 ^ STEP, 2 ^ STEP, 3 ^ STEP, 4 ^ STEP, 5 ^ STEP, 6 ^ STEP, 7 ^ STEP
#endif
typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t places __attribute__((vector_size(4 * LANES)));

// Lane i of the result is lane i ^ STEP of x.
#if defined(__clang__)
#define SWAPPED(x, STEP) __builtin_shufflevector(x, x, PLACES(STEP))
#else
#define SWAPPED(x, STEP) __builtin_shuffle(x, (places){PLACES(STEP)})
#endif
// 1 where a lane has no STEP in its number, else −1.
#define SIGNS(STEP) (__builtin_convertvector((places){PLACES(STEP)} & STEP, lanes) * (2.0f / (STEP)) - 1.0f)
#define STAGE(x, STEP) x = SWAPPED(x, STEP) + x * SIGNS(STEP)

// The Hadamard transform of COUNT · LANES numbers, in place, without its factor.
FUSED static inline __attribute__((always_inline)) void rotate(float *x, const int count) {
  lanes v[MOST_ROTATED / LANES];
  UNROLL for (int i = 0; i < count; ++i) {
    memcpy(v + i, x + i * LANES, sizeof(lanes));
    STAGE(v[i], 1);
    STAGE(v[i], 2);
    STAGE(v[i], 4);
#if LANES > 8
    STAGE(v[i], 8);
#endif
  }
  UNROLL for (int step = 1; step < count; step *= 2)
    UNROLL for (int i = 0; i < count; ++i)
      if (!(i & step)) {
        lanes first = v[i], second = v[i | step];
        v[i] = first + second;
        v[i | step] = first - second;
      }
  UNROLL for (int i = 0; i < count; ++i) memcpy(x + i * LANES, v + i, sizeof(lanes));
}

FUSED static __attribute__((noinline)) void rotate_row(float *x, int64_t width, int64_t block) {
  for (int64_t i = 0; block >= FEWEST_ROTATED && i < width; i += block) switch (block) {
      case 16: rotate(x + i, 16 / LANES); break;
      case 32: rotate(x + i, 32 / LANES); break;
      case 64: rotate(x + i, 64 / LANES); break;
      default: rotate(x + i, MOST_ROTATED / LANES);
    }
}

// Of the bits: -ffinite-math-only would let the compiler assume the answer.
static inline int32_t not_finite(float x) {
  int32_t bits;
  memcpy(&bits, &x, 4);
  return (bits & 0x7f800000) == 0x7f800000;
}

// `row` has room for one row.
void quantize(const float *restrict x, const float *restrict factor, int64_t rows, int64_t width, int64_t block,
              float *restrict row, uint8_t *restrict q, float *restrict scale, float *restrict offset) {
  for (int64_t r = 0; r < rows; ++r, x += width, q += width) {
    float low = 0.0f, high = 0.0f;
    int32_t bad = 0;
    for (int64_t i = 0; i < width; ++i) row[i] = x[i] * factor[i];
    rotate_row(row, width, block);
    for (int64_t i = 0; i < width; ++i) {
      float v = row[i];
      bad |= not_finite(v);
      low = v < low ? v : low;
      high = v > high ? v : high;
    }
    float step = (high - low) / 255.0f;
    step = step > 1e-30f ? step : 1e-30f;
    float inverse = 1.0f / step;
    float zero = rintf(-low * inverse);
    for (int64_t i = 0; i < width; ++i) {
      float v = rintf(row[i] * inverse) + zero;
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

static inline void dequantize_row(float *restrict y, int64_t width, float scale, float offset,
                                  const float *restrict sums, const float *restrict bias) {
  for (int64_t i = 0; i < width; ++i) y[i] = (y[i] - offset * sums[i]) * scale + bias[i];
}

void dequantize(float *restrict y, int64_t rows, int64_t width, const float *restrict scale,
                const float *restrict offset, const float *restrict sums, const float *restrict bias) {
  for (int64_t r = 0; r < rows; ++r) dequantize_row(y + r * width, width, scale[r], offset[r], sums, bias);
}

FUSED static __attribute__((noinline)) void gelu_row(float *y, int64_t width) {
  for (int64_t i = 0; i < width; ++i) y[i] = exact_gelu(y[i]);
}

void dequantize_gelu(float *restrict y, int64_t rows, int64_t width, const float *restrict scale,
                     const float *restrict offset, const float *restrict sums, const float *restrict bias) {
  for (int64_t r = 0; r < rows; ++r, y += width) {
    dequantize_row(y, width, scale[r], offset[r], sums, bias);
    if (!not_finite(scale[r])) gelu_row(y, width);  // a row of NaN stays so
  }
}

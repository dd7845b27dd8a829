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

#define LANES 16
typedef float lanes __attribute__((vector_size(4 * LANES)));

// Lane i of the result is lane i ^ STEP of x.
#if defined(__clang__)
#define SWAPPED(x, STEP)                                                                                             \
  __builtin_shufflevector(x, x, 0 ^ STEP, 1 ^ STEP, 2 ^ STEP, 3 ^ STEP, 4 ^ STEP, 5 ^ STEP, 6 ^ STEP, 7 ^ STEP,      \
                          8 ^ STEP, 9 ^ STEP, 10 ^ STEP, 11 ^ STEP, 12 ^ STEP, 13 ^ STEP, 14 ^ STEP, 15 ^ STEP)
#else
typedef int32_t places __attribute__((vector_size(4 * LANES)));
#define SWAPPED(x, STEP)                                                                                             \
  __builtin_shuffle(x, (places){0 ^ STEP, 1 ^ STEP, 2 ^ STEP, 3 ^ STEP, 4 ^ STEP, 5 ^ STEP, 6 ^ STEP, 7 ^ STEP,      \
                                8 ^ STEP, 9 ^ STEP, 10 ^ STEP, 11 ^ STEP, 12 ^ STEP, 13 ^ STEP, 14 ^ STEP, 15 ^ STEP})
#endif
#define SIGN(i, STEP) ((i) & (STEP) ? -1.0f : 1.0f)
#define SIGNS(STEP)                                                                                                  \
  (lanes) {                                                                                                          \
    SIGN(0, STEP), SIGN(1, STEP), SIGN(2, STEP), SIGN(3, STEP), SIGN(4, STEP), SIGN(5, STEP), SIGN(6, STEP),         \
        SIGN(7, STEP), SIGN(8, STEP), SIGN(9, STEP), SIGN(10, STEP), SIGN(11, STEP), SIGN(12, STEP), SIGN(13, STEP), \
        SIGN(14, STEP), SIGN(15, STEP)                                                                               \
  }
#define STAGE(x, STEP) x = SWAPPED(x, STEP) + x * SIGNS(STEP)

// The Hadamard transform of COUNT · 16 numbers, in place, without its factor.
FUSED static inline __attribute__((always_inline)) void rotate(float *x, const int count) {
  lanes v[8];
  for (int i = 0; i < count; ++i) {
    memcpy(v + i, x + i * LANES, sizeof(lanes));
    STAGE(v[i], 1);
    STAGE(v[i], 2);
    STAGE(v[i], 4);
    STAGE(v[i], 8);
  }
  for (int step = 1; step < count; step *= 2)
    for (int i = 0; i < count; ++i)
      if (!(i & step)) {
        lanes first = v[i], second = v[i | step];
        v[i] = first + second;
        v[i | step] = first - second;
      }
  for (int i = 0; i < count; ++i) memcpy(x + i * LANES, v + i, sizeof(lanes));
}

FUSED static __attribute__((noinline)) void rotate_row(float *x, int64_t width, int64_t block) {
  for (int64_t i = 0; block >= LANES && i < width; i += block) switch (block / LANES) {
      case 1: rotate(x + i, 1); break;
      case 2: rotate(x + i, 2); break;
      case 4: rotate(x + i, 4); break;
      default: rotate(x + i, 8);
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

// GELU to 1e-6: of the error function, a quotient of polynomials within ±4, beyond which it is ±1.
FUSED static __attribute__((noinline)) void gelu_row(float *y, int64_t width) {
  for (int64_t i = 0; i < width; ++i) {
    float v = y[i], x = v * 0.70710678118654752f;
    x = x > -4.0f ? x : -4.0f;
    x = x < 4.0f ? x : 4.0f;
    float s = x * x;
    float p = -2.72614225801306e-10f;
    p = p * s + 2.77068142495902e-08f;
    p = p * s - 2.10102402082508e-06f;
    p = p * s - 5.69250639462346e-05f;
    p = p * s - 7.34990630326855e-04f;
    p = p * s - 2.95459980854025e-03f;
    p = p * s - 1.60960333262415e-02f;
    float d = -1.45660718464996e-05f;
    d = d * s - 2.13374055278905e-04f;
    d = d * s - 1.68282697438203e-03f;
    d = d * s - 7.37332916720468e-03f;
    d = d * s - 1.42647390514189e-02f;
    float whole = 1.0f + x * p / d;
    whole = x > -4.0f ? whole : 0.0f;
    y[i] = 0.5f * v * whole;
  }
}

void dequantize_gelu(float *restrict y, int64_t rows, int64_t width, const float *restrict scale,
                     const float *restrict offset, const float *restrict sums, const float *restrict bias) {
  for (int64_t r = 0; r < rows; ++r, y += width) {
    dequantize_row(y, width, scale[r], offset[r], sums, bias);
    if (!not_finite(scale[r])) gelu_row(y, width);  // a row of NaN stays so
  }
}

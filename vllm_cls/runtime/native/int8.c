// float32 rows to integers with a scale a row, and back. See int8.py.
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

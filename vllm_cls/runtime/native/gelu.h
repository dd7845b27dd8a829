// GELU of one number, for loops that the compiler makes vectors of. FUSED: a product and a sum may be one rounding.
#include <stdint.h>
#include <string.h>

#ifndef FUSED
#define FUSED
#endif

// To 1e-6: of the error function, a quotient of polynomials within ±4, beyond which it is ±1.
FUSED static inline __attribute__((always_inline)) float exact_gelu(float v) {
  float x = v * 0.70710678118654752f;
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
  return 0.5f * v * whole;
}

// The tanh form as v · sigmoid(2u), with e^x to 2 units in the last place (Cephes' expf).
FUSED static inline __attribute__((always_inline)) float tanh_gelu(float v) {
  float u = 1.5957691216057308f * (v + 0.044715f * v * v * v);
  float x = u > 0.0f ? -u : u;
  x = x > -87.0f ? x : -87.0f;
  float n = x * 1.44269504f + 12582912.0f;  // rounds
  n -= 12582912.0f;
  float r = x - n * 0.693359375f;
  r += n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits = ((int32_t)n + 127) << 23;
  float power;
  memcpy(&power, &bits, 4);
  power *= p;
  return v * (u > 0.0f ? 1.0f : power) / (1.0f + power);
}

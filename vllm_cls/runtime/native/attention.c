// Attention of float32 queries over the keys and values of their own sequence, for all sequences of a row.
// See attention.py. Scores of ROWS queries at a time stay in the cache; nothing is padded but to whole vectors.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define WIDTH 16
#define ROWS 8
#else
#define WIDTH 8
#define ROWS 6
#endif
#define UNROLL _Pragma("GCC unroll 8")

typedef float vec __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

// Keys and values of one head: n tokens, each contiguous, `token` floats apart.
typedef struct {
  const float *keys, *values;
  int64_t n, key_token, value_token;
} part;

static inline vec load(const float *x) { return *(const vec *)x; }
static inline void store(float *x, vec v) { *(vec *)x = v; }
static inline vec splat(float x) { return x - (vec){0}; }
static inline vec pick(ivec which, vec a, vec b) { return (vec)(((ivec)a & which) | ((ivec)b & ~which)); }
static inline int64_t whole(int64_t n) { return (n + WIDTH - 1) / WIDTH * WIDTH; }

static inline float highest(vec x) {
  float a[WIDTH];
  memcpy(a, &x, sizeof a);
  for (int half = WIDTH / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) a[i] = a[i] > a[i + half] ? a[i] : a[i + half];
  return a[0];
}

static inline float sum_of(vec x) {
  float a[WIDTH];
  memcpy(a, &x, sizeof a);
  for (int half = WIDTH / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) a[i] += a[i + half];
  return a[0];
}

// e^x for x <= 0 to 2 units in the last place (Cephes' expf); NaN stays NaN.
static inline vec exponential(vec x) {
  const vec least = splat(-87.0f);
  x = pick(least > x, least, x);
  vec n = x * 1.44269504f + 12582912.0f;  // rounds
  n -= 12582912.0f;
  vec r = x - n * 0.693359375f;
  r += n * 2.12194440e-4f;
  vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  ivec exponent = (__builtin_convertvector(n, ivec) + 127) << 23;
  return p * (vec)exponent;
}

// (n, d) to (d, ld), transposed; what is beyond n up to a whole vector repeats the last row.
static void transpose(const float *restrict x, int64_t token, int64_t n, int64_t d, float *restrict y, int64_t ld) {
  for (int64_t t = 0; t < n; t += WIDTH) {
    const float *rows[WIDTH];
    for (int c = 0; c < WIDTH; ++c) rows[c] = x + (t + c < n ? t + c : n - 1) * token;
    for (int64_t j = 0; j < d; ++j) {
      float a[WIDTH];
      for (int c = 0; c < WIDTH; ++c) a[c] = rows[c][j];
      memcpy(y + j * ld + t, a, sizeof a);
    }
  }
}

// s (ROWS, ld) = queries · keys, for the first n keys, which are a multiple of WIDTH.
static void scores(const float *const *q, const float *restrict kt, int64_t ld, int64_t d, int64_t n, float *restrict s) {
  int64_t b = 0;
  for (; b + WIDTH < n; b += 2 * WIDTH) {
    vec sums[ROWS][2] = {0};
    for (int64_t j = 0; j < d; ++j) {
      vec k0 = load(kt + j * ld + b), k1 = load(kt + j * ld + b + WIDTH);
      UNROLL for (int r = 0; r < ROWS; ++r) {
        float x = q[r][j];
        sums[r][0] += x * k0;
        sums[r][1] += x * k1;
      }
    }
    UNROLL for (int r = 0; r < ROWS; ++r) {
      store(s + r * ld + b, sums[r][0]);
      store(s + r * ld + b + WIDTH, sums[r][1]);
    }
  }
  if (b < n) {
    vec sums[ROWS] = {0};
    for (int64_t j = 0; j < d; ++j) {
      vec k0 = load(kt + j * ld + b);
      UNROLL for (int r = 0; r < ROWS; ++r) sums[r] += q[r][j] * k0;
    }
    UNROLL for (int r = 0; r < ROWS; ++r) store(s + r * ld + b, sums[r]);
  }
}

// s = e^(scale · (s − max)) for the first n, 0 for the rest of `padded`; the inverse of their sum.
static float weigh(float *restrict s, int64_t n, int64_t padded, float scale) {
  ivec places;
  for (int i = 0; i < WIDTH; ++i) places[i] = i;
  const vec least = splat(-__builtin_inff());  // of −∞ alone, the weights are NaN
  int64_t i = 0, full = n / WIDTH * WIDTH;
  ivec inside = places < (int32_t)(n - full);
  vec most = least, total = {0};
  for (; i < full; i += WIDTH) most = pick(load(s + i) > most, load(s + i), most);
  if (full < n) most = pick(inside & (load(s + full) > most), load(s + full), most);
  float max = highest(most);
  for (i = 0; i < full; i += WIDTH) {
    vec e = exponential((load(s + i) - max) * scale);
    store(s + i, e);
    total += e;
  }
  if (full < n) {
    vec e = pick(inside, exponential((load(s + full) - max) * scale), (vec){0});
    store(s + full, e);
    total += e;
    i += WIDTH;
  }
  for (; i < padded; i += WIDTH) store(s + i, (vec){0});
  return 1.0f / sum_of(total);
}

// sums += s · values, of the first n tokens and the 2 · WIDTH channels from b (or WIDTH, where `second` is 0).
static inline void add_values(vec sums[ROWS][2], const float *restrict s, int64_t ld, const float *restrict v,
                              int64_t token, int64_t n, int64_t second) {
  for (int64_t t = 0; t < n; ++t) {
    vec v0 = load(v + t * token), v1 = load(v + t * token + second);
    UNROLL for (int r = 0; r < ROWS; ++r) {
      float x = s[r * ld + t];
      sums[r][0] += x * v0;
      sums[r][1] += x * v1;
    }
  }
}

static inline void put(float *to, vec v, int64_t n) { memcpy(to, &v, (size_t)(n < WIDTH ? n : WIDTH) * 4); }

// Attention of one head of one sequence: `queries` rows from q to out; its keys are `past` and then `own`.
// `offset`: the first query's place among the keys, where each sees what precedes it; −1: each sees all.
static void attend_head(const float *q, int64_t q_token, float *out, int64_t out_token, int64_t queries, int64_t offset,
                        const part *past, const part *own, const float *kt, float *s, int64_t ld, int64_t d, int64_t dv,
                        float scale) {
  int64_t keys = past->n + own->n;
  for (int64_t first = 0; first < queries; first += ROWS) {
    int rows = queries - first < ROWS ? (int)(queries - first) : ROWS;
    const float *each[ROWS];
    for (int r = 0; r < ROWS; ++r) each[r] = q + (first + (r < rows ? r : rows - 1)) * q_token;
    int64_t seen = offset < 0 ? keys : offset + first + rows;
    float inverse[ROWS];
    scores(each, kt, ld, d, whole(seen), s);
    for (int r = 0; r < rows; ++r)
      inverse[r] = weigh(s + r * ld, offset < 0 ? keys : offset + first + r + 1, whole(seen), scale);
    int64_t before = seen < past->n ? seen : past->n;
    for (int64_t b = 0; b < dv; b += 2 * WIDTH) {
      int64_t second = b + WIDTH < dv ? WIDTH : 0;
      vec sums[ROWS][2] = {0};
      add_values(sums, s, ld, past->values + b, past->value_token, before, second);
      add_values(sums, s + before, ld, own->values + b, own->value_token, seen - before, second);
      for (int r = 0; r < rows; ++r) {
        float *to = out + (first + r) * out_token + b;
        put(to, sums[r][0] * inverse[r], dv - b);
        if (second) put(to + WIDTH, sums[r][1] * inverse[r], dv - b - WIDTH);
      }
    }
  }
}

// Values with whole vectors a token, for widths that are none: from x on, `wide` floats apart.
static void widen(part *of, int64_t dv, int64_t wide, float *x) {
  for (int64_t t = 0; t < of->n; ++t) {
    memset(x + t * wide, 0, (size_t)wide * 4);
    memcpy(x + t * wide, of->values + t * of->value_token, (size_t)dv * 4);
  }
  of->values = x;
  of->value_token = wide;
}

// The distance of a head from the next and of a token from the next, in floats.
typedef struct {
  int64_t head, token;
} stride;

// Where a sequence's queries and keys are, in tokens of the row, and what comes before its keys.
typedef struct {
  int64_t first_query, queries, first_key, keys, offset, num_past, past_keys, past_values;
  stride of_past_keys, of_past_values;
} span;

// Attention of a row. q, k and v: pointers to the first token's first head; out: (tokens, heads, dv), contiguous.
// Returns 1 where there is no memory.
int attend(const float *q, const float *k, const float *v, float *out, const span *spans, int64_t num_spans,
           int64_t most_keys, int64_t heads, int64_t groups, int64_t d, int64_t dv, const stride *strides, float scale) {
  const stride sq = strides[0], sk = strides[1], sv = strides[2];
  int64_t most = whole(most_keys) + 2 * WIDTH, wide = whole(dv) > dv ? whole(dv) : 0;
  float *kt = aligned_alloc(64, (size_t)((d + ROWS + wide) * most * 4 + 63) / 64 * 64);
  if (!kt) return 1;
  float *s = kt + d * most, *values = s + ROWS * most;
  for (const span *at = spans; at < spans + num_spans; ++at) {
    // An odd number of vectors, so that columns do not fall into the same places of the cache.
    int64_t ld = whole(at->num_past + at->keys) + WIDTH;
    ld += ld / WIDTH % 2 ? 0 : WIDTH;
    for (int64_t h = 0; h < heads; ++h) {
      int64_t kv = h / groups;
      part past = {(const float *)(intptr_t)at->past_keys + kv * at->of_past_keys.head,
                   (const float *)(intptr_t)at->past_values + kv * at->of_past_values.head, at->num_past,
                   at->of_past_keys.token, at->of_past_values.token};
      part own = {k + kv * sk.head + at->first_key * sk.token, v + kv * sv.head + at->first_key * sv.token, at->keys,
                  sk.token, sv.token};
      if (h % groups == 0) {
        transpose(past.keys, past.key_token, past.n, d, kt, ld);
        transpose(own.keys, own.key_token, own.n, d, kt + past.n, ld);
      }
      if (wide) {
        widen(&past, dv, wide, values);
        widen(&own, dv, wide, values + past.n * wide);
      }
      attend_head(q + h * sq.head + at->first_query * sq.token, sq.token, out + (at->first_query * heads + h) * dv,
                  heads * dv, at->queries, at->offset, &past, &own, kt, s, ld, d, dv, scale);
    }
  }
  free(kt);
  return 0;
}

// y = (q · weight − zeros) · scales + bias, and a GELU where one follows: unsigned rows, signed weights, sums of 32 bits.
// The weight is laid out once. See int8_product.py, and product.c for how tiles, panels and blocks follow each other.
#if defined(__GNUC__) && !defined(__clang__)
#define FUSED __attribute__((optimize("fp-contract=fast")))
#endif
#include "gelu.h"
#include "parallel.h"

#ifdef __AVX2__
#include <immintrin.h>

#if defined(__AVX512VNNI__)
#define WIDTH 16
#define ROWS 8
#define VECS 2
typedef __m512i ints;
#define FOUR(x) _mm512_set1_epi32(x)
#define ADD_FOUR(sum, x, w) _mm512_dpbusd_epi32(sum, x, w)
#else
#define WIDTH 8
#define ROWS 4
#define VECS 3
typedef __m256i ints;
#define FOUR(x) _mm256_set1_epi32(x)
#ifdef __AVXVNNI__
#define ADD_FOUR(sum, x, w) _mm256_dpbusd_avx_epi32(sum, x, w)
#else  // two products are added in 16 bits, and cut where they do not fit
#define ADD_FOUR(sum, x, w) \
  _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)))
#endif
#endif
#define PANEL (VECS * WIDTH)
#define DEEP (24576 / PANEL)
#define HIGH 144
#define UNROLL _Pragma("GCC unroll 8")

typedef float vec __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(WIDTH * 4)));

// weight: panels of PANEL outputs, each (in / 4, PANEL, 4); start: −128 times the sums of the integer weights, where q
// has 128 for zero. What is beyond `out` is 0 in these, in weight_scale, sums and bias.
typedef struct {
  const uint8_t *q;
  const int8_t *weight;
  const int32_t *start;
  const float *weight_scale, *sums, *bias, *scale, *offset;
  float *y;
  int64_t rows, in, out, gelu;
} product;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// y (n, PANEL), which holds integers, = start + q (n, deep) · w (deep, PANEL); without a start, y goes on.
static inline __attribute__((always_inline)) void tile(const int n, const uint8_t *restrict q, int64_t in,
                                                       const int8_t *restrict w, int64_t deep, const int32_t *start,
                                                       float *restrict y, int64_t out) {
  ints sums[ROWS][VECS];
  UNROLL for (int r = 0; r < n; ++r) UNROLL for (int c = 0; c < VECS; ++c)
      memcpy(&sums[r][c], start ? (const void *)(start + c * WIDTH) : y + r * out + c * WIDTH, sizeof(ints));
  for (int64_t k = 0; k < deep; k += 4) {
    const int8_t *each = w + k * PANEL;
    UNROLL for (int r = 0; r < n; ++r) {
      int32_t four;
      memcpy(&four, q + r * in + k, 4);
      ints x = FOUR(four);
      UNROLL for (int c = 0; c < VECS; ++c) {
        ints of;
        memcpy(&of, each + c * WIDTH * 4, sizeof of);
        sums[r][c] = ADD_FOUR(sums[r][c], x, of);
      }
    }
  }
  UNROLL for (int r = 0; r < n; ++r) UNROLL for (int c = 0; c < VECS; ++c)
      memcpy(y + r * out + c * WIDTH, &sums[r][c], sizeof(ints));
}

FUSED static __attribute__((noinline)) void gelu_panel(float *y) {
  for (int i = 0; i < PANEL; ++i) y[i] = exact_gelu(y[i]);
}

// Integers to float32, rounded one by one as torch's passes round them.
static void finish(const product *of, float *y, int64_t row, int64_t rows, int64_t column, int64_t out) {
  for (int64_t r = 0; r < rows; ++r, y += out) {
    float scale = of->scale[row + r], offset = of->offset[row + r];
    for (int c = 0; c < PANEL; c += WIDTH) {
      ivec sums;
      memcpy(&sums, y + c, sizeof sums);
      vec v = __builtin_convertvector(sums, vec) * *(const vec *)(of->weight_scale + column + c);
      *(vec *)(y + c) = (v - offset * *(const vec *)(of->sums + column + c)) * scale + *(const vec *)(of->bias + column + c);
    }
    if (of->gelu) gelu_panel(y);
  }
}

// One panel of the weight, from input k on, with `rows` rows of q from `row` on.
static void panel(const product *of, int64_t row, int64_t rows, int64_t k, int64_t column) {
  int64_t in = of->in, out = of->out, deep = least(DEEP, in - k), wide = least(PANEL, out - column);
  const uint8_t *q = of->q + row * in + k;
  const int8_t *w = of->weight + column * in + k * PANEL;
  const int32_t *begins = k ? 0 : of->start + column;
  float *y = of->y + row * out + column;
  const char *next = (const char *)(column + PANEL < out ? w + PANEL * in : w);
  int64_t lines = deep * PANEL / 64 * ROWS / rows + 1;
  while (rows) {
    int64_t n = rows >= ROWS ? ROWS : 1;
    float apart[ROWS * PANEL], *to = wide < PANEL ? apart : y;
    int64_t ld = wide < PANEL ? PANEL : out;
    if (wide < PANEL)
      for (int64_t r = 0; r < n; ++r) memcpy(apart + r * PANEL, y + r * out, (size_t)wide * 4);
    for (int64_t i = 0; i < lines; ++i, next += 64) __builtin_prefetch(next, 0, 2);
    if (n == ROWS)
      tile(ROWS, q, in, w, deep, begins, to, ld);
    else
      tile(1, q, in, w, deep, begins, to, ld);
    if (k + deep == in) finish(of, to, row, n, column, ld);
    if (wide < PANEL)
      for (int64_t r = 0; r < n; ++r) memcpy(y + r * out, apart + r * PANEL, (size_t)wide * 4);
    rows -= n, row += n, q += n * in, y += n * out;
  }
}

static void panels(const void *task, int64_t first, int64_t last) {
  const product *of = task;
  for (int64_t row = 0; row < of->rows; row += HIGH)
    for (int64_t k = 0; k < of->in; k += DEEP)
      for (int64_t each = first; each < last; ++each)
        panel(of, row, least(HIGH, of->rows - row), k, each * PANEL);
}

int64_t panel_width(void) { return PANEL; }

void multiply(const product *of, int64_t threads) { in_parallel(panels, of, (of->out + PANEL - 1) / PANEL, threads); }
#else
int64_t panel_width(void) { return 0; }  // nothing here is faster than oneDNN
void multiply(const void *of, int64_t threads) {}
#endif

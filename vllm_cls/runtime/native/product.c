// y = x · weight + bias in float32, and a GELU where one follows, with the weight laid out once. See product.py.
// Sums of ROWS × VECS vectors stay in registers, a panel of the weight in the first cache, HIGH rows of x in the second.
#include "gelu.h"
#include "parallel.h"

#if defined(__AVX512F__)
#define WIDTH 16
#define ROWS 8
#define VECS 3
#elif defined(__AVX__)
#define WIDTH 8
#define ROWS 6
#define VECS 2
#else
#define WIDTH 4
#define ROWS 8
#define VECS 3
#endif
#define PANEL (VECS * WIDTH)
#ifndef DEEP
#define DEEP (6144 / PANEL)
#endif
#ifndef HIGH
#define HIGH 144
#endif
#define UNROLL _Pragma("GCC unroll 8")

typedef float vec __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

enum { NO_GELU, EXACT_GELU, TANH_GELU };

// weight: panels of PANEL outputs, each (in, PANEL), what is beyond `out` being 0; bias: (out,) or null.
typedef struct {
  const float *x, *weight, *bias;
  float *y;
  int64_t rows, in, out, gelu;
} product;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// y (n, PANEL) = start + x (n, deep) · w (deep, PANEL); without a start, y goes on.
static inline __attribute__((always_inline)) void tile(const int n, const float *restrict x, int64_t in,
                                                       const float *restrict w, int64_t deep, const vec *start,
                                                       float *restrict y, int64_t out) {
  vec sums[ROWS][VECS];
  UNROLL for (int r = 0; r < n; ++r) UNROLL for (int c = 0; c < VECS; ++c)
      sums[r][c] = start ? start[c] : *(const vec *)(y + r * out + c * WIDTH);
  for (int64_t k = 0; k < deep; ++k) {
    vec each[VECS];
    UNROLL for (int c = 0; c < VECS; ++c) each[c] = *(const vec *)(w + k * PANEL + c * WIDTH);
    UNROLL for (int r = 0; r < n; ++r) {
      float one = x[r * in + k];
      UNROLL for (int c = 0; c < VECS; ++c) sums[r][c] += one * each[c];
    }
  }
  UNROLL for (int r = 0; r < n; ++r) UNROLL for (int c = 0; c < VECS; ++c) *(vec *)(y + r * out + c * WIDTH) = sums[r][c];
}

static void finish(const product *of, float *y, int64_t rows, int64_t out) {
  for (int64_t r = 0; of->gelu == EXACT_GELU && r < rows; ++r)
    for (int i = 0; i < PANEL; ++i) y[r * out + i] = exact_gelu(y[r * out + i]);
  for (int64_t r = 0; of->gelu == TANH_GELU && r < rows; ++r)
    for (int i = 0; i < PANEL; ++i) y[r * out + i] = tanh_gelu(y[r * out + i]);
}

// One panel of the weight, from input k on, with `rows` rows of x from `row` on.
static void panel(const product *of, int64_t row, int64_t rows, int64_t k, int64_t column) {
  int64_t in = of->in, out = of->out, deep = least(DEEP, in - k), wide = least(PANEL, out - column);
  const float *x = of->x + row * in + k, *w = of->weight + column * in + k * PANEL;
  float *y = of->y + row * out + column;
  vec start[VECS] = {0}, *begins = k ? 0 : start;
  if (of->bias) memcpy(start, of->bias + column, (size_t)wide * 4);
  // The next panel comes from the third cache or from memory meanwhile, a part of it with each tile.
  const char *next = (const char *)(column + PANEL < out ? w + PANEL * in : w);
  int64_t lines = deep * PANEL / 16 * ROWS / rows + 1;
  while (rows) {
    int64_t n = rows >= ROWS ? ROWS : rows >= 4 ? 4 : 1;
    float apart[ROWS * PANEL], *to = wide < PANEL ? apart : y;
    int64_t ld = wide < PANEL ? PANEL : out;
    if (wide < PANEL)
      for (int64_t r = 0; r < n; ++r) memcpy(apart + r * PANEL, y + r * out, (size_t)wide * 4);
    for (int64_t i = 0; i < lines; ++i, next += 64) __builtin_prefetch(next, 0, 2);
    if (n == ROWS)
      tile(ROWS, x, in, w, deep, begins, to, ld);
    else if (n == 4)
      tile(4, x, in, w, deep, begins, to, ld);
    else
      tile(1, x, in, w, deep, begins, to, ld);
    if (k + deep == in) finish(of, to, n, ld);
    if (wide < PANEL)
      for (int64_t r = 0; r < n; ++r) memcpy(y + r * out, apart + r * PANEL, (size_t)wide * 4);
    rows -= n, x += n * in, y += n * out;
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

void multiply(const float *x, const float *weight, const float *bias, float *y, int64_t rows, int64_t in, int64_t out,
              int64_t gelu, int64_t threads) {
  product all = {x, weight, bias, y, rows, in, out, gelu};
  in_parallel(panels, &all, (out + PANEL - 1) / PANEL, threads);
}

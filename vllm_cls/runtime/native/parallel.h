// Panels of a product shared out among threads that end with it: nothing is kept, so a fork finds nothing broken.
#include <pthread.h>
#include <stdint.h>

#define MOST_THREADS 16

typedef void (*panel_work)(const void *task, int64_t first, int64_t last);

typedef struct {
  panel_work work;
  const void *task;
  int64_t first, last;
} share;

static void *run_share(void *given) {
  const share *of = given;
  of->work(of->task, of->first, of->last);
  return 0;
}

// `work` of all panels, on at most so many threads, this one among them.
static void in_parallel(panel_work work, const void *task, int64_t panels, int64_t threads) {
  pthread_t started[MOST_THREADS];
  share shares[MOST_THREADS];
  int running[MOST_THREADS];
  threads = threads < panels ? threads : panels;
  threads = threads < MOST_THREADS ? threads : MOST_THREADS;
  for (int64_t i = 1; i < threads; ++i) {
    shares[i] = (share){work, task, i * panels / threads, (i + 1) * panels / threads};
    running[i] = pthread_create(started + i, 0, run_share, shares + i) == 0;
  }
  work(task, 0, threads > 1 ? panels / threads : panels);
  for (int64_t i = 1; i < threads; ++i) {
    if (running[i])
      pthread_join(started[i], 0);
    else
      run_share(shares + i);
  }
}

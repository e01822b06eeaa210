/* A pool of threads that split index ranges. One parallel region runs at a time; a second caller runs its own serially. */
#ifndef FLAMERT_THREADS_H
#define FLAMERT_THREADS_H

#include <stddef.h>
#include <stdint.h>

/* Work on indices [begin, end); `worker` is 0 … threads-1 and picks per-thread scratch memory. */
typedef void (*range_fn)(void *context, int64_t begin, int64_t end, int worker);

/* Run `fn` over [0, n), in pieces of at least `grain`, on up to flamert_threads() threads and never more than `most`
   (what the caller has scratch memory for). Returns when all is done. */
void parallel_for(int64_t n, int64_t grain, int most, range_fn fn, void *context);

int flamert_threads(void);
__attribute__((visibility("default"))) void flamert_set_threads(int n);

#endif

/* See threads.h. Workers spin briefly for the next region, since plans run kernels back to back, and then sleep. A region ends
   when its work is done, whether or not every worker has come: on a busy machine one may get a processor only much later. */
#define _GNU_SOURCE
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#define MAX_THREADS 64
#define SPINS 4000 /* some 50 µs of pauses */
#define PATIENCE 200 /* pauses before a thread that waits for another offers it the processor */
#define CLOSED (-(1 << 20))

static struct {
    pthread_mutex_t lock, region;
    pthread_cond_t wake;
    int started, wanted, active;
    pid_t owner;
    atomic_uint generation;
    atomic_int sleepers;
    range_fn fn;
    void *context;
    int64_t n, grain;
    atomic_llong next;
    atomic_int inside; /* workers in the region, CLOSED more once none may enter */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .region = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .wanted = 1, .inside = CLOSED};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Pieces get smaller towards the end, so that all threads finish at about the same time. */
static void take_pieces(int worker) {
    long long begin = atomic_load_explicit(&pool.next, memory_order_relaxed);
    while (begin < pool.n) {
        int64_t rest = pool.n - begin, piece = rest / (4 * pool.active);
        if (piece < pool.grain) piece = pool.grain < rest ? pool.grain : rest;
        if (!atomic_compare_exchange_weak_explicit(&pool.next, &begin, begin + piece, memory_order_relaxed, memory_order_relaxed)) continue;
        pool.fn(pool.context, begin, begin + piece, worker);
        begin = atomic_load_explicit(&pool.next, memory_order_relaxed);
    }
}

static int enter(void) {
    int inside = atomic_load_explicit(&pool.inside, memory_order_relaxed);
    while (inside >= 0)
        if (atomic_compare_exchange_weak_explicit(&pool.inside, &inside, inside + 1, memory_order_acquire, memory_order_relaxed)) return 1;
    return 0;
}

static void *work(void *argument) {
    int worker = (int)((intptr_t)argument & 0xff);
    unsigned seen = (unsigned)((intptr_t)argument >> 8); /* the generation at birth: nothing to do yet */
    for (;;) {
        int spins = 0;
        while (atomic_load_explicit(&pool.generation, memory_order_acquire) == seen) {
            if (++spins < SPINS) {
                relax();
                continue;
            }
            pthread_mutex_lock(&pool.lock);
            atomic_fetch_add(&pool.sleepers, 1);
            while (atomic_load_explicit(&pool.generation, memory_order_acquire) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
            atomic_fetch_sub(&pool.sleepers, 1);
            pthread_mutex_unlock(&pool.lock);
        }
        seen = atomic_load_explicit(&pool.generation, memory_order_acquire);
        if (enter()) {
            if (worker < pool.active) take_pieces(worker);
            atomic_fetch_sub_explicit(&pool.inside, 1, memory_order_release);
        }
    }
    return NULL;
}

/* Start missing workers; after a fork the child has none of its parent's. Called with the region held. */
static void start_workers(void) {
    if (pool.owner != getpid()) {
        pool.owner = getpid();
        pool.started = 0;
        atomic_store(&pool.sleepers, 0);
        atomic_store(&pool.generation, 0);
        atomic_store(&pool.inside, CLOSED);
    }
    while (pool.started < pool.wanted - 1) {
        pthread_t thread;
        intptr_t birth = (intptr_t)atomic_load(&pool.generation) << 8 | (pool.started + 1);
        if (pthread_create(&thread, NULL, work, (void *)birth)) {
            pool.wanted = pool.started + 1;
            return;
        }
        pthread_detach(thread);
        pool.started++;
    }
}

void parallel_for(int64_t n, int64_t grain, int most, range_fn fn, void *context) {
    int threads = pool.wanted < most ? pool.wanted : most;
    if (n <= 0) return;
    if (threads < 2 || n <= grain || pthread_mutex_trylock(&pool.region)) {
        fn(context, 0, n, 0);
        return;
    }
    start_workers();
    pool.active = threads;
    pool.grain = grain > 0 ? grain : 1;
    pool.fn = fn;
    pool.context = context;
    pool.n = n;
    atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool.inside, 0, memory_order_release);
    atomic_fetch_add_explicit(&pool.generation, 1, memory_order_release);
    if (atomic_load(&pool.sleepers)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.lock);
    }
    take_pieces(0);
    atomic_fetch_add_explicit(&pool.inside, CLOSED, memory_order_relaxed);
    for (int spins = 0; atomic_load_explicit(&pool.inside, memory_order_acquire) != CLOSED;)
        if (++spins % PATIENCE)
            relax();
        else
            sched_yield();
    pthread_mutex_unlock(&pool.region);
}

int flamert_threads(void) { return pool.wanted; }

void flamert_set_threads(int n) {
    pthread_mutex_lock(&pool.region);
    pool.wanted = n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
    pthread_mutex_unlock(&pool.region);
}

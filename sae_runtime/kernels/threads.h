/* Threads that share work.

Work comes as items in a row, and a thread takes a share of those that are left, again and again: first as much as it
would do if all went on alike, so that it reads weights that lie behind each other, in the end one by one. Nobody waits
for a thread, only for items that were taken: where one is interrupted between two shares - by the thread that talks to
clients, say - the others go on without it. OpenMP's threads wait for each other at every barrier. Between passes
workers sleep, and leave the processor to others. */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>


/* Does the items from `first` up to, and without, `end`. */
typedef void (*Work)(const void *call, int first, int end);

enum { MOST_WORKERS = 255, MOST_ITEMS = (1 << 20) - 1, SPINS = 4000 };

static int pieces(int whole, int piece) { return (whole + piece - 1) / piece; }

static struct {
    pthread_mutex_t in_use, sleeping;
    pthread_cond_t wake, allowed;
    int num_workers, num_asleep;  /* the second under `sleeping` */
    _Atomic int num_allowed;      /* workers that may take items */
    _Atomic int is_anybody_asleep;
    _Atomic int num_sharing;      /* threads that share, the caller among them */
    _Atomic uint64_t state;       /* 24 bits: which work; 20 bits: its items; 20 bits: those that were taken */
    _Atomic int num_done;
    _Atomic(Work) work;
    _Atomic(const void *) call;
} pool = {.in_use = PTHREAD_MUTEX_INITIALIZER, .sleeping = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER,
         .allowed = PTHREAD_COND_INITIALIZER};

/* Takes items and does them; 0 if there are none left. The state tells all at once: who has taken an item has seen the
   work that it belongs to, and that work can't end before the item is done. */
static int take_items(void) {
    uint64_t state = atomic_load_explicit(&pool.state, memory_order_acquire);
    for (;;) {
        const int count = (int)(state >> 20 & MOST_ITEMS), first = (int)(state & MOST_ITEMS);
        if (first >= count) return 0;
        const int mine = pieces(count - first, atomic_load_explicit(&pool.num_sharing, memory_order_relaxed));
        const Work work = atomic_load_explicit(&pool.work, memory_order_relaxed);
        const void *call = atomic_load_explicit(&pool.call, memory_order_relaxed);
        if (!atomic_compare_exchange_weak_explicit(&pool.state, &state, state + mine, memory_order_acq_rel,
                                                   memory_order_acquire))
            continue;
        work(call, first, first + mine);
        atomic_fetch_add_explicit(&pool.num_done, mine, memory_order_release);
        return 1;
    }
}

static void *be_worker(void *number) {
    const int own = (int)(intptr_t)number;
    for (int idle = 0;;) {
        if (own >= atomic_load_explicit(&pool.num_allowed, memory_order_relaxed)) {
            pthread_mutex_lock(&pool.sleeping);
            while (own >= atomic_load(&pool.num_allowed)) pthread_cond_wait(&pool.allowed, &pool.sleeping);
            pthread_mutex_unlock(&pool.sleeping);
            idle = 0;
        } else if (take_items()) {
            idle = 0;
        } else if (++idle < SPINS) {
            _mm_pause();
        } else {
            const uint64_t before = atomic_load(&pool.state);
            pthread_mutex_lock(&pool.sleeping);
            pool.num_asleep++;
            atomic_store(&pool.is_anybody_asleep, 1);
            /* Work that came before that store is seen here; whoever brings some later sees the store. */
            while (atomic_load(&pool.state) == before) pthread_cond_wait(&pool.wake, &pool.sleeping);
            if (--pool.num_asleep == 0) atomic_store(&pool.is_anybody_asleep, 0);
            pthread_mutex_unlock(&pool.sleeping);
            idle = 0;
        }
    }
    return NULL;
}

/* With up to `num_threads` threads, this one among them. To be called with `in_use` held. */
static void allow_threads(int num_threads) {
    const int wanted = num_threads - 1 < MOST_WORKERS ? num_threads - 1 : MOST_WORKERS;
    while (pool.num_workers < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, be_worker, (void *)(intptr_t)pool.num_workers)) break;
        pthread_detach(thread);
        pool.num_workers++;
    }
    if (atomic_load(&pool.num_allowed) == wanted) return;
    atomic_store(&pool.num_sharing, wanted + 1);
    pthread_mutex_lock(&pool.sleeping);
    atomic_store(&pool.num_allowed, wanted);
    pthread_cond_broadcast(&pool.allowed);
    pthread_mutex_unlock(&pool.sleeping);
}

/* Have items 0..count - 1 done. Without threads to share them with they are done here, one after another. */
static void share(int is_shared, Work work, const void *call, int count) {
    if (!is_shared || count == 1) {
        work(call, 0, count);
        return;
    }
    atomic_store_explicit(&pool.work, work, memory_order_relaxed);
    atomic_store_explicit(&pool.call, call, memory_order_relaxed);
    atomic_store_explicit(&pool.num_done, 0, memory_order_relaxed);
    const uint64_t which = (atomic_load_explicit(&pool.state, memory_order_relaxed) >> 40) + 1;
    atomic_store(&pool.state, which << 40 | (uint64_t)count << 20);
    if (atomic_load(&pool.is_anybody_asleep)) {
        pthread_mutex_lock(&pool.sleeping);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.sleeping);
    }
    while (take_items()) continue;
    for (int spins = 0; atomic_load_explicit(&pool.num_done, memory_order_acquire) < count; spins++) {
        if (spins < SPINS)
            _mm_pause();
        else
            sched_yield(); /* to the one that was interrupted */
    }
}

/* 1 if there are threads to share with; `stop_sharing` must follow then. Another caller may have them: that one's work
   is done alone, which gives the same. */
static int begin_sharing(int num_threads) {
    if (num_threads < 2 || pthread_mutex_trylock(&pool.in_use)) return 0;
    allow_threads(num_threads);
    return 1;
}

static void stop_sharing(int is_shared) {
    if (is_shared) pthread_mutex_unlock(&pool.in_use);
}

/* One block of a Llama or Qwen2 model over a few tokens, on a processor with AVX-512 and its bf16 instructions.

Weights stay as a GGUF file has them, 32 inputs of an output to a scale: 4 bits with a minimum (Q4_1) or 8 bits
(Q8_0); others are bf16. Numbers become bf16 in registers only, where 0..15 and -127..127 are exact, and scales are
applied to sums. So nothing of the weights is rounded, and a token reads no more of them than the file holds. What
stands between products is rounded to bf16 where transformers rounds it.

All tokens of a call stand in a cache, each at its slot and position, and see what is there up to themselves: one token
of many rows and many of one are the same. What a token gets does not depend on the others of its call, nor on the
number of threads: sums have one order, whatever is computed at once.

Letters: M tokens, N outputs, K inputs, G groups of 32 inputs, d head width. */

#include <immintrin.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum { TILE = 16, GROUP = 32, MOST_TOKENS = 64, SPAN = 64, WIDEST_HEAD = 256, MOST_HEADS = 3, MOST_SHARING = 16, PREFETCH = 4, WIDEST_MODEL = 16384 };

typedef uint16_t bf16;

typedef struct {
    const uint8_t *blocks; /* tiles of 16 outputs, in them groups: numbers, 16 scales (4, 8 bits), 16 minima (4 bits) */
    const float *bias;     /* [N] or NULL */
    int32_t bits, num_outputs, num_inputs;
} Matrix;

typedef struct {
    Matrix qkv, output, gate_up, down; /* gate_up: tiles of gate and of up by turns */
    const bf16 *input_norm, *mlp_norm;
    bf16 *keys, *values; /* [slot, head, position, d] */
    int64_t slot_stride, head_stride;
    int32_t d_model, d_mlp, num_heads, num_kv_heads, head_dim;
    float norm_eps, scaling;
} Block;

typedef struct {
    const int64_t *slots, *positions;           /* [M] */
    const bf16 *cos, *sin;                      /* [M, d] */
    bf16 *normed, *qkv, *seen, *middle, *inner; /* scratch [MOST_TOKENS, ...] */
    float *sums, *inner_sums;                   /* scratch [MOST_TOKENS, G]: of normed and seen, of inner */
    int32_t num_tokens, num_threads;
} Pass;

/* --- numbers --- */

static inline __m512 widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

static inline __m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

static inline __m512 rounded(__m512 x) { return widen(narrow(x)); }

static inline __m512 load16(const bf16 *p) { return widen(_mm256_loadu_si256((const __m256i *)p)); }

static inline void store16(bf16 *p, __m512 x) { _mm256_storeu_si256((__m256i *)p, narrow(x)); }

static inline __m512 halves(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }

/* e^x, to about 2 units in the last place: 2^n by the exponent, the rest by its Taylor series. */
static inline __m512 exponential(__m512 x) {
    __m512 y = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    __m512 n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* --- products --- */

/* The next two vectors of a group, each of two inputs: output n's are the numbers 2n and 2n + 1. */
static inline __attribute__((always_inline)) void unpack(const int bits, const uint8_t *q, __m512i w[2]) {
    if (bits == 4) {
        /* 0..15 twice over: of an index the lowest five bits count, and the fifth belongs to another number. */
        const __m512i table = _mm512_set_epi16(
            0x4170, 0x4160, 0x4150, 0x4140, 0x4130, 0x4120, 0x4110, 0x4100, 0x40e0, 0x40c0, 0x40a0, 0x4080, 0x4040,
            0x4000, 0x3f80, 0, 0x4170, 0x4160, 0x4150, 0x4140, 0x4130, 0x4120, 0x4110, 0x4100, 0x40e0, 0x40c0, 0x40a0,
            0x4080, 0x4040, 0x4000, 0x3f80, 0);
        __m512i both = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)q));
        w[0] = _mm512_permutexvar_epi16(both, table);
        w[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(both, 4), table);
    } else if (bits == 16) {
        w[0] = _mm512_loadu_si512(q);
        w[1] = _mm512_loadu_si512(q + 64);
    } else {
        for (int i = 0; i < 2; i++, q += 32) {
            __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)q)));
            __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(q + 16))));
            w[i] = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        }
    }
}

/* A group's part of 16 outputs of `rows` tokens. The order of sums is the same for any number of them, so that what a
   token gets does not depend on its company: four chains, since a sum waits for the one before. */
static inline __attribute__((always_inline)) void multiply_rows(
    const int bits, const int rows, const __m512i w[16], const uint8_t *block, const bf16 *x, ptrdiff_t x_stride,
    const float *sums, ptrdiff_t sums_stride, float (*out)[TILE]) {
    __m512 part[4][4];
    for (int m = 0; m < rows; m++)
        for (int c = 0; c < 4; c++) part[m][c] = _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int p = 0; p < 16; p++)
        for (int m = 0; m < rows; m++) {
            __m512i two = _mm512_set1_epi32(*(const int32_t *)(x + m * x_stride + 2 * p));
            part[m][p % 4] = _mm512_dpbf16_ps(part[m][p % 4], (__m512bh)w[p], (__m512bh)two);
        }
    const __m512 scale = bits == 16 ? _mm512_set1_ps(1) : halves(block + 64 * bits);
    for (int m = 0; m < rows; m++) {
        __m512 sum = _mm512_add_ps(_mm512_add_ps(part[m][0], part[m][1]), _mm512_add_ps(part[m][2], part[m][3]));
        __m512 total = _mm512_fmadd_ps(scale, sum, _mm512_loadu_ps(out[m]));
        if (bits == 4)
            total = _mm512_fmadd_ps(halves(block + 288), _mm512_set1_ps(sums[m * sums_stride]), total);
        _mm512_storeu_ps(out[m], total);
    }
}

/* 16 outputs, beginning with 16 t, of up to MOST_TOKENS tokens. `sums` are those of each group of x. */
static inline __attribute__((always_inline)) void multiply_tile(
    const int bits, const Matrix *w, int t, const bf16 *x, const float *sums, int num_tokens, float (*out)[TILE]) {
    const ptrdiff_t k = w->num_inputs, groups = k / GROUP, bytes = 64 * bits + (bits == 4 ? 64 : bits == 8 ? 32 : 0);
    const uint8_t *block = w->blocks + t * groups * bytes;
    const __m512 start = w->bias ? _mm512_loadu_ps(w->bias + t * TILE) : _mm512_setzero_ps();
    for (int m = 0; m < num_tokens; m++) _mm512_storeu_ps(out[m], start);
    for (ptrdiff_t g = 0; g < groups; g++, block += bytes) {
        const bf16 *xs = x + g * GROUP;
        const float *ss = sums + g;
        for (int line = 0; line < bytes; line += 64) _mm_prefetch(block + PREFETCH * bytes + line, _MM_HINT_T0);
        __m512i numbers[16];
#pragma GCC unroll 8
        for (int c = 0; c < 8; c++) unpack(bits, block + c * 8 * bits, numbers + 2 * c);
        int m = 0;
        for (; m + 4 <= num_tokens; m += 4)
            multiply_rows(bits, 4, numbers, block, xs + m * k, k, ss + m * groups, groups, out + m);
        if (num_tokens - m == 3)
            multiply_rows(bits, 3, numbers, block, xs + m * k, k, ss + m * groups, groups, out + m);
        else if (num_tokens - m == 2)
            multiply_rows(bits, 2, numbers, block, xs + m * k, k, ss + m * groups, groups, out + m);
        else if (num_tokens - m == 1)
            multiply_rows(bits, 1, numbers, block, xs + m * k, k, ss + m * groups, groups, out + m);
    }
}

static void multiply(const Matrix *w, int t, const bf16 *x, const float *sums, int num_tokens, float (*out)[TILE]) {
    if (w->bits == 4)
        multiply_tile(4, w, t, x, sums, num_tokens, out);
    else if (w->bits == 8)
        multiply_tile(8, w, t, x, sums, num_tokens, out);
    else
        multiply_tile(16, w, t, x, sums, num_tokens, out);
}

static inline float sum_of_group(const bf16 *x) {
    return _mm512_reduce_add_ps(_mm512_add_ps(load16(x), load16(x + 16)));
}

static void sum_groups(const bf16 *x, int k, float *sums) {
    for (int g = 0; g < k / GROUP; g++) sums[g] = sum_of_group(x + g * GROUP);
}

/* --- between products, a token at a time --- */

static void rms_norm(const bf16 *x, const bf16 *weight, int width, float eps, bf16 *out) {
    __m512 squares = _mm512_setzero_ps();
    for (int i = 0; i < width; i += 16) squares = _mm512_fmadd_ps(load16(x + i), load16(x + i), squares);
    __m512 factor = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / width + eps));
    for (int i = 0; i < width; i += 16)
        store16(out + i, _mm512_mul_ps(load16(weight + i), rounded(_mm512_mul_ps(load16(x + i), factor))));
}

/* Rotary position embedding of one head. */
static void rotate(const bf16 *head, const bf16 *cos, const bf16 *sin, int d, bf16 *out) {
    const int half = d / 2;
    for (int i = 0; i < half; i += 16) {
        __m512 low = load16(head + i), high = load16(head + half + i);
        store16(out + i, _mm512_sub_ps(rounded(_mm512_mul_ps(low, load16(cos + i))),
                                       rounded(_mm512_mul_ps(high, load16(sin + i)))));
        store16(out + half + i, _mm512_add_ps(rounded(_mm512_mul_ps(high, load16(cos + half + i))),
                                              rounded(_mm512_mul_ps(low, load16(sin + half + i)))));
    }
}

static void copy(const bf16 *from, int width, bf16 *to) { __builtin_memcpy(to, from, width * sizeof(bf16)); }

/* The sums of 16 vectors, each at its place: halves are folded onto each other, two vectors at a time. */
static inline __attribute__((always_inline)) __m512 sums_of_16(__m512 v[16]) {
    for (int i = 0; i < 8; i++) {
        __m512 a = v[2 * i], b = v[2 * i + 1];
        v[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    for (int i = 0; i < 4; i++) {
        __m512d a = _mm512_castps_pd(v[2 * i]), b = _mm512_castps_pd(v[2 * i + 1]);
        v[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    /* Now lane l of v[i] has a quarter of the sum of vector 4 i + l % 4. */
    for (int i = 0; i < 2; i++)
        v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x88),
                             _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(v[0], v[1], 0x88), _mm512_shuffle_f32x4(v[0], v[1], 0xdd));
}

/* Attention of `num` query heads that share keys and values, over `length` positions: a span after another, with
   running maximum and sum. */
static inline __attribute__((always_inline)) void attend_with(
    const int num, const int d, const bf16 *queries, const bf16 *keys, const bf16 *values, int length, float scaling,
    bf16 *out) {
    __m512 mixed[MOST_HEADS][WIDEST_HEAD / 16];
    float highest[MOST_HEADS], total[MOST_HEADS], score[MOST_HEADS][SPAN];
    for (int h = 0; h < num; h++) {
        highest[h] = -INFINITY;
        total[h] = 0;
        for (int j = 0; j < d / 16; j++) mixed[h][j] = _mm512_setzero_ps();
    }
    for (int start = 0; start < length; start += SPAN) {
        const int count = length - start < SPAN ? length - start : SPAN;
        for (int h = 0; h < num; h++) {
            __m512 top = _mm512_set1_ps(highest[h]);
            for (int i = 0; i < count; i += 16) {
                __m512 part[16];
#pragma GCC unroll 16
                for (int l = 0; l < 16; l++) {
                    const int at = start + (i + l < count ? i + l : count - 1);
                    part[l] = _mm512_setzero_ps();
                    for (int j = 0; j < d; j += 32)
                        part[l] = _mm512_dpbf16_ps(part[l], (__m512bh)_mm512_loadu_si512(queries + h * d + j),
                                                   (__m512bh)_mm512_loadu_si512(keys + (int64_t)at * d + j));
                }
                __m512 scores = _mm512_mul_ps(sums_of_16(part), _mm512_set1_ps(scaling));
                if (count - i < 16)
                    scores = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), (1 << (count - i)) - 1, scores);
                _mm512_storeu_ps(score[h] + i, scores);
                top = _mm512_max_ps(top, scores);
            }
            const float new_highest = _mm512_reduce_max_ps(top);
            const __m512 shrink = exponential(_mm512_set1_ps(highest[h] - new_highest));
            highest[h] = new_highest;
            __m512 sum = _mm512_setzero_ps();
            for (int i = 0; i < count; i += 16) {
                __m512 weight = exponential(_mm512_sub_ps(_mm512_loadu_ps(score[h] + i), _mm512_set1_ps(new_highest)));
                _mm512_storeu_ps(score[h] + i, weight);
                sum = _mm512_add_ps(sum, weight);
            }
            total[h] = total[h] * _mm512_cvtss_f32(shrink) + _mm512_reduce_add_ps(sum);
            for (int j = 0; j < d / 16; j++) mixed[h][j] = _mm512_mul_ps(mixed[h][j], shrink);
        }
        for (int i = 0; i < count; i++)
            for (int j = 0; j < d / 16; j++) {
                const __m512 value = load16(values + (int64_t)(start + i) * d + 16 * j);
                for (int h = 0; h < num; h++)
                    mixed[h][j] = _mm512_fmadd_ps(_mm512_set1_ps(score[h][i]), value, mixed[h][j]);
            }
    }
    for (int h = 0; h < num; h++)
        for (int j = 0; j < d / 16; j++)
            store16(out + h * d + 16 * j, _mm512_mul_ps(mixed[h][j], _mm512_set1_ps(1.0f / total[h])));
}

static void attend(int num, int d, const bf16 *queries, const bf16 *keys, const bf16 *values, int length, float scaling,
                   bf16 *out) {
    for (; num >= 3; num -= 3, queries += 3 * d, out += 3 * d)
        if (d == 64)
            attend_with(3, 64, queries, keys, values, length, scaling, out);
        else if (d == 128)
            attend_with(3, 128, queries, keys, values, length, scaling, out);
        else
            attend_with(3, d, queries, keys, values, length, scaling, out);
    for (; num; num--, queries += d, out += d)
        if (d == 64)
            attend_with(1, 64, queries, keys, values, length, scaling, out);
        else
            attend_with(1, d, queries, keys, values, length, scaling, out);
}

static inline void add_to_residual(const float *from, const bf16 *x, bf16 *out) {
    store16(out, _mm512_add_ps(load16(x), rounded(_mm512_loadu_ps(from))));
}

/* --- threads ---

Work comes as items in a row, and a thread takes a share of those that are left, again and again: first as much as it
would do if all went on alike, so that it reads weights that lie behind each other, in the end one by one. Nobody waits
for a thread, only for items that were taken: where one is interrupted between two shares - by the thread that talks to
clients, say - the others go on without it. OpenMP's threads wait for each other at every barrier. Between passes
workers sleep, and leave the processor to others. */

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

/* --- a block --- */

typedef struct {
    const Block *b;
    const Pass *p;
    const bf16 *x;
    bf16 *y;
    int first, num_tokens;
    int one_by_one; /* several tokens of a slot: all keys must be there before anybody looks */
} Call;

/* Items: tokens. */
static void norm_tokens(const Call *c, const bf16 *x, const bf16 *weight, int first, int end) {
    const int D = c->b->d_model;
    for (int m = first; m < end; m++) {
        rms_norm(x + m * D, weight, D, c->b->norm_eps, c->p->normed + m * D);
        sum_groups(c->p->normed + m * D, D, c->p->sums + m * (D / GROUP));
    }
}

static void norm_input(const void *call, int first, int end) {
    const Call *c = call;
    norm_tokens(c, c->x, c->b->input_norm, first, end);
}

static void norm_middle(const void *call, int first, int end) {
    const Call *c = call;
    norm_tokens(c, c->p->middle, c->b->mlp_norm, first, end);
}

/* Items: tiles. */
static void make_qkv(const void *call, int first, int end) {
    const Call *c = call;
    const int X = c->b->qkv.num_outputs;
    float out[MOST_TOKENS][TILE];
    for (int t = first; t < end; t++) {
        multiply(&c->b->qkv, t, c->p->normed, c->p->sums, c->num_tokens, out);
        for (int m = 0; m < c->num_tokens; m++) store16(c->p->qkv + m * X + t * TILE, _mm512_loadu_ps(out[m]));
    }
}

/* Of a token's head of keys and values. */
static void keep_head(const Call *c, int item) {
    const Block *b = c->b;
    const int d = b->head_dim, J = b->num_kv_heads, m = item / J, j = item % J;
    const int64_t n = c->first + m;
    const int64_t at = c->p->slots[n] * b->slot_stride + j * b->head_stride + c->p->positions[n] * d;
    const bf16 *heads = c->p->qkv + m * b->qkv.num_outputs + b->num_heads * d;
    rotate(heads + j * d, c->p->cos + n * d, c->p->sin + n * d, d, b->keys + at);
    copy(heads + (J + j) * d, d, b->values + at);
}

/* Of the query heads of a token that share one of keys and values. */
static void look_with_head(const Call *c, int item) {
    const Block *b = c->b;
    const int d = b->head_dim, J = b->num_kv_heads, m = item / J, j = item % J, share = b->num_heads / J;
    const int64_t n = c->first + m, at = c->p->slots[n] * b->slot_stride + j * b->head_stride;
    const bf16 *heads = c->p->qkv + m * b->qkv.num_outputs + j * share * d;
    bf16 queries[MOST_SHARING * WIDEST_HEAD], *seen = c->p->seen + m * b->num_heads * d + j * share * d;
    if (!c->one_by_one) keep_head(c, item);
    for (int h = 0; h < share; h++) rotate(heads + h * d, c->p->cos + n * d, c->p->sin + n * d, d, queries + h * d);
    attend(share, d, queries, b->keys + at, b->values + at, (int)c->p->positions[n] + 1, b->scaling, seen);
    sum_groups(seen, share * d, c->p->sums + (m * b->num_heads + j * share) * d / GROUP);
}

/* Items: a token's heads of keys and values. */
static void keep(const void *call, int first, int end) {
    for (int item = first; item < end; item++) keep_head(call, item);
}

static void look(const void *call, int first, int end) {
    for (int item = first; item < end; item++) look_with_head(call, item);
}

/* Items: tiles. */
static void add_attention(const void *call, int first, int end) {
    const Call *c = call;
    const int D = c->b->d_model;
    float out[MOST_TOKENS][TILE];
    for (int t = first; t < end; t++) {
        multiply(&c->b->output, t, c->p->seen, c->p->sums, c->num_tokens, out);
        for (int m = 0; m < c->num_tokens; m++)
            add_to_residual(out[m], c->x + m * D + t * TILE, c->p->middle + m * D + t * TILE);
    }
}

/* Items: groups of the MLP's inner numbers, so that their sums are known with them. */
static void make_inner(const void *call, int first, int end) {
    const Call *c = call;
    const int I = c->b->d_mlp;
    float gate[MOST_TOKENS][TILE], up[MOST_TOKENS][TILE];
    for (int t = 2 * first; t < 2 * end; t++) {
        multiply(&c->b->gate_up, 2 * t, c->p->normed, c->p->sums, c->num_tokens, gate);
        multiply(&c->b->gate_up, 2 * t + 1, c->p->normed, c->p->sums, c->num_tokens, up);
        for (int m = 0; m < c->num_tokens; m++) {
            const __m512 x = rounded(_mm512_loadu_ps(gate[m])), minus = _mm512_sub_ps(_mm512_setzero_ps(), x);
            const __m512 silu = _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1), exponential(minus)));
            store16(c->p->inner + m * I + t * TILE, _mm512_mul_ps(rounded(silu), rounded(_mm512_loadu_ps(up[m]))));
        }
    }
    for (int m = 0; m < c->num_tokens; m++)
        for (int g = first; g < end; g++)
            c->p->inner_sums[m * (I / GROUP) + g] = sum_of_group(c->p->inner + m * I + g * GROUP);
}

/* Items: tiles. */
static void add_mlp(const void *call, int first, int end) {
    const Call *c = call;
    const int D = c->b->d_model;
    float out[MOST_TOKENS][TILE];
    for (int t = first; t < end; t++) {
        multiply(&c->b->down, t, c->p->inner, c->p->inner_sums, c->num_tokens, out);
        for (int m = 0; m < c->num_tokens; m++)
            add_to_residual(out[m], c->p->middle + m * D + t * TILE, c->y + m * D + t * TILE);
    }
}

static void block_of_few(int is_shared, const Call *c) {
    const Block *b = c->b;
    const int heads = c->num_tokens * b->num_kv_heads, width = b->d_model / TILE;
    share(is_shared, norm_input, c, c->num_tokens);
    share(is_shared, make_qkv, c, b->qkv.num_outputs / TILE);
    if (c->one_by_one) share(is_shared, keep, c, heads);
    share(is_shared, look, c, heads);
    share(is_shared, add_attention, c, width);
    share(is_shared, norm_middle, c, c->num_tokens);
    share(is_shared, make_inner, c, b->d_mlp / GROUP);
    share(is_shared, add_mlp, c, width);
}

/* Blocks one after another: x [M, D] -> y [M, D], which may be the same place. Keys and values of the tokens are kept. */
void telltale_blocks(const Block *b, int num_blocks, const Pass *p, const bf16 *x, bf16 *y) {
    const int is_shared = begin_sharing(p->num_threads);
    for (int i = 0; i < num_blocks; i++, x = y)
        for (int first = 0; first < p->num_tokens; first += MOST_TOKENS) {
            const int rest = p->num_tokens - first, count = rest < MOST_TOKENS ? rest : MOST_TOKENS;
            const int64_t at = (int64_t)first * b->d_model;
            Call call = {b + i, p, x + at, y + at, first, count, 0};
            for (int m = 1; m < count; m++) call.one_by_one |= p->slots[first + m] == p->slots[first + m - 1];
            block_of_few(is_shared, &call);
        }
    stop_sharing(is_shared);
}

/* x [M, D] -> y [M, D]: RMS norm. */
void telltale_norm(const bf16 *weight, float eps, int width, const bf16 *x, int num_tokens, bf16 *y) {
    for (int64_t m = 0; m < num_tokens; m++) rms_norm(x + m * width, weight, width, eps, y + m * width);
}

typedef struct {
    const Matrix *w;
    const bf16 *x;
    const float *sums;
    float *y;
    int num_tokens;
} Product;

/* Items: tiles. */
static void make_outputs(const void *call, int first, int end) {
    const Product *c = call;
    const int64_t n = c->w->num_outputs;
    float out[MOST_TOKENS][TILE];
    for (int t = first; t < end; t++) {
        multiply(c->w, t, c->x, c->sums, c->num_tokens, out);
        for (int m = 0; m < c->num_tokens; m++) _mm512_storeu_ps(c->y + m * n + t * TILE, _mm512_loadu_ps(out[m]));
    }
}

/* x [M, K] -> y [M, N] in fp32. `sums` is scratch [MOST_TOKENS, G], NULL where the weights are not of 4 bits. */
void telltale_product(const Matrix *w, const bf16 *x, int num_tokens, float *sums, float *y, int num_threads) {
    const int k = w->num_inputs, is_shared = begin_sharing(num_threads);
    for (int first = 0; first < num_tokens; first += MOST_TOKENS) {
        const int rest = num_tokens - first, count = rest < MOST_TOKENS ? rest : MOST_TOKENS;
        const bf16 *xs = x + (int64_t)first * k;
        const Product call = {w, xs, sums, y + (int64_t)first * w->num_outputs, count};
        if (w->bits == 4)
            for (int m = 0; m < count; m++) sum_groups(xs + m * k, k, sums + m * (k / GROUP));
        share(is_shared, make_outputs, &call, w->num_outputs / TILE);
    }
    stop_sharing(is_shared);
}

typedef struct {
    const float *logits;
    int64_t stride, *tokens;
    float *logprobs;
    uint8_t *is_finite;
    int width;
} Choice;

static void choose_in(const Choice *c, int m) {
    const float *line = c->logits + m * c->stride;
    const int width = c->width, whole = width & ~15;
    __m512 top = _mm512_set1_ps(-INFINITY), zeros = _mm512_setzero_ps();
    for (int i = 0; i < whole; i += 16) {
        const __m512 x = _mm512_loadu_ps(line + i);
        top = _mm512_max_ps(top, x);
        /* 0 * x is 0, but for infinity and NaN. */
        zeros = _mm512_fmadd_ps(x, _mm512_setzero_ps(), zeros);
    }
    float largest = _mm512_reduce_max_ps(top), zero = _mm512_reduce_add_ps(zeros);
    for (int i = whole; i < width; i++) {
        zero += 0 * line[i];
        if (line[i] > largest) largest = line[i];
    }
    c->is_finite[m] = zero == 0;
    c->tokens[m] = 0;
    if (c->is_finite[m])
        while (line[c->tokens[m]] != largest) c->tokens[m]++;
    __m512 sums = _mm512_setzero_ps();
    for (int i = 0; i < whole; i += 16)
        sums = _mm512_add_ps(sums, exponential(_mm512_sub_ps(_mm512_loadu_ps(line + i), _mm512_set1_ps(largest))));
    float sum = _mm512_reduce_add_ps(sums);
    for (int i = whole; i < width; i++) sum += expf(line[i] - largest);
    c->logprobs[m] = -logf(sum);
}

/* Items: lines. */
static void choose(const void *call, int first, int end) {
    for (int m = first; m < end; m++) choose_in(call, m);
}

/* Logits [M, V], lines `stride` apart -> the first of the largest of each line, its log-probability, and whether all
   are finite. */
void telltale_most_likely(const float *logits, int num, int width, int64_t stride, int64_t *tokens, float *logprobs,
                          uint8_t *is_finite, int num_threads) {
    const Choice call = {logits, stride, tokens, logprobs, is_finite, width};
    const int is_shared = begin_sharing(num_threads);
    share(is_shared, choose, &call, num);
    stop_sharing(is_shared);
}

/* In doubles, which no square of an fp32 number overflows. */
static inline double sum_of_squares(__m512 x) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x)), high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    return _mm512_reduce_add_pd(_mm512_fmadd_pd(low, low, _mm512_mul_pd(high, high)));
}

/* x [M, D] -> ||x|| [M]. */
void telltale_norms(const bf16 *x, int num_tokens, int width, double *norms) {
    for (int64_t m = 0; m < num_tokens; m++) {
        double squares = 0;
        for (int64_t i = m * width; i < (m + 1) * width; i += 16) squares += sum_of_squares(load16(x + i));
        norms[m] = sqrt(squares);
    }
}

/* --- a dictionary ---

Most latents are off, and to see that takes no exact number: the encoder is read in 8 bits first, half as many bytes,
and a latent that may be on, by what 8 bits can be off at most, is computed from its own weights. What is read is as if
all of them had been. */

typedef struct {
    Matrix screen;                            /* [latents, d_model], 8 bits */
    const bf16 *encoder;                      /* [latents, d_model] */
    const float *slack, *least;               /* [latents]: a screened pre-activation is off by up to ||x|| slack + least */
    const float *offset, *threshold;          /* [latents] */
    const float *decoder, *bias, *mean;       /* [latents, d_model], [d_model], [d_model] */
    float scale;
} Dictionary;

typedef struct {
    const Dictionary *r;
    const bf16 *x;
    float *f, *parts;
    int64_t *num_active;
    const double *norms;
    int num_tokens;
} Reading;

/* In one order of sums, wherever a latent is read: four chains, since a sum waits for the one before. */
static float latent_of(const Dictionary *r, int64_t n, const bf16 *x) {
    const int D = r->screen.num_inputs;
    const bf16 *row = r->encoder + n * D;
    __m512 part[4];
    for (int c = 0; c < 4; c++) part[c] = _mm512_setzero_ps();
    for (int j = 0, c = 0; j < D; j += GROUP, c = (c + 1) % 4)
        part[c] = _mm512_dpbf16_ps(part[c], (__m512bh)_mm512_loadu_si512(row + j), (__m512bh)_mm512_loadu_si512(x + j));
    const float sum = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(part[0], part[1]), _mm512_add_ps(part[2], part[3])));
    const float pre = fmaf(r->scale, sum, r->offset[n]);
    return pre <= r->threshold[n] ? 0 : pre; /* NaN is not less or equal to anything, and so stays */
}

/* Items: tiles. */
static void encode(const void *call, int first, int end) {
    const Reading *c = call;
    const Dictionary *r = c->r;
    const int64_t F = r->screen.num_outputs, D = r->screen.num_inputs;
    float out[MOST_TOKENS][TILE];
    for (int t = first; t < end; t++) {
        multiply(&r->screen, t, c->x, NULL, c->num_tokens, out);
        const __m512 scale = _mm512_set1_ps(r->scale), offset = _mm512_loadu_ps(r->offset + t * TILE);
        const __m512 slack = _mm512_loadu_ps(r->slack + t * TILE), least = _mm512_loadu_ps(r->least + t * TILE);
        for (int m = 0; m < c->num_tokens; m++) {
            const __m512 pre = _mm512_fmadd_ps(scale, _mm512_loadu_ps(out[m]), offset);
            const __m512 most = _mm512_add_ps(pre, _mm512_fmadd_ps(_mm512_set1_ps((float)c->norms[m]), slack, least));
            __mmask16 may_be_on = ~_mm512_cmp_ps_mask(most, _mm512_loadu_ps(r->threshold + t * TILE), _CMP_LE_OQ);
            float *f = c->f + m * F + t * TILE;
            _mm512_storeu_ps(f, _mm512_setzero_ps());
            for (; may_be_on; may_be_on &= may_be_on - 1) {
                const int lane = __builtin_ctz(may_be_on);
                f[lane] = latent_of(r, t * TILE + lane, c->x + m * D);
            }
        }
    }
}

/* Of one half of D of a token, since there may be one token only. */
static void rebuild_half(const Reading *c, int item) {
    const Dictionary *r = c->r;
    const int64_t F = r->screen.num_outputs, D = r->screen.num_inputs, m = item / 2, half = D / 32 * 16;
    const int64_t from = item % 2 ? half : 0, to = item % 2 ? D : half;
    const float *f = c->f + m * F;
    float made[WIDEST_MODEL];
    int64_t active = 0;
    for (int64_t j = from; j < to; j++) made[j] = r->bias[j];
    for (int64_t n = 0; n < F; n += TILE) {
        __mmask16 is_on = _mm512_cmp_ps_mask(_mm512_loadu_ps(f + n), _mm512_setzero_ps(), _CMP_NEQ_UQ);
        for (; is_on; is_on &= is_on - 1, active++) {
            const int64_t latent = n + __builtin_ctz(is_on);
            const float *row = r->decoder + latent * D;
            for (int64_t j = from; j < to; j += 16)
                _mm512_storeu_ps(made + j, _mm512_fmadd_ps(_mm512_set1_ps(f[latent]), _mm512_loadu_ps(row + j),
                                                           _mm512_loadu_ps(made + j)));
        }
    }
    __m512 error = _mm512_setzero_ps(), spread = _mm512_setzero_ps();
    for (int64_t j = from; j < to; j += 16) {
        const __m512 value = load16(c->x + m * D + j);
        const __m512 missed = _mm512_sub_ps(value, _mm512_div_ps(_mm512_loadu_ps(made + j), _mm512_set1_ps(r->scale)));
        const __m512 apart = _mm512_sub_ps(value, _mm512_loadu_ps(r->mean + j));
        error = _mm512_fmadd_ps(missed, missed, error);
        spread = _mm512_fmadd_ps(apart, apart, spread);
    }
    c->parts[2 * item] = _mm512_reduce_add_ps(error);
    c->parts[2 * item + 1] = _mm512_reduce_add_ps(spread);
    if (item % 2) c->num_active[m] = active;
}

/* Items: halves of tokens. */
static void rebuild(const void *call, int first, int end) {
    for (int item = first; item < end; item++) rebuild_half(call, item);
}

/* x [M, D] -> latents f [M, F], those that are active, and the fraction of variance unexplained:
   f = pre where pre > threshold, pre = scale * (x @ encoder) + offset; x_hat = (f @ decoder + bias) / scale. */
void telltale_read(const Dictionary *r, const bf16 *x, int num_tokens, float *f, int64_t *num_active, float *unexplained,
                   int num_threads) {
    const int64_t F = r->screen.num_outputs, D = r->screen.num_inputs;
    const int is_shared = begin_sharing(num_threads);
    float parts[4 * MOST_TOKENS];
    double norms[MOST_TOKENS];
    for (int64_t first = 0; first < num_tokens; first += MOST_TOKENS) {
        const int rest = num_tokens - (int)first, count = rest < MOST_TOKENS ? rest : MOST_TOKENS;
        const Reading call = {r, x + first * D, f + first * F, parts, num_active + first, norms, count};
        telltale_norms(call.x, count, (int)D, norms);
        share(is_shared, encode, &call, (int)(F / TILE));
        share(is_shared, rebuild, &call, 2 * count);
        for (int m = 0; m < count; m++)
            unexplained[first + m] = (parts[4 * m] + parts[4 * m + 2]) / (parts[4 * m + 1] + parts[4 * m + 3]);
    }
    stop_sharing(is_shared);
}

/* x [M, D] -> y [M, num]: the latents `which` alone, the very numbers that telltale_read gives. 0 if there are no such
   latents. */
int telltale_read_some(const Dictionary *r, const int64_t *which, int num, const bf16 *x, int num_tokens, float *y) {
    for (int i = 0; i < num; i++)
        if (which[i] < 0 || which[i] >= r->screen.num_outputs) return 0;
    for (int64_t m = 0; m < num_tokens; m++)
        for (int i = 0; i < num; i++) y[m * num + i] = latent_of(r, which[i], x + m * r->screen.num_inputs);
    return 1;
}

/* --- steering --- */

enum { ADD, SCALE, SET, PROJECT_OUT, CAP };

typedef struct {
    const float *direction;                    /* [D], in the residual's units: of a feature what one unit of it adds */
    const float *encoder;                      /* [D], of a feature; NULL for a raw vector */
    float input_scale, offset, threshold;      /* f = pre where pre > threshold, pre = input_scale * h.encoder + offset */
    float strength, max_relative_norm;
    int32_t op, is_relative;
} Operation;

static double dot(const float *a, const float *b, int width) {
    __m512d sum = _mm512_setzero_pd();
    for (int i = 0; i < width; i += 8)
        sum = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm256_loadu_ps(a + i)), _mm512_cvtps_pd(_mm256_loadu_ps(b + i)), sum);
    return _mm512_reduce_add_pd(sum);
}

/* How much of `direction` an operation adds to h. Of a raw vector v the unit is v / |v|, of a feature its direction. */
static double amount_of(const Operation *o, const float *h, int width) {
    const double length = sqrt(dot(o->direction, o->direction, width)), along = dot(h, o->direction, width) / length;
    const double unit = o->encoder ? 1 : 1 / length;
    double wanted = o->strength, active = along;
    if (o->is_relative) wanted *= sqrt(dot(h, h, width));
    if (o->encoder) {
        active = o->input_scale * dot(h, o->encoder, width) + o->offset;
        if (active <= o->threshold) active = 0;
    }
    switch (o->op) {
    case ADD: return o->is_relative ? wanted / length : wanted;
    case SCALE: return (o->strength - 1) * active * unit;
    case SET: return ((o->is_relative ? wanted / (length * unit) : wanted) - active) * unit;
    case PROJECT_OUT: return -along / length;
    default: return along > wanted ? (wanted - along) / length : 0; /* CAP */
    }
}

/* Lines of x [M, D] are moved where they lie: line tokens[i] by *operations[i], those of a line one after another, which
   stand side by side. None ends further from where it began than its limit, relative to its length there. */
void telltale_steer(const Operation *const *operations, const int32_t *tokens, int num, bf16 *x, int width) {
    float start[WIDEST_MODEL], h[WIDEST_MODEL], delta[WIDEST_MODEL];
    for (int i = 0; i < num; i++) {
        bf16 *line = x + (int64_t)tokens[i] * width;
        const int is_first = i == 0 || tokens[i] != tokens[i - 1];
        if (is_first)
            for (int j = 0; j < width; j += 16) {
                _mm512_storeu_ps(start + j, load16(line + j));
                _mm512_storeu_ps(h + j, load16(line + j));
            }
        const Operation *o = operations[i];
        const __m512 amount = _mm512_set1_ps((float)amount_of(o, h, width));
        for (int j = 0; j < width; j += 16) {
            const __m512 moved = _mm512_fmadd_ps(amount, _mm512_loadu_ps(o->direction + j), _mm512_loadu_ps(h + j));
            _mm512_storeu_ps(delta + j, _mm512_sub_ps(moved, _mm512_loadu_ps(start + j)));
        }
        const double limit = o->max_relative_norm * sqrt(dot(start, start, width));
        const double length = sqrt(dot(delta, delta, width));
        const __m512 share = _mm512_set1_ps(length > limit ? (float)(limit / length) : 1);
        for (int j = 0; j < width; j += 16)
            _mm512_storeu_ps(h + j, _mm512_fmadd_ps(share, _mm512_loadu_ps(delta + j), _mm512_loadu_ps(start + j)));
        if (i + 1 == num || tokens[i + 1] != tokens[i])
            for (int j = 0; j < width; j += 16) store16(line + j, _mm512_loadu_ps(h + j));
    }
}

/* Of each line of [M, D] ||after - before|| / ||before||. */
void telltale_moves(const bf16 *before, const bf16 *after, int num_tokens, int width, float *moves) {
    for (int64_t m = 0; m < num_tokens; m++) {
        double length = 0, moved = 0;
        for (int64_t i = m * width; i < (m + 1) * width; i += 16) {
            const __m512 was = load16(before + i), by = _mm512_sub_ps(load16(after + i), was);
            length += sum_of_squares(was);
            moved += sum_of_squares(by);
        }
        moves[m] = (float)sqrt(moved / length);
    }
}

/* Products of a few tokens with a matrix whose weights are packed. */

enum { PREFETCH = 4 };

typedef struct {
    const uint8_t *blocks; /* tiles of 16 outputs, in them groups: numbers, 16 scales (4, 8 bits), 16 minima (4 bits) */
    const float *bias;     /* [N] or NULL */
    int32_t bits, num_outputs, num_inputs;
} Matrix;

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

/* Two inputs at once; as memory, since a bf16 is no int. */
static inline int32_t pair(const bf16 *p) {
    int32_t both;
    __builtin_memcpy(&both, p, sizeof both);
    return both;
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
            __m512i two = _mm512_set1_epi32(pair(x + m * x_stride + 2 * p));
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

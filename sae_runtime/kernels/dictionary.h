/* A dictionary: a residual's latents, and how well they describe it.

Most latents are off, and to see that takes no exact number: the encoder is read in 8 bits first, half as many bytes,
multiplied with the residual in 8 bits, and a latent that may be on, by what that can be off at most, is computed from
its own weights and the residual itself. What is read is as if all of them had been. */

enum { SCREEN_BYTES = 544, INPUTS_AT_ONCE = 4, ADDED = 128 };

/* What becomes 0 in products because it is too small for a normal number, and more. */
static const float FLUSHED = 1e-30f;

typedef struct {
    const uint8_t *screen;              /* tiles of 16 latents, in them groups of 32 inputs: 8 times 4 inputs of 16
                                           latents, ADDED to each number, and 16 scales */
    const bf16 *encoder;                /* [latents, d_model] */
    const float *slack, *spread;        /* [latents]: a screened product is off by ||x|| slack + ||x - x'|| spread at most */
    const float *offset, *threshold;    /* [latents] */
    const float *decoder, *bias, *mean; /* [latents, d_model], [d_model], [d_model] */
    float scale;
    int32_t num_latents, d_model;
} Dictionary;

/* Residuals x' in 8 bits, 32 numbers to a scale. */
typedef struct {
    int8_t *numbers;          /* [M, d_model] */
    float *scales;            /* [M, G] */
    int32_t *starts;          /* [M, G]: takes away again what is added to the numbers of the encoder */
    double lost[MOST_TOKENS]; /* ||x - x'|| */
} Rounded;

typedef struct {
    const Dictionary *r;
    const bf16 *x;
    float *f, *parts;
    int64_t *num_active;
    double *norms;
    Rounded *rounded;
    int num_tokens;
} Reading;

/* 16 numbers to the nearest multiples of a scale: what is lost. */
static inline __m512 to_bytes(__m512 x, float scale, float inverse, int8_t *numbers, __m512i *sums) {
    const __m128i kept = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse))));
    const __m512i wide = _mm512_cvtepi8_epi32(kept);
    _mm_storeu_si128((__m128i *)numbers, kept);
    *sums = _mm512_add_epi32(*sums, wide);
    return _mm512_fnmadd_ps(_mm512_cvtepi32_ps(wide), _mm512_set1_ps(scale), x);
}

/* Items: tokens. Whatever a residual holds, what is said to be lost is lost. */
static void round_tokens(const void *call, int first, int end) {
    const Reading *c = call;
    const int D = c->r->d_model, groups = D / GROUP;
    telltale_norms(c->x + (int64_t)first * D, end - first, D, c->norms + first);
    for (int m = first; m < end; m++) {
        double lost = 0;
        for (int g = 0; g < groups; g++) {
            const int64_t at = (int64_t)m * D + g * GROUP;
            const __m512 low = load16(c->x + at), high = load16(c->x + at + 16);
            const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
            const float scale = largest / 127, inverse = largest > 0 ? 127 / largest : 0;
            __m512i sums = _mm512_setzero_si512();
            lost += sum_of_squares(to_bytes(low, scale, inverse, c->rounded->numbers + at, &sums));
            lost += sum_of_squares(to_bytes(high, scale, inverse, c->rounded->numbers + at + 16, &sums));
            c->rounded->scales[m * groups + g] = scale;
            c->rounded->starts[m * groups + g] = -ADDED * _mm512_reduce_add_epi32(sums);
        }
        c->rounded->lost[m] = sqrt(lost);
    }
}

/* A group's part of 16 latents of `rows` tokens. */
static inline __attribute__((always_inline)) void screen_rows(
    const int rows, const __m512i w[8], __m512 scale, const Rounded *x, int64_t at, int D, float (*out)[TILE]) {
    const int groups = D / GROUP;
    __m512i sums[4];
    for (int m = 0; m < rows; m++) sums[m] = _mm512_set1_epi32(x->starts[at / GROUP + m * groups]);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        for (int m = 0; m < rows; m++) {
            int32_t four;
            __builtin_memcpy(&four, x->numbers + at + m * D + INPUTS_AT_ONCE * i, sizeof four);
            sums[m] = _mm512_dpbusd_epi32(sums[m], w[i], _mm512_set1_epi32(four));
        }
    for (int m = 0; m < rows; m++) {
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(x->scales[at / GROUP + m * groups]));
        _mm512_storeu_ps(out[m], _mm512_fmadd_ps(both, _mm512_cvtepi32_ps(sums[m]), _mm512_loadu_ps(out[m])));
    }
}

/* w' . x' of 16 latents. */
static void screen_tile(const Reading *c, int t, float (*out)[TILE]) {
    const int D = c->r->d_model;
    const uint8_t *block = c->r->screen + (int64_t)t * (D / GROUP) * SCREEN_BYTES;
    for (int m = 0; m < c->num_tokens; m++) _mm512_storeu_ps(out[m], _mm512_setzero_ps());
    for (int j = 0; j < D; j += GROUP, block += SCREEN_BYTES) {
        for (int line = 0; line < SCREEN_BYTES; line += 64)
            _mm_prefetch(block + PREFETCH * SCREEN_BYTES + line, _MM_HINT_T0);
        __m512i w[8];
        for (int i = 0; i < 8; i++) w[i] = _mm512_loadu_si512(block + 64 * i);
        const __m512 scale = halves(block + 512);
        int m = 0;
        for (; m + 4 <= c->num_tokens; m += 4) screen_rows(4, w, scale, c->rounded, (int64_t)m * D + j, D, out + m);
        for (; m < c->num_tokens; m++) screen_rows(1, w, scale, c->rounded, (int64_t)m * D + j, D, out + m);
    }
}

/* In one order of sums, wherever a latent is read: four chains, since a sum waits for the one before. */
static float latent_of(const Dictionary *r, int64_t n, const bf16 *x) {
    const int D = r->d_model;
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
    const int64_t F = r->num_latents;
    float out[MOST_TOKENS][TILE];
    for (int t = first; t < end; t++) {
        screen_tile(c, t, out);
        const __m512 scale = _mm512_set1_ps(r->scale), offset = _mm512_loadu_ps(r->offset + t * TILE);
        const __m512 slack = _mm512_loadu_ps(r->slack + t * TILE), spread = _mm512_loadu_ps(r->spread + t * TILE);
        const __m512 threshold = _mm512_loadu_ps(r->threshold + t * TILE), flushed = _mm512_set1_ps(FLUSHED);
        for (int m = 0; m < c->num_tokens; m++) {
            const __m512 norm = _mm512_set1_ps((float)c->norms[m]), lost = _mm512_set1_ps((float)c->rounded->lost[m]);
            const __m512 off_by = _mm512_fmadd_ps(norm, slack, _mm512_fmadd_ps(lost, spread, flushed));
            /* Rounded as a pre-activation is, of a product that is no larger. */
            const __m512 most = _mm512_fmadd_ps(scale, _mm512_add_ps(_mm512_loadu_ps(out[m]), off_by), offset);
            __mmask16 may_be_on = ~_mm512_cmp_ps_mask(most, threshold, _CMP_LE_OQ);
            float *f = c->f + m * F + t * TILE;
            _mm512_storeu_ps(f, _mm512_setzero_ps());
            for (; may_be_on; may_be_on &= may_be_on - 1) {
                const int lane = __builtin_ctz(may_be_on);
                f[lane] = latent_of(r, t * TILE + lane, c->x + m * r->d_model);
            }
        }
    }
}

/* Of one half of D of a token, since there may be one token only. */
static void rebuild_half(const Reading *c, int item) {
    const Dictionary *r = c->r;
    const int64_t F = r->num_latents, D = r->d_model, m = item / 2, half = D / 32 * 16;
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

/* x [M, D] -> latents f [M, F], those that are active, the fraction of variance unexplained, and ||x||:
   f = pre where pre > threshold, pre = scale * (x @ encoder) + offset; x_hat = (f @ decoder + bias) / scale. */
void telltale_read(const Dictionary *r, const bf16 *x, int num_tokens, float *f, int64_t *num_active, float *unexplained,
                   double *norms, int num_threads) {
    const int64_t F = r->num_latents, D = r->d_model;
    const int is_shared = begin_sharing(num_threads);
    const int64_t most = num_tokens < MOST_TOKENS ? num_tokens : MOST_TOKENS;
    int8_t numbers[most * D + 1];
    float parts[4 * MOST_TOKENS], scales[most * D / GROUP + 1];
    int32_t starts[most * D / GROUP + 1];
    Rounded rounded = {.numbers = numbers, .scales = scales, .starts = starts};
    for (int64_t first = 0; first < num_tokens; first += MOST_TOKENS) {
        const int rest = num_tokens - (int)first, count = rest < MOST_TOKENS ? rest : MOST_TOKENS;
        const Reading call = {r, x + first * D, f + first * F, parts, num_active + first, norms + first, &rounded, count};
        share(is_shared, round_tokens, &call, count);
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
        if (which[i] < 0 || which[i] >= r->num_latents) return 0;
    for (int64_t m = 0; m < num_tokens; m++)
        for (int i = 0; i < num; i++) y[m * num + i] = latent_of(r, which[i], x + m * r->d_model);
    return 1;
}

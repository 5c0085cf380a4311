/* A dictionary: a residual's latents, and how well they describe it.

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

/* x [M, D] -> latents f [M, F], those that are active, the fraction of variance unexplained, and ||x||:
   f = pre where pre > threshold, pre = scale * (x @ encoder) + offset; x_hat = (f @ decoder + bias) / scale. */
void telltale_read(const Dictionary *r, const bf16 *x, int num_tokens, float *f, int64_t *num_active, float *unexplained,
                   double *norms, int num_threads) {
    const int64_t F = r->screen.num_outputs, D = r->screen.num_inputs;
    const int is_shared = begin_sharing(num_threads);
    float parts[4 * MOST_TOKENS];
    for (int64_t first = 0; first < num_tokens; first += MOST_TOKENS) {
        const int rest = num_tokens - (int)first, count = rest < MOST_TOKENS ? rest : MOST_TOKENS;
        const Reading call = {r, x + first * D, f + first * F, parts, num_active + first, norms + first, count};
        telltale_norms(call.x, count, (int)D, norms + first);
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

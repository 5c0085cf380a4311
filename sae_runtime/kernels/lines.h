/* What is asked of single lines: of logits the most likely token, of residuals how long they are and how far they moved. */

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
    if (!c->logprobs) return;
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

/* Logits [M, V], lines `stride` apart -> the first of the largest of each line, its log-probability unless `logprobs` is
   NULL, and whether all are finite. */
void telltale_most_likely(const float *logits, int num, int width, int64_t stride, int64_t *tokens, float *logprobs,
                          uint8_t *is_finite, int num_threads) {
    const Choice call = {logits, stride, tokens, logprobs, is_finite, width};
    const int is_shared = begin_sharing(num_threads);
    share(is_shared, choose, &call, num);
    stop_sharing(is_shared);
}

/* x [M, D] -> ||x|| [M]. */
void telltale_norms(const bf16 *x, int num_tokens, int width, double *norms) {
    for (int64_t m = 0; m < num_tokens; m++) {
        double squares = 0;
        for (int64_t i = m * width; i < (m + 1) * width; i += 16) squares += sum_of_squares(load16(x + i));
        norms[m] = sqrt(squares);
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

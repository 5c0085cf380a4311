/* Attention of a token's heads over the positions before it. */

enum { SPAN = 64, WIDEST_HEAD = 256, MOST_HEADS = 3, MOST_SHARING = 16 };

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

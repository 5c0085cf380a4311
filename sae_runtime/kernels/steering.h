/* Steering: residuals moved along directions. */

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

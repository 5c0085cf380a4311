/* Decoder blocks over a few tokens. */

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

static void rms_norm(const bf16 *x, const bf16 *weight, int width, float eps, bf16 *out) {
    __m512 squares = _mm512_setzero_ps();
    for (int i = 0; i < width; i += 16) squares = _mm512_fmadd_ps(load16(x + i), load16(x + i), squares);
    __m512 factor = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / width + eps));
    for (int i = 0; i < width; i += 16)
        store16(out + i, _mm512_mul_ps(load16(weight + i), rounded(_mm512_mul_ps(load16(x + i), factor))));
}

static inline void add_to_residual(const float *from, const bf16 *x, bf16 *out) {
    store16(out, _mm512_add_ps(load16(x), rounded(_mm512_loadu_ps(from))));
}

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
    const int d = b->head_dim, J = b->num_kv_heads, m = item / J, j = item % J, num = b->num_heads / J;
    const int64_t n = c->first + m, at = c->p->slots[n] * b->slot_stride + j * b->head_stride;
    const bf16 *heads = c->p->qkv + m * b->qkv.num_outputs + j * num * d;
    bf16 queries[MOST_SHARING * WIDEST_HEAD], *seen = c->p->seen + m * b->num_heads * d + j * num * d;
    if (!c->one_by_one) keep_head(c, item);
    for (int h = 0; h < num; h++) rotate(heads + h * d, c->p->cos + n * d, c->p->sin + n * d, d, queries + h * d);
    attend(num, d, queries, b->keys + at, b->values + at, (int)c->p->positions[n] + 1, b->scaling, seen);
    sum_groups(seen, num * d, c->p->sums + (m * b->num_heads + j * num) * d / GROUP);
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

/* x [M, D] -> y [M, V]: the head's product with normed residuals. */
void telltale_logits(const Matrix *head, const bf16 *weight, float eps, const bf16 *x, int num_tokens, const Pass *p,
                     float *y) {
    const int64_t D = head->num_inputs;
    for (int64_t first = 0; first < num_tokens; first += MOST_TOKENS) {
        const int rest = num_tokens - (int)first, count = rest < MOST_TOKENS ? rest : MOST_TOKENS;
        for (int64_t m = 0; m < count; m++) rms_norm(x + (first + m) * D, weight, (int)D, eps, p->normed + m * D);
        telltale_product(head, p->normed, count, p->sums, y + first * head->num_outputs, p->num_threads);
    }
}

// Causal attention of the tokens of a prompt over a paged KV pool, in tiles of queries by keys.
//
// A task is a run of queries of one KV head, all query heads of its group together, so that a tile of KEYS keys is
// transposed once for all of them. Both products run in registers, ROWS queries by up to WIDE vectors. The softmax is
// the online one of attention.h, in powers of two (log2 e goes into the queries), and its peak moves only when a score
// exceeds it by SLACK: the factor of up to 2^SLACK cancels in the final division and most tiles are spared a rescaling.
//
// Tiles lie at absolute positions and are taken in ascending order, and what a query does not see adds exact zeros. So
// the result of a token is the same bits in any batch, in any chunking and with any number of threads.

#pragma once

#include <algorithm>

#include "attention.h"

constexpr int KEYS = 64;
constexpr int ROWS = 6;
constexpr int WIDE = LANES == 16 ? 4 : 2;  // ROWS * WIDE sums, WIDE operands and a factor fill the registers
constexpr int PANEL = WIDE * LANES;        // keys that one product covers
constexpr int GROUPS_AT_ONCE = 8;          // groups of ROWS queries whose scores stay in the first-level cache
constexpr int MAX_TASK_ROWS = 288;         // queries times heads
constexpr float SLACK = 8;
constexpr float UNSEEN_PEAK = -1e30f;

struct PrefillSpan {  // a row of the int64 array that colocate/model/attention/native.py makes
    int64_t first, num_tokens, start;
    const int64_t* table;
};

INLINE vec broadcast(float x) { return x - vec{}; }

// 2^x for x <= SLACK + 1, relative error 1e-7: polynomial (least squares, near minimax) on [-1/2, 1/2]; 2^-100 below -100.
INLINE vec power_of_two(vec x) {
    x = max(x, broadcast(-100.0f));
    const vec shifted = x + broadcast(12582912.0f);  // 1.5 * 2^23: rounds x to an integer, which lands in the low bits
    const vec r = x - (shifted - broadcast(12582912.0f));
    vec p = broadcast(0.001327637503f);
    p = madd(p, r, broadcast(0.009675515023f));
    p = madd(p, r, broadcast(0.055507133177f));
    p = madd(p, r, broadcast(0.240221202305f));
    p = madd(p, r, broadcast(0.693146967213f));
    p = madd(p, r, broadcast(1.000000071546f));
    return (vec)((ivec)p + ((ivec)shifted << 23));
}

// acc [ROWS][NV] += a b over `count` steps: step k takes a[m * ROW_STEP + k * STEP] and the NV vectors at b + k * b_stride.
template <int NV, int ROW_STEP, int STEP>
INLINE void multiply(const float* a, const float* b, int64_t b_stride, int64_t count, vec* acc) {
    for (int64_t k = 0; k < count; k++, a += STEP, b += b_stride) {
        vec right[NV];
        UNROLL for (int n = 0; n < NV; n++) right[n] = load(b + n * LANES);
        UNROLL for (int m = 0; m < ROWS; m++) {
            const vec left = broadcast(a[m * ROW_STEP]);
            UNROLL for (int n = 0; n < NV; n++) acc[m * NV + n] = madd(left, right[n], acc[m * NV + n]);
        }
    }
}

template <int H, int... I>
INLINE void exchange(vec& a, vec& b, std::integer_sequence<int, I...>) {
    const vec low = __builtin_shufflevector(a, b, ((I & H) ? LANES + I - H : I)...);
    b = __builtin_shufflevector(a, b, ((I & H) ? LANES + I : I + H)...);
    a = low;
}

template <int H = LANES / 2>
INLINE void transpose(vec* rows) {
    UNROLL for (int i = 0; i < LANES; i++)
        if (!(i & H)) exchange<H>(rows[i], rows[i + H], std::make_integer_sequence<int, LANES>{});
    if constexpr (H > 1) transpose<H / 2>(rows);
}

// One KV head and a run of queries; `scratch` is the calling thread's, floats() long and aligned to 64 bytes.
class PrefillTask {
  public:
    PrefillTask(const PoolLayer<float>& pool, int64_t group, float scale, float* scratch)
        : pool_(pool), dim_(pool.head_dim), group_(group), scale_(scale * 1.44269504f) {
        const int64_t rows = rows_of(group);
        keys_ = scratch;
        values_ = keys_ + KEYS * dim_;
        queries_ = values_ + KEYS * dim_;
        sums_ = queries_ + rows * dim_;
        totals_ = sums_ + rows * dim_;
        peaks_ = totals_ + rows * LANES;
        scores_ = peaks_ + (rows + 15) / 16 * 16;
    }

    // Queries of one head that a task takes at most.
    static int64_t most_queries(int64_t group) { return std::max<int64_t>(8 * ROWS, MAX_TASK_ROWS / group / ROWS * ROWS); }

    static int64_t floats(int64_t group, int64_t dim) {
        const int64_t rows = rows_of(group);
        return 2 * KEYS * dim + 2 * rows * dim + rows * LANES + (rows + 15) / 16 * 16 + GROUPS_AT_ONCE * ROWS * KEYS;
    }

    // Queries begin .. begin + count - 1 of `span`; q and out at the first head of the group and the span's first token.
    void run(const PrefillSpan& span, int64_t head, int64_t begin, int64_t count, const float* q, int64_t q_stride,
             float* out, int64_t out_stride) {
        first_ = span.start + begin;
        groups_ = (count + ROWS - 1) / ROWS;
        last_ = first_ + count;
        for (int64_t g = 0; g < group_; g++)
            for (int64_t i = 0; i < groups_; i++)
                take_queries(g * groups_ + i, q + g * dim_ + (begin + i * ROWS) * q_stride, q_stride, count - i * ROWS);
        for (int64_t tile = pool_.first_seen(first_ + 1) / KEYS * KEYS; tile < last_; tile += KEYS) {
            take_tile(span.table, head, tile);
            for (int64_t from = 0; from < group_ * groups_; from += GROUPS_AT_ONCE)
                attend(tile, from, std::min<int64_t>(from + GROUPS_AT_ONCE, group_ * groups_));
        }
        for (int64_t g = 0; g < group_; g++)
            for (int64_t i = 0; i < count; i++)
                emit(g * groups_ * ROWS + i, out + g * dim_ + (begin + i) * out_stride);
    }

  private:
    static int64_t rows_of(int64_t group) { return most_queries(group) * group; }

    // Interleaved, [dim][ROWS], and scaled; rows past the last query are zeros.
    void take_queries(int64_t index, const float* q, int64_t q_stride, int64_t count) {
        float* to = queries_ + index * ROWS * dim_;
        for (int64_t m = 0; m < ROWS; m++)
            for (int64_t d = 0; d < dim_; d++) to[d * ROWS + m] = m < count ? q[m * q_stride + d] * scale_ : 0.0f;
        std::fill_n(sums_ + index * ROWS * dim_, ROWS * dim_, 0.0f);
        std::fill_n(totals_ + index * ROWS * LANES, ROWS * LANES, 0.0f);
        std::fill_n(peaks_ + index * ROWS, ROWS, UNSEEN_PEAK);
    }

    // keys_ in panels [KEYS / PANEL][dim][PANEL], values_ [KEYS][dim]; zeros from position last_ on.
    void take_tile(const int64_t* table, int64_t head, int64_t tile) {
        int64_t place = tile / pool_.block_size, slot = tile % pool_.block_size;
        const int64_t count = std::min<int64_t>(KEYS, last_ - tile);
        const float* rows[KEYS];
        for (int64_t j = 0; j < KEYS; j++) {
            const int64_t at = j < count ? pool_.offset(table[place], head, slot) : 0;
            rows[j] = j < count ? pool_.keys + at : nullptr;
            for (int64_t d = 0; d < dim_; d += LANES)
                store(values_ + j * dim_ + d, j < count ? load(pool_.values + at + d) : vec{});
            if (++slot == pool_.block_size) slot = 0, place++;
        }
        for (int64_t j = 0; j < KEYS; j += LANES)
            for (int64_t d = 0; d < dim_; d += LANES) {
                vec square[LANES];
                UNROLL for (int i = 0; i < LANES; i++) square[i] = rows[j + i] ? load(rows[j + i] + d) : vec{};
                transpose(square);
                float* to = keys_ + j / PANEL * PANEL * dim_ + d * PANEL + j % PANEL;
                UNROLL for (int i = 0; i < LANES; i++) store(to + i * PANEL, square[i]);
            }
    }

    int64_t position(int64_t index) const { return first_ + index % groups_ * ROWS; }  // of the group's first query

    bool sees(int64_t index, int64_t tile) const {
        const int64_t p = position(index);
        return p + ROWS > tile && pool_.first_seen(p + 1) < tile + KEYS;
    }

    __attribute__((noinline)) void attend(int64_t tile, int64_t from, int64_t to) {
        for (int64_t i = from; i < to; i++)
            if (sees(i, tile)) score(i, scores_ + (i - from) * ROWS * KEYS);
        for (int64_t i = from; i < to; i++) {
            if (!sees(i, tile)) continue;
            const int64_t p = position(i);
            float* scores = scores_ + (i - from) * ROWS * KEYS;
            const bool whole = p + 1 >= tile + KEYS && pool_.first_seen(p + ROWS) <= tile;
            for (int64_t m = 0; m < ROWS; m++) {
                if (whole) soften<false>(scores + m * KEYS, i * ROWS + m, 0, 0);
                else soften<true>(scores + m * KEYS, i * ROWS + m, pool_.first_seen(p + m + 1) - tile, p + m + 1 - tile);
            }
        }
        for (int64_t i = from; i < to; i++) {
            if (!sees(i, tile)) continue;
            const int64_t count = std::min<int64_t>(KEYS, std::min(position(i) + ROWS, last_) - tile);
            const float* weights = scores_ + (i - from) * ROWS * KEYS;
            int64_t d = 0;
            for (; d + WIDE * LANES <= dim_; d += WIDE * LANES) add_values<WIDE>(i, weights, d, count);
            for (; d < dim_; d += LANES) add_values<1>(i, weights, d, count);
        }
    }

    INLINE void score(int64_t index, float* scores) {
        for (int panel = 0; panel < KEYS / PANEL; panel++) {
            vec acc[ROWS * WIDE];
            UNROLL for (int i = 0; i < ROWS * WIDE; i++) acc[i] = vec{};
            multiply<WIDE, 1, ROWS>(queries_ + index * ROWS * dim_, keys_ + panel * PANEL * dim_, PANEL, dim_, acc);
            UNROLL for (int m = 0; m < ROWS; m++)
                UNROLL for (int n = 0; n < WIDE; n++)
                    store(scores + m * KEYS + panel * PANEL + n * LANES, acc[m * WIDE + n]);
        }
    }

    // Scores of one query become softmax numerators; those outside begin .. end - 1 become 0.
    template <bool MASKED>
    INLINE void soften(float* scores, int64_t row, int64_t begin, int64_t end) {
        constexpr int COUNT = KEYS / LANES;
        vec x[COUNT];
        ivec visible[COUNT];
        UNROLL for (int n = 0; n < COUNT; n++) {
            x[n] = load(scores + n * LANES);
            if constexpr (MASKED) {
                ivec place;
                UNROLL for (int j = 0; j < LANES; j++) place[j] = n * LANES + j;
                visible[n] = (place >= (int32_t)std::max<int64_t>(begin, -1)) & (place < (int32_t)std::min<int64_t>(end, KEYS));
                x[n] = visible[n] ? x[n] : broadcast(-INFINITY);
            }
        }
        vec highest = x[0];
        UNROLL for (int n = 1; n < COUNT; n++) highest = max(highest, x[n]);
        if (any_above(highest, peaks_[row] + SLACK)) move_peak(row, largest(highest));
        const vec peak = broadcast(peaks_[row]);
        vec total = load(totals_ + row * LANES);
        UNROLL for (int n = 0; n < COUNT; n++) {
            vec p = power_of_two(x[n] - peak);
            if constexpr (MASKED) p = visible[n] ? p : vec{};
            total += p;
            store(scores + n * LANES, p);
        }
        store(totals_ + row * LANES, total);
    }

    static INLINE bool any_above(vec x, float limit) {
#if defined(__AVX512F__)
        return _mm512_cmp_ps_mask((__m512)x, (__m512)broadcast(limit), _CMP_GT_OQ) != 0;
#else
        return largest(x) > limit;
#endif
    }

    __attribute__((noinline)) void move_peak(int64_t row, float peak) {
        const vec shrink = power_of_two(broadcast(peaks_[row] - peak));
        float *total = totals_ + row * LANES, *sum = sums_ + row * dim_;
        store(total, load(total) * shrink);
        for (int64_t d = 0; d < dim_; d += LANES) store(sum + d, load(sum + d) * shrink);
        peaks_[row] = peak;
    }

    template <int NV>
    INLINE void add_values(int64_t index, const float* weights, int64_t d, int64_t count) {
        float* sums = sums_ + index * ROWS * dim_ + d;
        vec acc[ROWS * NV];
        UNROLL for (int m = 0; m < ROWS; m++)
            UNROLL for (int n = 0; n < NV; n++) acc[m * NV + n] = load(sums + m * dim_ + n * LANES);
        multiply<NV, KEYS, 1>(weights, values_ + d, dim_, count, acc);
        UNROLL for (int m = 0; m < ROWS; m++)
            UNROLL for (int n = 0; n < NV; n++) store(sums + m * dim_ + n * LANES, acc[m * NV + n]);
    }

    void emit(int64_t row, float* out) const {
        const float inverse = 1.0f / sum(load(totals_ + row * LANES));
        for (int64_t d = 0; d < dim_; d += LANES) store(out + d, load(sums_ + row * dim_ + d) * inverse);
    }

    const PoolLayer<float>& pool_;
    const int64_t dim_, group_;
    const float scale_;
    float *keys_, *values_, *queries_, *sums_, *totals_, *peaks_, *scores_;
    int64_t first_ = 0, last_ = 0, groups_ = 0;  // positions of the task's queries, and groups of ROWS per head
};

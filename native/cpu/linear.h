// y = x W^T for few rows of x: W [N, K] is read once, row by row, at the speed of memory.
//
// A BLAS packs W or walks it in panels, which pays for hundreds of rows but not for the 1 to 50 of a decode step: measured
// on a Zen 4 core at 4 rows, 11 GB/s of weights against 36 here (34 is what reading memory alone reaches).
// Here each element of y is one dot product, accumulated as simd.h says; a tile of MR rows of x by NR rows of W shares
// its loads in registers.

#pragma once

#include "simd.h"

// Epilogue of an element: y = sum + bias, or y += sum + bias where `accumulate`.
struct Target {
    float* y;
    int64_t stride;     // floats between rows of y
    const float* bias;  // per column, or null
    bool accumulate;
};

template <int MR, int NR, class S>
INLINE void dot_tile(const float* x, int64_t x_stride, const S* w, int K, const S* ahead, float sums_out[MR * NR]) {
    constexpr int COUNT = MR * NR;
    vec acc[32];
    UNROLL for (int i = 0; i < COUNT; i++) acc[i] = vec{};
    int k = 0;
    for (; k + LANES <= K; k += LANES) {
        vec b[NR];
        UNROLL for (int n = 0; n < NR; n++) {
            b[n] = load(w + (int64_t)n * K + k);
            if (ahead) __builtin_prefetch(ahead + (int64_t)n * K + k, 0, 2);
        }
        UNROLL for (int m = 0; m < MR; m++) {
            vec a = load(x + m * x_stride + k);
            UNROLL for (int n = 0; n < NR; n++) acc[m * NR + n] = madd(a, b[n], acc[m * NR + n]);
        }
    }
    if (k < K) {
        UNROLL for (int m = 0; m < MR; m++) {
            vec a = load_some(x + m * x_stride + k, K - k);
            UNROLL for (int n = 0; n < NR; n++)
                acc[m * NR + n] = madd(a, load_some(w + (int64_t)n * K + k, K - k), acc[m * NR + n]);
        }
    }
    constexpr int WIDE = COUNT / LANES * LANES;
    UNROLL for (int i = 0; i < WIDE; i += LANES) store(sums_out + i, sums<LANES>(acc + i));
    constexpr int FOURS = (COUNT - WIDE) / 4 * 4;
    UNROLL for (int i = WIDE; i < WIDE + FOURS; i += 4) {
        vec four = sums<4>(acc + i);
        UNROLL for (int j = 0; j < 4; j++) sums_out[i + j] = four[j];
    }
    UNROLL for (int i = WIDE + FOURS; i < COUNT; i++) sums_out[i] = sum(acc[i]);
}

template <int MR, int NR, class S>
INLINE void emit_tile(const float* x, int64_t x_stride, const S* w, int K, const S* ahead, const Target& to, int m, int n) {
    alignas(64) float result[(MR * NR + LANES - 1) / LANES * LANES];
    dot_tile<MR, NR>(x + m * x_stride, x_stride, w + (int64_t)n * K, K, ahead, result);
    for (int i = 0; i < MR; i++) {
        float* y = to.y + (m + i) * to.stride + n;
        for (int j = 0; j < NR; j++) {
            float value = result[i * NR + j] + (to.bias ? to.bias[n + j] : 0.0f);
            y[j] = to.accumulate ? y[j] + value : value;
        }
    }
}

template <int NR, class S>
INLINE void row_group(int rows, const float* x, int64_t x_stride, const S* w, int K, const S* ahead, const Target& to, int m, int n) {
    switch (rows) {
        case 1: emit_tile<1, NR>(x, x_stride, w, K, ahead, to, m, n); break;
        case 2: emit_tile<2, NR>(x, x_stride, w, K, ahead, to, m, n); break;
        case 3: emit_tile<3, NR>(x, x_stride, w, K, ahead, to, m, n); break;
        case 4: emit_tile<4, NR>(x, x_stride, w, K, ahead, to, m, n); break;
        case 5: emit_tile<5, NR>(x, x_stride, w, K, ahead, to, m, n); break;
        default: emit_tile<6, NR>(x, x_stride, w, K, ahead, to, m, n); break;
    }
}

template <int NR, class S>
INLINE void columns(const float* x, int M, int64_t x_stride, const S* w, int K, bool more, const Target& to, int n) {
    int groups = (M + 5) / 6;
    int m = 0;
    for (int g = 0; g < groups; g++) {
        int rows = (M - m + groups - g - 1) / (groups - g);  // as even as possible, the larger first
        const S* ahead = g == 0 && more ? w + (int64_t)(n + NR) * K : nullptr;
        row_group<NR>(rows, x, x_stride, w, K, ahead, to, m, n);
        m += rows;
    }
}

constexpr int PANEL_ROWS = 96;  // rows of x that stay in the second-level cache while columns pass

// Columns first .. last - 1 of y for all M rows.
template <class S>
void linear_columns(const float* x, int M, int64_t x_stride, const S* w, int K, int first, int last, Target to) {
    for (; M > PANEL_ROWS; M -= PANEL_ROWS, x += PANEL_ROWS * x_stride, to.y += PANEL_ROWS * to.stride)
        linear_columns(x, PANEL_ROWS, x_stride, w, K, first, last, to);
    int n = first;
    if (M == 1) {  // one stream is what the hardware prefetcher follows best
        for (; n < last; n++) emit_tile<1, 1>(x, x_stride, w, K, n + 1 < last ? w + (int64_t)(n + 1) * K : nullptr, to, 0, n);
        return;
    }
    if (M == 4)
        for (; n + 6 <= last; n += 6)
            emit_tile<4, 6>(x, x_stride, w, K, n + 12 <= last ? w + (int64_t)(n + 6) * K : nullptr, to, 0, n);
    for (; n + 4 <= last; n += 4) columns<4>(x, M, x_stride, w, K, n + 8 <= last, to, n);
    for (; n < last; n++) columns<1>(x, M, x_stride, w, K, n + 1 < last, to, n);
}

// Attention of single queries over a paged KV pool, and writing tokens into it.
//
// One layer of the pool is [2, block, kv_head, slot, head_dim], keys first. Keys are taken in tiles of LANES positions
// and tiles in chunks of CHUNK positions, both aligned to absolute positions, with a running softmax inside a chunk
// (online softmax: Milakov and Gimelshein, arXiv 1805.02867; tiling as in FlashAttention, arXiv 2205.14135) and chunks
// merged in ascending order. So the result is the same bits whether one thread walks a row or several share its chunks.

#pragma once

#include "simd.h"

constexpr int CHUNK = 512;
constexpr int MAX_HEAD_DIM = 256;
constexpr int MAX_VECS = MAX_HEAD_DIM / LANES;

template <class S>
struct PoolLayer {
    S* keys;
    S* values;
    int64_t num_kv_heads, block_size, head_dim;
    int64_t window;  // keys a query sees, its own included; 0: all

    int64_t offset(int64_t block, int64_t head, int64_t slot) const {
        return ((block * num_kv_heads + head) * block_size + slot) * head_dim;
    }
    int64_t offset_of_slot(int64_t slot, int64_t head) const { return offset(slot / block_size, head, slot % block_size); }
    // The first position that a query at position context_len - 1 sees.
    int64_t first_seen(int64_t context_len) const { return window > 0 && context_len > window ? context_len - window : 0; }
};

// What one query head has gathered from some of its keys: softmax numerators relative to `peak`.
struct Partial {
    float peak;
    float total;
    vec value[MAX_VECS];
};

INLINE void reset(Partial& p, int vecs) {
    p.peak = -INFINITY;
    p.total = 0;
    for (int d = 0; d < vecs; d++) p.value[d] = vec{};
}

INLINE void merge(Partial& into, const Partial& later, int vecs) {
    float peak = into.peak > later.peak ? into.peak : later.peak;
    float a = into.peak == peak ? 1.0f : exponential(splat(into.peak - peak))[0];
    float b = later.peak == peak ? 1.0f : exponential(splat(later.peak - peak))[0];
    if (into.peak == -INFINITY) a = 0;
    for (int d = 0; d < vecs; d++) into.value[d] = into.value[d] * a + later.value[d] * b;
    into.total = into.total * a + later.total * b;
    into.peak = peak;
}

// Attention of `group` query heads of one row (q [group, head_dim], `q_stride` apart) to one chunk of one KV head.
template <class S>
INLINE void attend_chunk(
    const PoolLayer<S>& pool, const int64_t* table, int64_t head, int64_t context_len, int64_t chunk, const float* q,
    int64_t q_stride, int group, float scale, Partial* partials
) {
    const int vecs = pool.head_dim / LANES;
    for (int g = 0; g < group; g++) reset(partials[g], vecs);
    const int64_t first = std::max(chunk * CHUNK, pool.first_seen(context_len));
    const int64_t last = std::min((chunk + 1) * CHUNK, context_len);
    int64_t offsets[LANES], next[LANES];
    auto locate = [&](int64_t tile, int64_t* out) {
        int64_t position = std::max(tile, first);
        for (int j = 0; j < LANES; j++) {  // places outside first .. last - 1 read a key that is seen, and are masked
            int64_t p = std::min(std::max(tile + j, position), last - 1);
            out[j] = pool.offset(table[p / pool.block_size], head, p % pool.block_size);
        }
    };
    int64_t tile = first / LANES * LANES;
    if (tile < last) locate(tile, next);
    ivec lane;
    for (int j = 0; j < LANES; j++) lane[j] = j;
    for (; tile < last; tile += LANES) {
        memcpy(offsets, next, sizeof offsets);
        if (tile + LANES < last) locate(tile + LANES, next);
        for (int g = 0; g < group; g++) {
            Partial& part = partials[g];
            vec acc[LANES];
            UNROLL for (int j = 0; j < LANES; j++) acc[j] = vec{};
            for (int d = 0; d < vecs; d++) {
                vec a = load(q + g * q_stride + d * LANES);
                UNROLL for (int j = 0; j < LANES; j++) {
                    acc[j] = madd(a, load(pool.keys + offsets[j] + d * LANES), acc[j]);
                    if (g == 0) __builtin_prefetch(pool.values + offsets[j] + d * LANES);
                }
            }
            vec scores = sums<LANES>(acc) * scale;
            ivec position = lane + (int32_t)tile;
            scores = ((position >= (int32_t)first) & (position < (int32_t)last)) ? scores : splat(-INFINITY);
            float peak = std::max(part.peak, largest(scores));
            vec p = exponential(scores - peak);
            p = ((position >= (int32_t)first) & (position < (int32_t)last)) ? p : vec{};
            if (peak > part.peak) {
                float shrink = part.peak == -INFINITY ? 0.0f : exponential(splat(part.peak - peak))[0];
                part.total *= shrink;
                for (int d = 0; d < vecs; d++) part.value[d] *= shrink;
                part.peak = peak;
            }
            part.total += sum(p);
            for (int d = 0; d < vecs; d++) {
                vec even = part.value[d], odd = vec{};
                UNROLL for (int j = 0; j < LANES; j += 2) {
                    even = madd(splat(p[j]), load(pool.values + offsets[j] + d * LANES), even);
                    odd = madd(splat(p[j + 1]), load(pool.values + offsets[j + 1] + d * LANES), odd);
                    if (g == 0) {
                        __builtin_prefetch(pool.keys + next[j] + d * LANES);
                        __builtin_prefetch(pool.keys + next[j + 1] + d * LANES);
                    }
                }
                part.value[d] = even + odd;
            }
        }
    }
}

INLINE void emit(const Partial& part, float* out, int vecs) {
    float inverse = 1.0f / part.total;
    for (int d = 0; d < vecs; d++) store(out + d * LANES, part.value[d] * inverse);
}

// All chunks of one row and one KV head. `partials` holds 2 * group entries of the calling thread.
template <class S>
INLINE void attend_row(
    const PoolLayer<S>& pool, const int64_t* table, int64_t head, int64_t context_len, const float* q, int64_t q_stride,
    int group, float scale, float* out, Partial* partials
) {
    const int vecs = pool.head_dim / LANES;
    Partial* running = partials + group;
    for (int64_t chunk = pool.first_seen(context_len) / CHUNK; chunk * CHUNK < context_len; chunk++) {
        attend_chunk(pool, table, head, context_len, chunk, q, q_stride, group, scale, partials);
        bool is_first = chunk == pool.first_seen(context_len) / CHUNK;
        for (int g = 0; g < group; g++) {
            if (is_first) running[g] = partials[g];
            else merge(running[g], partials[g], vecs);
        }
    }
    for (int g = 0; g < group; g++) emit(running[g], out + g * pool.head_dim, vecs);
}

template <class S>
INLINE void write_head(const PoolLayer<S>& pool, int64_t slot, int64_t head, const float* key, const float* value) {
    int64_t at = pool.offset_of_slot(slot, head);
    for (int d = 0; d < pool.head_dim; d += LANES) {
        store(pool.keys + at + d, load(key + d));
        store(pool.values + at + d, load(value + d));
    }
}

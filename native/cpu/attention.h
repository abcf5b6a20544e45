// Attention of single queries over a paged KV pool, and writing tokens into it.
//
// One layer of the pool is [2, block, kv_head, slot, head_dim], keys first. Keys are taken in tiles of LANES positions
// and tiles in chunks of CHUNK positions, both aligned to absolute positions, with a running softmax inside a chunk
// (online softmax: Milakov and Gimelshein, arXiv 1805.02867; tiling as in FlashAttention, arXiv 2205.14135) and chunks
// merged in ascending order. So the result is the same bits whether one thread walks a row or several share its chunks.

#pragma once

#include "simd.h"

constexpr int CHUNK = 512;
constexpr int AHEAD = 1;  // tiles by which prefetching runs ahead of the one under way
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

// The keys (or values) of one tile as LANES rows `head_dim` apart: in place where the tile lies inside one block, else
// copied to `buffer`. Places outside first .. last - 1 show a key that is seen; their scores are masked.
template <class S>
INLINE const S* tile_rows(
    const PoolLayer<S>& pool, const S* side, const int64_t* table, int64_t head, int64_t tile, int64_t first, int64_t last,
    S* buffer
) {
    if (pool.block_size % LANES == 0)
        return side + pool.offset(table[tile / pool.block_size], head, tile % pool.block_size);
    for (int j = 0; j < LANES; j++) {
        int64_t p = std::min(std::max(tile + j, first), last - 1);
        memcpy(buffer + j * pool.head_dim, side + pool.offset(table[p / pool.block_size], head, p % pool.block_size),
               pool.head_dim * sizeof(S));
    }
    return buffer;
}

// One tile for one query head: scores, running softmax, weighted values. VECS is head_dim / LANES.
template <int VECS, class S>
INLINE void attend_tile(const float* q, const S* keys, const S* values, ivec visible, float scale, Partial& part) {
    constexpr int DIM = VECS * LANES;
    vec acc[LANES];
    UNROLL for (int j = 0; j < LANES; j++) acc[j] = vec{};
    UNROLL for (int d = 0; d < VECS; d++) {
        vec a = load(q + d * LANES);
        UNROLL for (int j = 0; j < LANES; j++) acc[j] = madd(a, load(keys + j * DIM + d * LANES), acc[j]);
    }
    vec scores = sums<LANES>(acc) * scale;
    scores = visible ? scores : splat(-INFINITY);
    float highest = largest(scores);
    if (highest > part.peak) {
        float shrink = part.peak == -INFINITY ? 0.0f : exponential(splat(part.peak - highest))[0];
        part.total *= shrink;
        UNROLL for (int d = 0; d < VECS; d++) part.value[d] *= shrink;
        part.peak = highest;
    }
    vec p = exponential(scores - part.peak);
    p = visible ? p : vec{};
    part.total += sum(p);
    alignas(64) float weight[LANES];
    store(weight, p);
    constexpr int STEP = VECS % 4 == 0 ? 4 : VECS % 2 == 0 ? 2 : 1;
    for (int d = 0; d < VECS; d += STEP) {
        vec even[STEP], odd[STEP];
        UNROLL for (int i = 0; i < STEP; i++) even[i] = part.value[d + i], odd[i] = vec{};
        UNROLL for (int j = 0; j < LANES; j += 2) {
            vec a = splat(weight[j]), b = splat(weight[j + 1]);
            UNROLL for (int i = 0; i < STEP; i++) {
                even[i] = madd(a, load(values + j * DIM + (d + i) * LANES), even[i]);
                odd[i] = madd(b, load(values + (j + 1) * DIM + (d + i) * LANES), odd[i]);
            }
        }
        UNROLL for (int i = 0; i < STEP; i++) part.value[d + i] = even[i] + odd[i];
    }
}

// Into the second-level cache: a tile is a page, where the hardware prefetcher starts anew. Measured on a Zen 4 core at
// head_dim 64: 8 GB/s of keys and values without, 8 when prefetched to the first level, 15 to 20 like this.
template <class S>
INLINE void prefetch_rows(const S* rows, int64_t count) {
    for (int64_t i = 0; i < count; i += 64 / (int64_t)sizeof(S)) __builtin_prefetch(rows + i, 0, 2);
}

template <int VECS, class S>
void attend_chunk_of(
    const PoolLayer<S>& pool, const int64_t* table, int64_t head, int64_t context_len, int64_t chunk, const float* q,
    int64_t q_stride, int group, float scale, Partial* partials
) {
    for (int g = 0; g < group; g++) reset(partials[g], VECS);
    const int64_t first = std::max(chunk * CHUNK, pool.first_seen(context_len));
    const int64_t last = std::min((chunk + 1) * CHUNK, context_len);
    S key_buffer[LANES * VECS * LANES], value_buffer[LANES * VECS * LANES];
    const bool in_place = pool.block_size % LANES == 0;
    ivec lane;
    for (int j = 0; j < LANES; j++) lane[j] = j;
    for (int64_t tile = first / LANES * LANES; tile < last; tile += LANES) {
        const S* keys = tile_rows(pool, pool.keys, table, head, tile, first, last, key_buffer);
        const S* values = tile_rows(pool, pool.values, table, head, tile, first, last, value_buffer);
        if (in_place && tile + AHEAD * LANES < last) {
            int64_t later = tile + AHEAD * LANES;
            int64_t at = pool.offset(table[later / pool.block_size], head, later % pool.block_size);
            prefetch_rows(pool.keys + at, LANES * VECS * LANES);
            prefetch_rows(pool.values + at, LANES * VECS * LANES);
        }
        ivec position = lane + (int32_t)tile;
        ivec visible = (position >= (int32_t)first) & (position < (int32_t)last);
        for (int g = 0; g < group; g++)
            attend_tile<VECS>(q + g * q_stride, keys, values, visible, scale, partials[g]);
    }
}

// Attention of `group` query heads of one row (q [group, head_dim], `q_stride` apart) to one chunk of one KV head.
template <class S>
void attend_chunk(
    const PoolLayer<S>& pool, const int64_t* table, int64_t head, int64_t context_len, int64_t chunk, const float* q,
    int64_t q_stride, int group, float scale, Partial* partials
) {
#define WITH(VECS) attend_chunk_of<VECS>(pool, table, head, context_len, chunk, q, q_stride, group, scale, partials)
    switch (pool.head_dim / LANES) {
        case 1: return WITH(1);
        case 2: return WITH(2);
        case 3: return WITH(3);
        case 4: return WITH(4);
        case 5: return WITH(5);
        case 6: return WITH(6);
        case 7: return WITH(7);
        case 8: return WITH(8);
        case 10: return WITH(10);
        case 12: return WITH(12);
        case 16: return WITH(16);
        default: __builtin_trap();  // model/native_layers.py lets only these through
    }
#undef WITH
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

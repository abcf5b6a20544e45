// Layers of a Llama-shaped decoder for the few rows of a decode step, as one call.
//
// A step of a small model is short: torch's dispatch costs 2 to 10 microseconds for each of some 15 operations per
// layer, and under a passive OpenMP wait policy every one of them puts the threads to sleep and wakes them. Here the
// threads stay together through all layers, with five barriers per layer. Activations are float whatever the storage
// type of weights and KV.

#pragma once

#include <algorithm>

#include "attention.h"
#include "linear.h"
#include "team.h"

struct LayerPointers {  // mirrored by colocate/model/native_layers.py
    const void *input_norm, *qkv, *qkv_bias, *qk_norm, *o, *o_bias, *post_norm, *gate_up, *down;
    void *keys, *values;
    int64_t window;
};

struct DecoderShape {  // mirrored by colocate/model/native_layers.py
    int64_t hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, block_size;
    float rms_norm_eps;
    float scale;  // of attention scores
};

struct DecodeBatch {  // mirrored by colocate/model/native_layers.py
    int64_t num_rows, num_threads, table_stride;
    float* hidden;         // [rows, hidden_size], changed in place
    const float *cos, *sin;  // [rows, head_dim], the two halves equal
    const int64_t *slots, *tables, *context_lens;
    float* workspace;      // workspace_floats() of them, aligned to 64 bytes
    int64_t max_context_len;
    int64_t rows_are_related;  // rows attend to one another (tokens of one prompt): keys of all are written first
};

INLINE int64_t padded(int64_t floats) { return (floats + 15) / 16 * 16; }

struct Workspace {
    int64_t normed, tile, partial, qkv, attention, act, split, total;  // offsets in floats; the first three per thread
    int64_t per_thread;

    Workspace(const DecoderShape& s, int64_t rows, int64_t threads, int64_t max_context_len) {
        int64_t group = s.num_heads / s.num_kv_heads;
        normed = 0;
        tile = normed + padded(rows * s.hidden_size);
        partial = tile + padded(2 * rows * MAX_BLOCK);
        per_thread = partial + padded(2 * group * sizeof(Partial) / 4);
        qkv = per_thread * threads;
        attention = qkv + padded(rows * (s.num_heads + 2 * s.num_kv_heads) * s.head_dim);
        act = attention + padded(rows * s.num_heads * s.head_dim);
        split = act + padded(rows * s.intermediate_size);
        // The chunks of a row are shared out only where rows are few: see Decoder::attend.
        int64_t split_rows = std::min(rows, 2 * threads / s.num_kv_heads + 1);
        total = split + padded(split_rows * s.num_heads * ((max_context_len + CHUNK - 1) / CHUNK) * sizeof(Partial) / 4);
    }

    static constexpr int MAX_BLOCK = 48;  // columns that a thread claims at once
};

template <class S>
INLINE void rms_norm_rows(const float* x, int rows, int width, const S* weight, float eps, float* out) {
    for (int r = 0; r < rows; r++, x += width, out += width) {
        vec squares{};
        for (int k = 0; k < width; k += LANES) {
            vec v = load_upto(x + k, width - k);
            squares = madd(v, v, squares);
        }
        float inverse = 1.0f / std::sqrt(sum(squares) / width + eps);
        for (int k = 0; k < width; k += LANES) {
            vec v = load_upto(x + k, width - k) * inverse * load_upto(weight + k, width - k);
            store_upto(out + k, v, width - k);
        }
    }
}

// Rotation of one head in place: x = x cos + rotate_half(x) sin.
INLINE void rotate_head(float* x, const float* cos, const float* sin, int head_dim) {
    int half = head_dim / 2;
    for (int d = 0; d < half; d++) {
        float a = x[d], b = x[d + half];
        x[d] = a * cos[d] - b * sin[d];
        x[d + half] = b * cos[d + half] + a * sin[d + half];
    }
}

template <class S>
class Decoder {
  public:
    Decoder(const DecoderShape& shape, const DecodeBatch& batch, int threads)
        : s_(shape), b_(batch), space_(shape, batch.num_rows, threads, batch.max_context_len), threads_(threads),
          group_(shape.num_heads / shape.num_kv_heads), width_((shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim) {}

    // Run by every thread of the team. `counters` holds STAGES zeroed counters per layer.
    void run(const LayerPointers* layers, int num_layers, int thread, Barrier& barrier, std::atomic<int>* counters) {
        float* own = b_.workspace + thread * space_.per_thread;
        for (int layer = 0; layer < num_layers; layer++, counters += STAGES) {
            const LayerPointers& w = layers[layer];
            project_qkv(w, own, counters[0]);
            barrier.wait();
            attend(w, own, barrier, counters + 1);
            barrier.wait();
            add_projection((const S*)w.o, (const S*)w.o_bias, space_.attention, s_.num_heads * s_.head_dim, counters[4]);
            barrier.wait();
            feed_forward(w, own, counters[5]);
            barrier.wait();
            add_projection((const S*)w.down, (const S*)nullptr, space_.act, s_.intermediate_size, counters[6]);
            barrier.wait();
        }
    }

    static constexpr int STAGES = 7;

  private:
    // Columns per claim: a few claims per thread, whole tiles, no more than the tile buffer holds.
    int block(int64_t columns) const {
        int64_t wanted = (columns / (threads_ * 4) + 11) / 12 * 12;
        return std::min<int64_t>(std::max<int64_t>(wanted, 12), Workspace::MAX_BLOCK);
    }

    template <class Work>
    INLINE void claim(std::atomic<int>& counter, int64_t count, int64_t step, Work work) {
        for (;;) {
            int64_t first = counter.fetch_add(1, std::memory_order_relaxed) * step;
            if (first >= count) return;
            work(first, std::min(first + step, count));
        }
    }

    void add_bias(const S* bias, int64_t first, int64_t last, float* out, int64_t stride) {
        for (int64_t r = 0; r < b_.num_rows; r++)
            for (int64_t n = first; n < last; n++) {
                float value;
                if constexpr (sizeof(S) == 4) value = bias[n];
                else {
                    uint32_t bits = (uint32_t)bias[n].bits << 16;
                    memcpy(&value, &bits, 4);
                }
                out[r * stride + n] += value;
            }
    }

    void project_qkv(const LayerPointers& w, float* own, std::atomic<int>& counter) {
        float *x = own + space_.normed, *qkv = b_.workspace + space_.qkv;
        rms_norm_rows(b_.hidden, b_.num_rows, s_.hidden_size, (const S*)w.input_norm, s_.rms_norm_eps, x);
        Target to{qkv, width_, nullptr, false};
        claim(counter, width_, block(width_), [&](int64_t first, int64_t last) {
            linear_columns(x, b_.num_rows, s_.hidden_size, (const S*)w.qkv, s_.hidden_size, first, last, to);
            if (w.qkv_bias) add_bias((const S*)w.qkv_bias, first, last, qkv, width_);
        });
    }

    void add_projection(const S* weight, const S* bias, int64_t input, int64_t input_size, std::atomic<int>& counter) {
        Target to{b_.hidden, s_.hidden_size, nullptr, true};
        claim(counter, s_.hidden_size, block(s_.hidden_size), [&](int64_t first, int64_t last) {
            linear_columns(b_.workspace + input, b_.num_rows, input_size, weight, input_size, first, last, to);
            if (bias) add_bias(bias, first, last, b_.hidden, s_.hidden_size);
        });
    }

    void feed_forward(const LayerPointers& w, float* own, std::atomic<int>& counter) {
        const int64_t rows = b_.num_rows, hidden = s_.hidden_size, inter = s_.intermediate_size;
        float *x = own + space_.normed, *gate = own + space_.tile, *act = b_.workspace + space_.act;
        rms_norm_rows(b_.hidden, rows, hidden, (const S*)w.post_norm, s_.rms_norm_eps, x);
        const S *gates = (const S*)w.gate_up, *ups = gates + inter * hidden;
        claim(counter, inter, block(inter), [&](int64_t first, int64_t last) {
            const int64_t count = last - first;
            float* up = gate + rows * Workspace::MAX_BLOCK;
            Target gate_to{gate, Workspace::MAX_BLOCK, nullptr, false}, up_to{up, Workspace::MAX_BLOCK, nullptr, false};
            linear_columns(x, rows, hidden, gates + first * hidden, hidden, 0, count, gate_to);
            linear_columns(x, rows, hidden, ups + first * hidden, hidden, 0, count, up_to);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t n = 0; n < count; n += LANES) {
                    vec g = load_upto(gate + r * Workspace::MAX_BLOCK + n, count - n);
                    vec u = load_upto(up + r * Workspace::MAX_BLOCK + n, count - n);
                    store_upto(act + r * inter + first + n, g / (splat(1.0f) + exponential(-g)) * u, count - n);
                }
        });
    }

    // Normalise and rotate the query and key heads of one row and one KV head, and store key and value in the pool.
    void prepare(const LayerPointers& w, const PoolLayer<S>& pool, int64_t row, int64_t head) {
        const int64_t dim = s_.head_dim;
        float* heads = b_.workspace + space_.qkv + row * width_;
        auto turn = [&](int64_t index) {
            float* x = heads + index * dim;
            if (w.qk_norm) rms_norm_rows(x, 1, dim, (const S*)w.qk_norm + index * dim, s_.rms_norm_eps, x);
            rotate_head(x, b_.cos + row * dim, b_.sin + row * dim, dim);
        };
        for (int64_t g = 0; g < group_; g++) turn(head * group_ + g);
        turn(s_.num_heads + head);
        const float* key = heads + (s_.num_heads + head) * dim;
        write_head(pool, b_.slots[row], head, key, key + s_.num_kv_heads * dim);
    }

    void attend(const LayerPointers& w, float* own, Barrier& barrier, std::atomic<int>* counters) {
        const int64_t heads = s_.num_kv_heads, tasks = b_.num_rows * heads, dim = s_.head_dim;
        PoolLayer<S> pool{(S*)w.keys, (S*)w.values, heads, s_.block_size, dim, w.window};
        Partial* partials = (Partial*)(own + space_.partial);
        const int64_t chunks = (b_.max_context_len + CHUNK - 1) / CHUNK;
        auto query = [&](int64_t row, int64_t head) {
            return b_.workspace + space_.qkv + row * width_ + head * group_ * dim;
        };
        auto result = [&](int64_t row, int64_t head) {
            return b_.workspace + space_.attention + (row * s_.num_heads + head * group_) * dim;
        };
        auto table = [&](int64_t row) { return b_.tables + row * b_.table_stride; };
        if (b_.rows_are_related) {
            claim(counters[0], tasks, 1, [&](int64_t task, int64_t) { prepare(w, pool, task / heads, task % heads); });
            barrier.wait();
            claim(counters[1], tasks, 1, [&](int64_t task, int64_t) {  // the longest contexts first
                int64_t row = b_.num_rows - 1 - task / heads, head = task % heads;
                attend_row(pool, table(row), head, b_.context_lens[row], query(row, head), dim, group_, s_.scale,
                           result(row, head), partials);
            });
            return;
        }
        if (tasks >= 2 * threads_ || chunks == 1 || threads_ == 1) {
            claim(counters[0], tasks, 1, [&](int64_t task, int64_t) {
                int64_t row = task / heads, head = task % heads;
                prepare(w, pool, row, head);
                attend_row(pool, table(row), head, b_.context_lens[row], query(row, head), dim, group_, s_.scale,
                           result(row, head), partials);
            });
            return;
        }
        // Fewer rows than threads: the chunks of a row are shared out.
        Partial* split = (Partial*)(b_.workspace + space_.split);
        claim(counters[0], tasks, 1, [&](int64_t task, int64_t) { prepare(w, pool, task / heads, task % heads); });
        barrier.wait();
        claim(counters[1], tasks * chunks, 1, [&](int64_t unit, int64_t) {
            int64_t task = unit / chunks, chunk = unit % chunks, row = task / heads, head = task % heads;
            int64_t context_len = b_.context_lens[row];
            if (chunk * CHUNK >= context_len || chunk < pool.first_seen(context_len) / CHUNK) return;
            attend_chunk(pool, table(row), head, context_len, chunk, query(row, head), dim, group_, s_.scale,
                         split + unit * group_);
        });
        barrier.wait();
        claim(counters[2], tasks, 1, [&](int64_t task, int64_t) {
            int64_t row = task / heads, context_len = b_.context_lens[row];
            int64_t chunk = pool.first_seen(context_len) / CHUNK;
            Partial* first = split + (task * chunks + chunk) * group_;
            for (chunk++; chunk * CHUNK < context_len; chunk++)
                for (int64_t g = 0; g < group_; g++) merge(first[g], split[(task * chunks + chunk) * group_ + g], dim / LANES);
            for (int64_t g = 0; g < group_; g++) emit(first[g], result(row, task % heads) + g * dim, dim / LANES);
        });
    }

    const DecoderShape& s_;
    const DecodeBatch& b_;
    const Workspace space_;
    const int64_t threads_;
    const int64_t group_, width_;
};
